//! The benchmark side: [`Task`] and what it hands over.

use crate::official::{PROMPT, Wording, fill};
use crate::{Error, Host, Result, Source};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A stream of examples.
pub type Examples = Box<dyn Iterator<Item = Result<Example>> + Send>;

/// One question about one long text.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Example {
    /// Unique within the task and split, and the same in every run.
    pub id: String,
    /// The long text.
    pub context: String,
    /// What is asked of it, choices included.
    pub instruction: String,
    /// Right answers, one or more; any of them counts.
    pub references: Vec<String>,
    /// The document: examples of one group are not independent (clustered intervals).
    pub group: String,
    /// Anything else: difficulty, depth, options, ...
    #[serde(default)]
    pub meta: Map<String, Value>,
}

/// A prompt whose parts are still apart: the backend decides what becomes of the context.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Prompt {
    /// Which wording it is, e.g. `e2llm` (ours) or `official`.
    pub style: String,
    /// The long text; empty where a turn has none.
    pub context: String,
    /// What is asked; understandable without the template.
    pub instruction: String,
    /// Text with `{context}` and `{instruction}`, each replaced once, for methods that read plain text.
    pub template: String,
    /// SHA-256 of the official template, of which `template` and `instruction` are made; empty for other wordings.
    #[serde(default)]
    pub template_sha256: String,
    /// Continuations to choose from by log-likelihood; empty where the answer is generated.
    #[serde(default)]
    pub choices: Vec<String>,
    /// Put after the chat template: the answer is made to begin with it.
    #[serde(default)]
    pub answer_prefix: String,
    /// Generation ends before the first of these.
    #[serde(default)]
    pub stop: Vec<String>,
    /// Longest answer, in tokens of the decoder.
    pub max_new_tokens: usize,
    /// Whether the text is a user message in the model's chat template, or raw.
    pub chat: bool,
}

impl Prompt {
    /// A chat prompt in this project's own wording (`prompt@e2llm`).
    pub fn new(example: &Example, template: &str, max_new_tokens: usize) -> Self {
        Self {
            style: "e2llm".into(),
            context: example.context.clone(),
            instruction: example.instruction.clone(),
            template: template.into(),
            max_new_tokens,
            chat: true,
            ..Self::default()
        }
    }

    /// Context and instruction in the template, as a method that reads plain text sees them; without the answer's
    /// prefix.
    pub fn render(&self) -> String {
        fill(&self.template, &[("{context}", &self.context), ("{instruction}", &self.instruction)])
    }
}

/// What was read out of a response.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Prediction {
    /// The answer; empty where none was found.
    pub text: String,
    /// The rule that found it, e.g. `letter-in-brackets`; empty where none did.
    #[serde(default)]
    pub rule: String,
}

/// How a task is answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OutputKind {
    /// By generated text.
    #[default]
    Generate,
    /// By the most likely of the prompt's choices.
    Choose,
    /// By the choice whose log-likelihood, divided by its number of characters, is the greatest.
    ChooseNormalised,
}

impl OutputKind {
    /// Whether one of the prompt's choices is the answer.
    pub fn is_choice(self) -> bool {
        self != Self::Generate
    }
}

/// A file format a task reads.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FileFormat {
    /// File name inside the task's data folder; `{split}` stands for the split's name.
    pub pattern: String,
    /// What it is.
    pub description: String,
}

/// An option a task takes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OptionInfo {
    /// Its key.
    pub name: String,
    /// Value where none is given.
    pub default: String,
    /// One line of help.
    pub help: String,
}

impl OptionInfo {
    /// An option.
    pub fn new(name: &str, default: &str, help: impl Into<String>) -> Self {
        Self { name: name.into(), default: default.into(), help: help.into() }
    }
}

/// What a task says of itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskInfo {
    /// Name, as exported.
    pub id: String,
    /// Grows with every change that can move a score.
    pub version: String,
    /// One or two sentences.
    pub description: String,
    /// Licence of the benchmark's data.
    pub licence: String,
    /// Paper or page to cite.
    pub citation: String,
    /// Splits the benchmark has.
    pub splits: Vec<String>,
    /// The split taken where none is asked for.
    pub default_split: String,
    /// Ids of the metrics to report.
    pub metrics: Vec<String>,
    /// The one of them to rank by.
    pub primary_metric: String,
    /// Longest answer, in tokens.
    pub max_new_tokens: usize,
    /// How it is answered.
    pub output: OutputKind,
    /// Official files it reads, besides the plain JSONL.
    pub formats: Vec<FileFormat>,
    /// Options it takes.
    pub options: Vec<OptionInfo>,
    /// Keys of an example's `meta` by which scores are also reported.
    pub slices: Vec<String>,
}

