//! ZeroSCROLLS' records (Shaham et al., 2023): the whole prompt, with the places of document and query in it.
//!
//! `{"id","pid","input","output","document_start_index","document_end_index","query_start_index","query_end_index"}`;
//! the places are counted in characters. A question with several answers has a row for each, one after another.

use super::Template;
use crate::record::{Record, context_group};
use crate::source::Records;
use crate::{Error, Example, Prompt, Result};
use serde_json::{Map, json};

/// The style's name.
pub const ZEROSCROLLS: &str = "zeroscrolls";

const FRAME: &str = "zeroscrolls_template";
/// Stand in the template that is kept with an example.
const MARKS: [&str; 2] = ["{context}", "{input}"];

/// Reads its records.
pub struct ZeroScrolls;

impl ZeroScrolls {
    /// Whether a record is one of its.
    pub fn is_record(record: &Record) -> bool {
        ["input", "document_start_index", "query_start_index"].iter().all(|k| record.value.get(k).is_some())
    }

    /// The example of a record: its document, its query, its answer, and its template in `meta`.
    ///
    /// # Errors
    /// A missing field, places outside the text, an answer that is kept secret.
    pub fn example(record: &Record) -> Result<Example> {
        let input: Vec<char> = record.text("input")?.chars().collect();
        let place = |field: &str| {
            let at = record
                .value
                .get(field)
                .and_then(serde_json::Value::as_u64)
                .and_then(|n| usize::try_from(n).ok());
            at.filter(|n| *n <= input.len())
                .ok_or_else(|| record.error(format!("field `{field}` is no place in `input`")))
        };
        let document = (place("document_start_index")?, place("document_end_index")?);
        let query = (place("query_start_index")?, place("query_end_index")?);
        if document.0 > document.1 || document.1 > query.0 || query.0 > query.1 {
            return Err(record.error("document and query are not one after the other in `input`"));
        }
        let text = |from: usize, to: usize| input[from..to].iter().collect::<String>();
        if record.value.get("output").is_none_or(serde_json::Value::is_null) {
            let error: Error = record.error("field `output` is empty");
            return Err(
                error.with_help("the answers of ZeroSCROLLS' test split are secret; use --split validation")
            );
        }
        let (context, asked) = (text(document.0, document.1), text(query.0, query.1));
        let frame = [
            &text(0, document.0),
            MARKS[0],
            &text(document.1, query.0),
            MARKS[1],
            &text(query.1, input.len()),
        ]
        .concat();
        let meta = [("pid", json!(record.text_or_number("pid")?)), (FRAME, json!(frame))];
        Ok(Example {
            id: record.text_or_number("id")?,
            instruction: asked.trim().to_owned(),
            references: record.texts("output")?,
            group: context_group(&context),
            context,
            meta: Map::from_iter(meta.map(|(k, v)| (k.to_owned(), v))),
        })
    }

    /// Records of which those of one question are joined: the answers of all, the rest of the first.
    pub fn joined(records: Records) -> Records {
        let mut records = records.peekable();
        Box::new(std::iter::from_fn(move || {
            let mut first = match records.next()? {
                Ok(record) if Self::is_record(&record) => record,
                other => return Some(other),
            };
            let same = |next: &Result<Record>| {
                next.as_ref().is_ok_and(|r| Self::is_record(r) && r.value.get("id") == first.value.get("id"))
            };
            let mut outputs = vec![first.value["output"].clone()];
            while let Some(Ok(next)) = records.next_if(same) {
                outputs.push(next.value["output"].clone());
            }
            if outputs.len() > 1 {
                first.value["output"] = outputs.into();
            }
            Some(Ok(first))
        }))
    }

    /// The prompt of an example.
    ///
    /// # Errors
    /// An example that is none of its: its prompts come with its own records.
    pub fn prompt(example: &Example, max_new_tokens: usize) -> Result<Prompt> {
        let Some(frame) = example.meta.get(FRAME).and_then(|f| f.as_str()) else {
            return Err(Error::bad_request(format!(
                "sample `{}` has no prompt of style `{ZEROSCROLLS}`",
                example.id
            ))
            .with_help(
                "these prompts come with ZeroSCROLLS' own records: put its validation.jsonl into the folder",
            ));
        };
        let template = Template::new(frame, MARKS[0], &MARKS[1..])?;
        Ok(template.prompt(
            ZEROSCROLLS,
            &example.context,
            &[(MARKS[1], &example.instruction)],
            max_new_tokens,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn row(output: Value) -> Record {
        let input = "Réad it.\n\nText:\nA long tale.\n\nQuestion:\nWho?\n\nAnswer:\n";
        let at = |what: &str| {
            input.chars().collect::<String>().find(what).map(|b| input[..b].chars().count()).unwrap()
        };
        let (d, q) = (at("A long"), at("Who?"));
        let value = json!({"id": "7", "pid": "7_0", "input": input, "output": output, "document_start_index": d,
            "document_end_index": d + 12, "query_start_index": q, "query_end_index": q + 4});
        Record { place: "f, line 1".into(), value }
    }

    #[test]
    fn a_record_gives_its_prompt_back() {
        let e = ZeroScrolls::example(&row(json!("Me"))).unwrap();
        assert_eq!(
            (e.context.as_str(), e.instruction.as_str(), e.references.as_slice()),
            ("A long tale.", "Who?", &["Me".to_owned()][..])
        );
        let p = ZeroScrolls::prompt(&e, 64).unwrap();
        assert_eq!(p.template, "Réad it.\n\nText:\n{context}\n\n{instruction}\n");
        assert_eq!(p.instruction, "Question:\nWho?\n\nAnswer:");
        assert!(ZeroScrolls::prompt(&Example::default(), 64).unwrap_err().help.contains("validation.jsonl"));
    }

    #[test]
    fn rows_of_one_question_are_joined_and_secret_answers_refused() {
        let rows: Records = Box::new([json!("Me"), json!("I")].map(|o| Ok(row(o))).into_iter());
        let joined: Vec<_> =
            ZeroScrolls::joined(rows).map(|r| ZeroScrolls::example(&r.unwrap()).unwrap()).collect();
        assert_eq!((joined.len(), joined[0].references.clone()), (1, vec!["Me".to_owned(), "I".to_owned()]));
        assert!(ZeroScrolls::example(&row(Value::Null)).unwrap_err().help.contains("validation"));
        let mut odd = row(json!("Me"));
        odd.value["query_end_index"] = json!(999);
        assert!(ZeroScrolls::example(&odd).unwrap_err().message.contains("`query_end_index` is no place"));
    }
}
