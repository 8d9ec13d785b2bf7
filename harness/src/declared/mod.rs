//! Declared tasks: a TOML file is a benchmark. It names the files, says which field of a record is what, how it is
//! asked and how the answer is read and scored; from there on it is a task like those of plugins, served through the
//! same client.
//!
//! A file is used by its path (`--tasks FILE.toml`), or by its id where it is in a plugin folder. Files of records
//! are JSON Lines, a JSON array or CSV (also .zst, .gz), or Parquet.

mod parquet;
mod records;
mod spec;
mod task;
#[cfg(test)]
mod tests;

pub use spec::TaskSpec;

use crate::config::parse_toml;
use crate::failure::{Failure, Result, did_you_mean};
use crate::plugins::Index;
use e2llm_plugin::client::TaskClient;
use minijinja::{Environment, Value};
use regex::Regex;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use task::{Compiled, DeclaredTask, INSTRUCTION, environment};

/// A declared task that was read and checked.
#[derive(Debug, Clone)]
pub struct Declared {
    /// Its file.
    pub path: PathBuf,
    /// Its id.
    pub id: String,
    /// Its version.
    pub version: String,
    /// One or two sentences.
    pub description: String,
    /// Its data folder, where the file names one.
    pub folder: Option<PathBuf>,
    text: Arc<str>,
}

/// Whether a file in a plugin folder is meant to be a declared task: it has a table `[task]`.
pub fn is_declared(path: &Path) -> bool {
    let heading = |line: &str| line.starts_with("[task]");
    path.extension().is_some_and(|e| e == "toml")
        && std::fs::read_to_string(path).is_ok_and(|text| text.lines().any(heading))
}

impl Declared {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// A file that cannot be read, or a mistake in it, with line and column.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Failure::usage(format!("cannot read task file {}: {e}", path.display())))?;
        let name = path.display().to_string();
        let spec = compile(&name, &text)?.spec;
        let beside = path.parent().unwrap_or(Path::new("."));
        Ok(Self {
            path: path.to_owned(),
            id: spec.task.id.into_inner(),
            version: spec.task.version,
            description: spec.task.description,
            folder: spec.source.folder.map(|folder| beside.join(folder)),
            text: text.into(),
        })
    }

    /// The task, as plugins' tasks are used.
    ///
    /// # Errors
    /// None: the file was checked.
    pub fn client(&self) -> Result<TaskClient> {
        let compiled = compile(&self.path.display().to_string(), &self.text)?;
        Ok(TaskClient::host(Arc::new(DeclaredTask::new(compiled))))
    }

    /// Fails where a metric of the file is none, pointing at it.
    ///
    /// # Errors
    /// An unknown metric.
    pub fn check_metrics(&self, index: &Index) -> Result<()> {
        let name = self.path.display().to_string();
        let spec: TaskSpec = parse_toml("task file", &name, &self.text)?;
        for metric in &spec.task.metrics {
            if let Err(failure) = index.metric_of(metric.get_ref()) {
                return Err(failure.within(format!("task file {name}")).at(&name, &self.text, metric.span()));
            }
        }
        Ok(())
    }
}