/// Options given by the user, by name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct TaskOptions(pub Map<String, Value>);

impl TaskOptions {
    /// Fails on an option that `known` does not list. The standard option `prompt` may be our own wording
    /// everywhere; a task that lists it reads it with [`Wording`].
    ///
    /// # Errors
    /// [`crate::ErrorCode::BadRequest`] naming the option and those that exist.
    pub fn only(&self, known: &[OptionInfo]) -> Result<()> {
        for key in self.0.keys() {
            if key == PROMPT && !known.iter().any(|o| o.name == PROMPT) {
                Wording::read(self, &[])?;
                continue;
            }
            if !known.iter().any(|o| o.name == *key) {
                let names: Vec<_> = known.iter().map(|o| o.name.as_str()).collect();
                let help = if names.is_empty() {
                    "this task takes no options".to_owned()
                } else {
                    format!("its options are: {}", names.join(", "))
                };
                return Err(Error::bad_request(format!("unknown task option `{key}`")).with_help(help));
            }
        }
        Ok(())
    }

    /// The text of an option, if given; numbers and booleans as they are written.
    pub fn text(&self, name: &str) -> Option<String> {
        self.0.get(name).map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
    }

    /// An option read as `T`, if given.
    ///
    /// # Errors
    /// A value that cannot be read as `T`.
    pub fn parse<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>> {
        let Some(text) = self.text(name) else { return Ok(None) };
        match text.parse() {
            Ok(value) => Ok(Some(value)),
            Err(_) => {
                Err(Error::bad_request(format!("task option `{name}`: `{text}` is no {}", kind_of::<T>())))
            }
        }
    }

    /// An option read as a list, given as a JSON array or separated by commas.
    ///
    /// # Errors
    /// An item that cannot be read as `T`.
    pub fn list<T: std::str::FromStr>(&self, name: &str) -> Result<Option<Vec<T>>> {
        let items: Vec<String> = match self.0.get(name) {
            None => return Ok(None),
            Some(Value::Array(a)) => {
                a.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect()
            }
            Some(_) => {
                let text = self.text(name).unwrap_or_default();
                text.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect()
            }
        };
        let read = |s: &String| {
            s.parse().map_err(|_| {
                Error::bad_request(format!("task option `{name}`: `{s}` is no {}", kind_of::<T>()))
            })
        };
        items.iter().map(read).collect::<Result<_>>().map(Some)
    }
}

/// What a value has to be, in words.
fn kind_of<T>() -> &'static str {
    match std::any::type_name::<T>() {
        "u16" | "u32" | "u64" | "usize" => "whole number from 0 up",
        "f32" | "f64" => "number",
        "bool" => "`true` or `false`",
        other => other,
    }
}

/// A benchmark. Calls may come from several threads at once.
pub trait Task: Send + Sync {
    /// What it is. Called often: cheap, and always the same.
    fn info(&self) -> TaskInfo;

    /// Takes the user's options and the host's services, once, before anything else.
    ///
    /// # Errors
    /// An option that is unknown or unusable.
    fn configure(&mut self, options: &TaskOptions, host: Host) -> Result<()> {
        let _ = host;
        options.only(&self.info().options)
    }

    /// Streams the examples of a source, in an order that is the same in every run.
    ///
    /// # Errors
    /// Missing or unreadable files. A broken record is an error item of the stream, with file and line.
    fn open(&self, source: &Source) -> Result<Examples>;

    /// The prompt of an example.
    ///
    /// # Errors
    /// An example that has no prompt in the style asked for.
    fn prompt(&self, example: &Example) -> Result<Prompt>;

    /// The prompt of the next turn, if there is one, after the response to turn `turn` (from 1). `example.context` is
    /// empty.
    ///
    /// # Errors
    /// As [`Task::prompt`].
    fn next_turn(&self, example: &Example, response: &str, turn: u32) -> Result<Option<Prompt>> {
        let _ = (example, response, turn);
        Ok(None)
    }

    /// Reads the answer out of the last response. `example.context` is empty.
    fn extract(&self, example: &Example, response: &str) -> Prediction {
        let _ = example;
        Prediction { text: response.trim().to_owned(), rule: "trimmed".into() }
    }
}
