//! The form of a declared task's TOML file. Its JSON schema is `configs/tasks/task.schema.json`.

use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;
use toml::Spanned;

/// A benchmark in a file.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskSpec {
    /// What it is, and what is reported of it.
    pub task: About,
    /// The records.
    pub source: SourceSpec,
    /// Which fields of a record are what.
    pub fields: Fields,
    /// How it is asked.
    pub prompt: PromptSpec,
    /// How the answer is read out of a response.
    #[serde(default)]
    pub answer: AnswerSpec,
}

/// What a task is.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// Its name: lower-case letters, digits and hyphens.
    #[schemars(with = "String")]
    pub id: Spanned<String>,
    /// To be changed with everything that can move a score.
    pub version: String,
    /// One or two sentences.
    pub description: String,
    /// Licence of the data.
    #[serde(default)]
    pub licence: String,
    /// Paper or page to cite.
    #[serde(default)]
    pub citation: String,
    /// Splits it has.
    #[serde(default = "test_only")]
    pub splits: Vec<String>,
    /// The one taken where none is asked for; the first where absent.
    pub default_split: Option<String>,
    /// Ids of the metrics to report.
    #[schemars(with = "Vec<String>")]
    pub metrics: Vec<Spanned<String>>,
    /// The one to rank by; the first where absent.
    #[schemars(with = "Option<String>")]
    pub primary_metric: Option<Spanned<String>>,
    /// Keys of `fields.meta` by which scores are also reported.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub slices: Vec<Spanned<String>>,
}

fn test_only() -> Vec<String> {
    vec!["test".into()]
}

/// Where records come from.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SourceSpec {
    /// File names in the task's data folder, the first that exists is read (also as .zst or .gz); `{split}` stands
    /// for the split.
    #[schemars(with = "Vec<String>")]
    pub files: Spanned<Vec<String>>,
    /// The data folder where no `--data` names one, relative to this file.
    pub folder: Option<String>,
    /// Form of the files; by their names where absent.
    pub format: Option<Format>,
    /// What separates the columns of a CSV file: one character.
    #[schemars(with = "Option<String>")]
    pub delimiter: Option<Spanned<String>>,
    /// The path of a list in each record; every item of it is a sample of its own, called `item` in paths and in
    /// the instruction.
    pub each: Option<String>,
}

/// Forms of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One JSON object a line.
    Jsonl,
    /// One JSON array of objects.
    Json,
    /// Columns with a line of names first.
    Csv,
    /// Columns in row groups; never inside .zst or .gz.
    Parquet,
}

/// Paths of values in a record, e.g. `answer`, `meta.level`, `answers.0`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fields {
    /// A unique name; the record's place in its file where absent.
    pub id: Option<String>,
    /// The long text.
    pub context: String,
    /// The right answer or a list of them; of several paths, all that a record has.
    #[schemars(with = "Vec<String>")]
    pub references: Spanned<Vec<String>>,
    /// Of multiple choice: the list of options. Letters they begin with (`A. `, `(A) `) are taken off.
    pub options: Option<String>,
    /// Of multiple choice: what the reference is.
    pub gold: Option<Gold>,
    /// The document, so that its questions count as what they are: not independent. The context itself where absent.
    pub group: Option<String>,
    /// Other values to keep, by the name they get.
    #[serde(default)]
    pub meta: BTreeMap<String, String>,
}

/// What the reference of a multiple-choice record is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Gold {
    /// A letter, or the text of an option.
    #[default]
    LetterOrText,
    /// The option's number, the first being 0.
    NumberFrom0,
    /// The option's number, the first being 1.
    NumberFrom1,
}

/// How a record is asked.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PromptSpec {
    /// What is asked of the context: a minijinja template over the record's fields. Multiple choice also has `options`
    /// and `lettered_options`, lines that begin with `(A)`, `(B)`, ...
    #[schemars(with = "String")]
    pub instruction: Spanned<String>,
    /// The whole prompt: text with `{{ context }}` and `{{ instruction }}`, each once.
    #[serde(default = "context_first")]
    #[schemars(with = "String")]
    pub template: Spanned<String>,
    /// Put after the chat template: the answer is made to begin with it.
    #[serde(default)]
    pub answer_prefix: String,
    /// Generation ends before the first of these.
    #[serde(default)]
    pub stop: Vec<String>,
    /// Longest answer, in tokens.
    #[schemars(with = "usize")]
    pub max_new_tokens: Spanned<usize>,
    /// Whether it is a user message in the model's chat template, or raw text.
    #[serde(default = "yes")]
    pub chat: bool,
    /// A name for this wording, in every result.
    #[serde(default = "declared")]
    pub style: String,
}

fn context_first() -> Spanned<String> {
    Spanned::new(0..0, "{{ context }}\n\n{{ instruction }}".into())
}

fn yes() -> bool {
    true
}

fn declared() -> String {
    "declared".into()
}

/// How an answer is read.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AnswerSpec {
    /// The way.
    #[serde(default)]
    #[schemars(with = "Extract")]
    pub extract: Option<Spanned<Extract>>,
    /// For `regex`: its first group, or the whole match where it has none, is the answer.
    #[schemars(with = "Option<String>")]
    pub pattern: Option<Spanned<String>>,
    /// Choose the most likely of the options instead of generating.
    #[serde(default)]
    pub choose: bool,
}

/// Ways to read an answer out of a response.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Extract {
    /// All of it, without white space at its ends.
    #[default]
    Trim,
    /// Its first line that is not empty.
    FirstLine,
    /// The letter of an option, by the strict rules used for QuALITY.
    Letter,
    /// What `pattern` finds first; nothing where it finds nothing.
    Regex,
}
