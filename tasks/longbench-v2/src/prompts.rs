//! The official prompts: `0shot.txt` and its variants.

use e2llm_plugin::official::{OFFICIAL, Template, Wording};
use e2llm_plugin::record::Record;
use e2llm_plugin::text::python_trim;
use e2llm_plugin::{Error, Example, Prompt, Result, Source};

use crate::{CHOICES, MAX_NEW_TOKENS};

/// Reasoning first, the answer in a second turn.
pub(crate) const COT: &str = "official-cot";
/// The question without the text.
const NO_CONTEXT: &str = "official-no-context";

/// The question with chunks of the text: those of the record, or what a backend retrieves.
pub(crate) const RAG: &str = "official-rag";

/// The styles besides our own.
pub(crate) const STYLES: [&str; 4] = [OFFICIAL, COT, NO_CONTEXT, RAG];

/// A record's chunks, the nearest to the question first: `{"content", "c_idx"}`, the latter their place in the text.
pub(crate) const RETRIEVED: &str = "retrieved_context";

/// Tokens of the reasoning.
const COT_TOKENS: usize = 1024;

const MARKS: [&str; 6] = ["$Q$", "$C_A$", "$C_B$", "$C_C$", "$C_D$", "$COT$"];

/// The templates of a style.
#[derive(Debug)]
pub(crate) struct Templates {
    question: Template,
    /// Of the second turn.
    answer: Option<Template>,
}

impl Templates {
    /// Reads the files of a style; nothing for our own.
    pub(crate) fn read(wording: &Wording, source: &Source) -> Result<Option<Self>> {
        let file = match wording.style() {
            OFFICIAL => "0shot.txt",
            COT => "0shot_cot.txt",
            NO_CONTEXT => "0shot_no_context.txt",
            RAG => "0shot_rag.txt",
            _ => return Ok(None),
        };
        let template = |name: &str| {
            let (text, path) = wording.file(source, name)?;
            let template = Template::new(&text, "$DOC$", &MARKS);
            Ok::<_, Error>((template.map_err(|e| e.at(path.display()))?, text))
        };
        let (mut question, _) = template(file)?;
        let mut answer = None;
        if wording.is(COT) {
            let (second, text) = template("0shot_cot_ans.txt")?;
            question = question.with_turn(&text);
            answer = Some(second);
        }
        Ok(Some(Self { question, answer }))
    }

    /// The prompt of the first turn.
    pub(crate) fn prompt(&self, style: &str, example: &Example) -> Result<Prompt> {
        let tokens = if self.answer.is_some() { COT_TOKENS } else { MAX_NEW_TOKENS };
        fill(&self.question, style, example, "", tokens)
    }

    /// The prompt of the second turn, which has the reasoning but not the text.
    pub(crate) fn answer(&self, style: &str, example: &Example, reasoning: &str) -> Result<Prompt> {
        let Some(answer) = &self.answer else {
            return Err(Error::plugin("there is no second turn"));
        };
        fill(answer, style, example, python_trim(reasoning), MAX_NEW_TOKENS)
    }
}

/// The first `most` chunks of a record as the official script puts them into a prompt: in the order of the text, each
/// with its number. `None` where the record has none.
pub(crate) fn retrieved(record: &Record, most: usize) -> Result<Option<String>> {
    if record.value.get(RETRIEVED).is_none() {
        return Ok(None);
    }
    let mut chunks = Vec::new();
    for (i, chunk) in record.list(RETRIEVED)?.iter().take(most).enumerate() {
        let chunk = record.part(format_args!("{RETRIEVED}[{i}]"), chunk);
        let place = chunk.value.get("c_idx").and_then(serde_json::Value::as_u64);
        let place = place.ok_or_else(|| chunk.error("field `c_idx` is no number of a chunk"))?;
        chunks.push((place, chunk.text("content")?.to_owned()));
    }
    if chunks.is_empty() {
        return Err(record.error(format!("field `{RETRIEVED}` is empty")));
    }
    chunks.sort_by_key(|(place, _)| *place);
    let numbered =
        chunks.iter().enumerate().map(|(i, (_, text))| format!("Retrieved chunk {}: {text}", i + 1));
    Ok(Some(numbered.collect::<Vec<_>>().join("\n\n")))
}

/// Every field is stripped, as the official script does.
fn fill(template: &Template, style: &str, example: &Example, cot: &str, tokens: usize) -> Result<Prompt> {
    let field = |name: &str| {
        let text = example.meta.get(name).and_then(|v| v.as_str());
        text.map(python_trim).ok_or_else(|| {
            Error::bad_request(format!(
                "sample `{}`: `meta.{name}` is missing, which official prompts need",
                example.id
            ))
        })
    };
    let [a, b, c, d] = CHOICES;
    let values = [field("question")?, field(a)?, field(b)?, field(c)?, field(d)?, cot];
    let values: Vec<_> = MARKS.into_iter().zip(values).collect();
    Ok(template.prompt(style, python_trim(&example.context), &values, tokens))
}
