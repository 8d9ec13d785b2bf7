//! Records of JSON Lines files and of tasks, as they are prepared.

use super::splits::{Input, Origin, TaskSplit};
use crate::failure::{Failure, Result};
use e2llm_plugin::Example;
use e2llm_plugin::client::{ExampleStream, TaskClient};
use e2llm_plugin::json_lines::{json_problem, open_text};
use e2llm_train::Split;
use e2llm_train::data::{Assign, Incoming, Record};
use serde_json::Value;
use std::io::BufRead;
use std::path::Path;

/// The records of several inputs, one after the other.
///
/// A line of a file (only LF ends one: texts contain other separators) is `{"context", "prompt" or "instruction", "answer"
/// or "answers"}`, of several answers the first. Its document is `meta.document_id`, where it has that. A task's example
/// is asked as the task's prompt asks it, and answered by its first reference.
pub struct Records {
    inputs: std::vec::IntoIter<Input>,
    open: Option<(Input, Reader)>,
    failure: Option<Box<Failure>>,
}

enum Reader {
    /// With the number of lines read.
    Lines(Box<dyn BufRead + Send>, u64),
    Examples(ExampleStream),
}

impl Reader {
    fn open(origin: &Origin) -> Result<Self> {
        Ok(match origin {
            Origin::File(path) => Self::Lines(open_text(path)?, 0),
            Origin::Task(split) => Self::Examples(split.client.open(&split.source)?),
        })
    }
}

/// Where a record stands, and the record or what is wrong with it.
type Placed = (String, std::result::Result<Record, String>);

impl Records {
    /// The records of `inputs`.
    pub fn new(inputs: Vec<Input>) -> Self {
        Self { inputs: inputs.into_iter(), open: None, failure: None }
    }

    /// What ended the reading before its end: a file that cannot be read, unlike a line that cannot be used.
    ///
    /// # Errors
    /// That failure.
    pub fn finish(self) -> Result<()> {
        self.failure.map_or(Ok(()), Err)
    }

    fn incoming(&mut self) -> Result<Option<Incoming>> {
        loop {
            let Some((input, reader)) = &mut self.open else {
                let Some(input) = self.inputs.next() else { return Ok(None) };
                let reader = Reader::open(&input.origin)?;
                self.open = Some((input, reader));
                continue;
            };
            let placed = match (reader, &input.origin) {
                (Reader::Lines(reader, number), Origin::File(path)) => line(reader, number, path)?,
                (Reader::Examples(stream), Origin::Task(split)) => example(stream, split)?,
                _ => None,
            };
            let Some((place, record)) = placed else {
                self.open = None;
                continue;
            };
            let document = record.as_ref().ok().and_then(|r| r.document.as_ref());
            let held = document.is_some_and(|d| input.except.contains(d));
            let assign = if held { Assign::To(Split::Validation) } else { input.assign };
            return Ok(Some(Incoming { place, assign, record }));
        }
    }
}

/// The next line that is not empty.
fn line(reader: &mut impl BufRead, number: &mut u64, path: &Path) -> Result<Option<Placed>> {
    let mut line = Vec::new();
    loop {
        line.clear();
        let n = reader.read_until(b'\n', &mut line).map_err(|e| Failure::io("read", path, &e))?;
        if n == 0 {
            return Ok(None);
        }
        *number += 1;
        if !line.iter().all(u8::is_ascii_whitespace) {
            return Ok(Some((format!("{}, line {number}", path.display()), record(&line))));
        }
    }
}

fn example(stream: &mut ExampleStream, split: &TaskSplit) -> Result<Option<Placed>> {
    let Some(example) = stream.next() else { return Ok(None) };
    // a broken record ends a task's stream: unlike with a bare file nobody knows where the next one begins
    let example = example?;
    let place = format!("task {}, split {}, sample {}", split.task, split.source.split, example.id);
    Ok(Some((place, asked(&split.client, example))))
}

/// A task's example as a record.
fn asked(client: &TaskClient, example: Example) -> std::result::Result<Record, String> {
    let prompt = client.prompt(&example).map_err(|e| e.to_string())?;
    let named = example.meta.get("document_id").and_then(Value::as_str).map(str::to_owned);
    Ok(Record {
        document: Some(named.unwrap_or(example.group)),
        context: prompt.context,
        instruction: prompt.instruction,
        answer: example.references.into_iter().next().ok_or("no reference to learn from")?,
    })
}

impl Iterator for &mut Records {
    type Item = Incoming;

    fn next(&mut self) -> Option<Incoming> {
        if self.failure.is_some() {
            return None;
        }
        match self.incoming() {
            Ok(incoming) => incoming,
            Err(failure) => {
                self.failure = Some(failure);
                None
            }
        }
    }
}

fn record(line: &[u8]) -> std::result::Result<Record, String> {
    let text = std::str::from_utf8(line).map_err(|e| format!("not UTF-8 at byte {}", e.valid_up_to()))?;
    let value: Value = serde_json::from_str(text).map_err(|e| format!("not JSON: {}", json_problem(&e)))?;
    let field = |names: &[&str]| {
        let found = names.iter().find_map(|n| value.get(n));
        let found = found.ok_or_else(|| format!("no field `{}`", names.join("` or `")))?;
        let one = found.as_array().and_then(|a| a.first()).unwrap_or(found);
        one.as_str().map(str::to_owned).ok_or_else(|| format!("field `{}` is no text", names.join("` or `")))
    };
    Ok(Record {
        document: value.pointer("/meta/document_id").and_then(Value::as_str).map(str::to_owned),
        context: field(&["context"])?,
        instruction: field(&["prompt", "instruction"])?,
        answer: field(&["answer", "answers"])?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn lines_become_records_or_say_why_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let text = "{\"context\":\"a\\u2028b\",\"prompt\":\"p\",\"answers\":[\"x\",\"y\"],\"meta\":{\"document_id\":\"d1\"}}\n\n\
                    {\"context\":\"c\",\"instruction\":\"i\",\"answer\":\"z\"}\nno\n{\"context\":\"c\",\"prompt\":\"p\",\"answers\":[]}\n\
                    {\"context\":1,\"prompt\":\"p\",\"answer\":\"a\"}\n{\"prompt\":\"p\",\"answer\":\"a\"}";
        std::fs::write(&path, text).unwrap();
        let except = BTreeSet::from(["d1".to_owned()]);
        let mut records =
            Records::new(vec![Input { origin: Origin::File(path), assign: Assign::BySeed, except }]);
        let all: Vec<_> = (&mut records).collect();
        records.finish().unwrap();
        assert_eq!(all.len(), 6);
        let first = all[0].record.as_ref().unwrap();
        assert_eq!((first.context.as_str(), first.answer.as_str()), ("a\u{2028}b", "x"));
        assert_eq!((all[0].assign, all[1].assign), (Assign::To(Split::Validation), Assign::BySeed));
        assert_eq!(all[1].record.as_ref().unwrap().instruction, "i");
        for (i, what) in [
            (2, "not JSON"),
            (3, "`answer` or `answers` is no text"),
            (4, "`context`"),
            (5, "no field `context`"),
        ] {
            let error = all[i].record.as_ref().unwrap_err();
            assert!(error.contains(what), "{i}: {error}");
        }
        assert!(all[2].place.ends_with("a.jsonl, line 4"), "{}", all[2].place);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_a_failure() {
        let origin = Origin::File("missing.jsonl".into());
        let input = Input { origin, assign: Assign::BySeed, except: BTreeSet::new() };
        let mut records = Records::new(vec![input]);
        assert_eq!((&mut records).count(), 0);
        assert!(records.finish().is_err());
    }
}