/// Reads a file's text and checks what its types cannot say.
fn compile(name: &str, text: &str) -> Result<Compiled> {
    let spec: TaskSpec = parse_toml("task file", name, text)?;
    let wrong = |span: Range<usize>, message: String| -> Box<Failure> {
        Failure::usage(format!("task file {name}: {message}")).at(name, text, span)
    };
    let id = &spec.task.id;
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if id.get_ref().is_empty() || !id.get_ref().chars().all(plain) || id.get_ref() == "all" {
        let message = format!("`{}` cannot be a task's id", id.get_ref());
        return Err(wrong(id.span(), message).help("lower-case letters, digits and hyphens, e.g. `my-task`"));
    }
    let ids: Vec<&str> = spec.task.metrics.iter().map(|m| m.get_ref().as_str()).collect();
    if ids.is_empty() {
        return Err(wrong(id.span(), "task.metrics is empty".into()));
    }
    if let Some(primary) = &spec.task.primary_metric
        && !ids.contains(&primary.get_ref().as_str())
    {
        let message = format!("primary_metric `{}` is not among the metrics", primary.get_ref());
        return Err(wrong(primary.span(), message).help(did_you_mean(primary.get_ref(), ids)));
    }
    for slice in &spec.task.slices {
        if !spec.fields.meta.contains_key(slice.get_ref()) {
            let help = did_you_mean(slice.get_ref(), spec.fields.meta.keys().map(String::as_str));
            let message = format!("slice `{}` is not among fields.meta", slice.get_ref());
            return Err(wrong(slice.span(), message).help(help));
        }
    }
    if spec.source.files.get_ref().is_empty() {
        return Err(wrong(spec.source.files.span(), "source.files is empty".into()));
    }
    if spec.fields.references.get_ref().is_empty() {
        return Err(wrong(spec.fields.references.span(), "fields.references is empty".into()));
    }
    if let Some(delimiter) = spec.source.delimiter.as_ref().filter(|d| d.get_ref().len() != 1) {
        return Err(wrong(delimiter.span(), "delimiter must be one ASCII character".into()));
    }
    if *spec.prompt.max_new_tokens.get_ref() == 0 {
        return Err(wrong(spec.prompt.max_new_tokens.span(), "max_new_tokens must be at least 1".into()));
    }
    let template = whole_template(&spec).map_err(|m| wrong(spec.prompt.template.span(), m))?;
    let instruction = &spec.prompt.instruction;
    let templates = with_instruction(instruction.get_ref()).map_err(|e| {
        let place = line_in(text, instruction.span(), e.line());
        wrong(place, format!("{INSTRUCTION}: {e:#}"))
    })?;
    let pattern = pattern(&spec).map_err(|(span, m)| wrong(span.unwrap_or_else(|| id.span()), m))?;
    if spec.fields.options.is_none() && spec.answer.choose {
        return Err(wrong(id.span(), "answer.choose needs fields.options to choose from".into()));
    }
    Ok(Compiled { spec, templates, template, pattern })
}

/// An environment with the instruction's template.
fn with_instruction(source: &str) -> std::result::Result<Environment<'static>, minijinja::Error> {
    let mut templates = environment()?;
    templates.add_template_owned(INSTRUCTION, source.to_owned())?;
    Ok(templates)
}

/// The place of a line (from 1) of a text that stands in the file at `span`.
fn line_in(text: &str, span: Range<usize>, line: Option<usize>) -> Range<usize> {
    let Some(line) = line else { return span };
    // a newline right after the opening quotes is no part of the text
    let opens_on_its_own =
        text[span.clone()].starts_with("\"\"\"\n") || text[span.clone()].starts_with("'''\n");
    let before = if opens_on_its_own { line } else { line.saturating_sub(1) };
    let mut start = span.start;
    for _ in 0..before {
        match text[start..span.end].find('\n') {
            Some(at) => start += at + 1,
            None => return span,
        }
    }
    let length = text[start..span.end].find('\n').unwrap_or(span.end - start);
    start..start + length
}

/// The whole prompt with `{context}` and `{instruction}`.
fn whole_template(spec: &TaskSpec) -> std::result::Result<String, String> {
    let parts = [("context", "{context}"), ("instruction", "{instruction}")];
    let made = environment()
        .and_then(|e| e.render_str(spec.prompt.template.get_ref(), Value::from_pairs(parts)))
        .map_err(|e| format!("prompt.template: {e}; it knows `context` and `instruction` only"))?;
    for (name, placeholder) in parts {
        let n = made.matches(placeholder).count();
        if n != 1 {
            return Err(format!("prompt.template has {{{{ {name} }}}} {n} times, it must be there once"));
        }
    }
    Ok(made)
}

type Place = Option<Range<usize>>;

fn pattern(spec: &TaskSpec) -> std::result::Result<Option<Regex>, (Place, String)> {
    let extract = spec.answer.extract.as_ref();
    let is_regex = extract.is_some_and(|e| *e.get_ref() == spec::Extract::Regex);
    match &spec.answer.pattern {
        None if is_regex => {
            Err((extract.map(toml::Spanned::span), "extract = \"regex\" needs a `pattern`".into()))
        }
        None => Ok(None),
        Some(pattern) if !is_regex => {
            Err((Some(pattern.span()), "`pattern` is used with extract = \"regex\" only".into()))
        }
        Some(pattern) => match Regex::new(pattern.get_ref()) {
            Ok(regex) => Ok(Some(regex)),
            Err(e) => Err((Some(pattern.span()), format!("pattern: {e}"))),
        },
    }
}
