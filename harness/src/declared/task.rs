//! A declared task as a [`Task`].

use super::records::{at, read, samples, text, texts};
use super::spec::{Extract, Gold, TaskSpec};
use e2llm_plugin::record::{Record, context_group};
use e2llm_plugin::source::examples;
use e2llm_plugin::{
    Error, Example, Examples, FileFormat, OutputKind, Prediction, Prompt, Result, Source, Task, TaskInfo,
    choice,
};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior};
use regex::Regex;
use serde_json::Value;
use std::sync::{Arc, LazyLock};

/// By which the metric `choice` reads a prediction that is a letter already.
const PROTOCOL: &str = "letter";

/// A checked file.
#[derive(Debug)]
pub(super) struct DeclaredTask {
    spec: Arc<Compiled>,
}

/// What is made of a file once.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) spec: TaskSpec,
    /// With `instruction` as its only template.
    pub(super) templates: Environment<'static>,
    /// The whole prompt, with `{context}` and `{instruction}`.
    pub(super) template: String,
    pub(super) pattern: Option<Regex>,
}

/// An environment in which a name that does not exist is an error, not nothing, and a line with a block alone leaves
/// nothing behind.
pub(super) fn environment() -> std::result::Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    Ok(environment)
}

/// The name of the instruction among the templates, as messages show it.
pub(super) const INSTRUCTION: &str = "prompt.instruction";

impl DeclaredTask {
    pub(super) fn new(compiled: Compiled) -> Self {
        Self { spec: Arc::new(compiled) }
    }
}

impl Task for DeclaredTask {
    fn info(&self) -> TaskInfo {
        let spec = &self.spec.spec;
        let about = &spec.task;
        let metrics: Vec<String> = about.metrics.iter().map(|m| m.get_ref().clone()).collect();
        TaskInfo {
            id: about.id.get_ref().clone(),
            version: about.version.clone(),
            description: about.description.clone(),
            licence: about.licence.clone(),
            citation: about.citation.clone(),
            splits: about.splits.clone(),
            default_split: about
                .default_split
                .clone()
                .or_else(|| about.splits.first().cloned())
                .unwrap_or_default(),
            primary_metric: match &about.primary_metric {
                Some(id) => id.get_ref().clone(),
                None => metrics.first().cloned().unwrap_or_default(),
            },
            metrics,
            max_new_tokens: *spec.prompt.max_new_tokens.get_ref(),
            output: if spec.answer.choose { OutputKind::Choose } else { OutputKind::Generate },
            formats: spec
                .source
                .files
                .get_ref()
                .iter()
                .map(|pattern| FileFormat { pattern: pattern.clone(), description: String::new() })
                .collect(),
            slices: about.slices.iter().map(|s| s.get_ref().clone()).collect(),
            ..TaskInfo::default()
        }
    }

    fn open(&self, source: &Source) -> Result<Examples> {
        let spec = &self.spec.spec;
        let patterns: Vec<&str> = spec.source.files.get_ref().iter().map(String::as_str).collect();
        let path = source.locate(&patterns)?;
        let compiled = Arc::clone(&self.spec);
        let mut n = 0;
        Ok(examples(read(&path, spec)?, move |record| {
            let samples = samples(record.clone(), compiled.spec.source.each.as_deref())?;
            let example = |sample: &Record| {
                n += 1;
                compiled.example(sample, n)
            };
            samples.iter().map(example).collect()
        }))
    }

    fn prompt(&self, example: &Example) -> Result<Prompt> {
        let prompt = &self.spec.spec.prompt;
        let choices = if self.spec.spec.answer.choose {
            ('A'..).take(choice::options(example).len()).map(String::from).collect()
        } else {
            Vec::new()
        };
        Ok(Prompt {
            style: prompt.style.clone(),
            context: example.context.clone(),
            instruction: example.instruction.clone(),
            template: self.spec.template.clone(),
            template_sha256: String::new(),
            choices,
            answer_prefix: prompt.answer_prefix.clone(),
            stop: prompt.stop.clone(),
            max_new_tokens: *prompt.max_new_tokens.get_ref(),
            chat: prompt.chat,
        })
    }

