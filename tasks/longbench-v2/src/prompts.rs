//! The official prompts: `0shot.txt` and its variants.
//!
//! The retrieval variant is not among them: its chunks are chosen by a backend, not by a task.

use e2llm_plugin::official::{OFFICIAL, Template, Wording};
use e2llm_plugin::text::python_trim;
use e2llm_plugin::{Error, Example, Prompt, Result, Source};

use crate::{CHOICES, MAX_NEW_TOKENS};

/// Reasoning first, the answer in a second turn.
pub(crate) const COT: &str = "official-cot";
/// The question without the text.
const NO_CONTEXT: &str = "official-no-context";

/// The styles besides our own.
pub(crate) const STYLES: [&str; 3] = [OFFICIAL, COT, NO_CONTEXT];

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