    fn extract(&self, example: &Example, response: &str) -> Prediction {
        let found = |text: &str, rule: &str| match text {
            "" => Prediction::default(),
            text => Prediction { text: text.into(), rule: rule.into() },
        };
        match self.spec.spec.answer.extract.as_ref().map(|e| *e.get_ref()).unwrap_or_default() {
            Extract::Trim => found(response.trim(), "trimmed"),
            Extract::FirstLine => found(
                response.lines().map(str::trim).find(|l| !l.is_empty()).unwrap_or_default(),
                "first-line",
            ),
            Extract::Letter => choice::strict(response, &choice::options(example)).into(),
            Extract::Regex => {
                let captures = self.spec.pattern.as_ref().and_then(|p| p.captures(response));
                let group = captures.as_ref().and_then(|c| c.get(1).or_else(|| c.get(0)));
                found(group.map_or("", |m| m.as_str().trim()), "regex")
            }
        }
    }
}

impl Compiled {
    /// The sample of a record, the `n`th of its file.
    fn example(&self, record: &Record, n: u64) -> Result<Example> {
        let fields = &self.spec.fields;
        let context = text(record, "context", &fields.context)?;
        let mut meta = serde_json::Map::new();
        for (name, path) in &fields.meta {
            if let Some(value) = at(&record.value, path) {
                meta.insert(name.clone(), value.clone());
            }
        }
        let mut references = Vec::new();
        for path in fields.references.get_ref().iter().filter(|p| at(&record.value, p).is_some()) {
            references.extend(texts(record, "references", path)?);
        }
        if references.is_empty() {
            let paths = fields.references.get_ref().join("`, `");
            return Err(
                record.error(format!("no reference: `{paths}` (fields.references) is missing or empty"))
            );
        }
        let options = fields.options.as_ref().map(|path| options(record, path)).transpose()?;
        if let Some(options) = &options {
            let gold = fields.gold.unwrap_or_default();
            references = vec![gold_of(record, gold, &references[0], options)?];
            meta.insert("options".into(), Value::from(options.clone()));
        }
        let instruction = self.instruction(record, options.as_deref())?;
        let example = Example {
            id: match &fields.id {
                Some(path) => text(record, "id", path)?,
                None => n.to_string(),
            },
            group: match &fields.group {
                Some(path) => text(record, "group", path)?,
                None => context_group(&context),
            },
            context,
            instruction,
            references,
            meta,
        };
        if options.is_some() { choice::complete(record, example, PROTOCOL) } else { Ok(example) }
    }

    fn instruction(&self, record: &Record, options: Option<&[String]>) -> Result<String> {
        let mut fields = record.value.as_object().cloned().unwrap_or_default();
        if let Some(options) = options {
            fields.insert("options".into(), Value::from(options.to_vec()));
            let lettered = choice::question("", options);
            fields.insert("lettered_options".into(), Value::from(lettered.trim_start_matches('\n')));
        }
        let template = self.templates.get_template(INSTRUCTION).map_err(|e| Error::plugin(e.to_string()))?;
        template
            .render(Serde(&fields))
            .map_err(|e| record.error(format!("{INSTRUCTION} cannot be rendered: {e:#}")))
    }
}

static LETTER: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^\s*\(?([A-Z])[.):]\s*").ok());

/// The options, without letters where they begin with theirs.
fn options(record: &Record, path: &str) -> Result<Vec<String>> {
    let options = texts(record, "options", path)?;
    let own = |(letter, option): (char, &String)| {
        let captures = LETTER.as_ref()?.captures(option)?;
        let rest = captures.get(0)?.end();
        captures.get(1)?.as_str().starts_with(letter).then(|| option[rest..].to_owned())
    };
    let bare: Option<Vec<String>> = ('A'..).zip(&options).map(own).collect();
    Ok(bare.unwrap_or(options))
}

fn gold_of(record: &Record, gold: Gold, reference: &str, options: &[String]) -> Result<String> {
    let first = match gold {
        Gold::LetterOrText => return Ok(reference.to_owned()),
        Gold::NumberFrom0 => 0,
        Gold::NumberFrom1 => 1,
    };
    let number = reference.trim().parse::<usize>().ok().and_then(|n| n.checked_sub(first));
    match number.filter(|n| *n < options.len()).and_then(|n| ('A'..).nth(n)) {
        Some(letter) => Ok(letter.into()),
        None => Err(record.error(format!(
            "the answer `{reference}` is no number of one of {} options, counted from {first}",
            options.len()
        ))),
    }
}
