//! LongBench v2: four-choice questions about texts of 8,000 to 2 million words (Bai et al., 2024).

mod prompts;

use e2llm_plugin::choice;
use e2llm_plugin::official::{Loaded, Wording};
use e2llm_plugin::record::{Record, context_group};
use e2llm_plugin::source::{PLAIN, examples};
use e2llm_plugin::text::python_trim;
use e2llm_plugin::{
    Error, Example, Examples, FileFormat, Host, OptionInfo, Prediction, Prompt, Result, Source, Task,
    TaskInfo, TaskOptions,
};
use serde_json::Map;

use prompts::Templates;

const SAMPLE: &str = include_str!("../sample/sample.jsonl");

const TEMPLATE: &str = "Read this text; a question about it follows.\n\n{context}\n\n{instruction}";

const MAX_NEW_TOKENS: usize = 128;

/// By which a metric knows how to read a response.
const PROTOCOL: &str = "longbench-v2";

const CHOICES: [&str; 4] = ["choice_A", "choice_B", "choice_C", "choice_D"];

/// The option that says how many of a record's retrieved chunks are read.
const CHUNKS: &str = "chunks";

/// The task.
#[derive(Debug, Default)]
pub struct LongBenchV2 {
    wording: Wording,
    /// Retrieved chunks in a prompt; all where absent.
    chunks: Option<usize>,
    templates: Loaded<Templates>,
}

e2llm_plugin::export_task! {
    LongBenchV2, id: "longbench-v2", description: "Answers four-choice questions about very long texts"
}

impl Task for LongBenchV2 {
    fn info(&self) -> TaskInfo {
        TaskInfo {
            id: "longbench-v2".into(),
            version: "1".into(),
            description:
                "Answers hard four-choice questions about documents, dialogues, code and tables of 8,000 \
                          to 2 million words"
                    .into(),
            licence: "Apache-2.0".into(),
            citation: "Bai et al., LongBench v2: Towards Deeper Understanding and Reasoning on Realistic \
                       Long-context Multitasks, 2024, https://arxiv.org/abs/2412.15204"
                .into(),
            splits: vec!["test".into()],
            default_split: "test".into(),
            metrics: ["accuracy@official", "accuracy@lenient", "accuracy@compensated", "n_null"]
                .map(Into::into)
                .into(),
            primary_metric: "accuracy@official".into(),
            max_new_tokens: MAX_NEW_TOKENS,
            formats: [
                ("data.json", "the official file, one array of all questions (split `test`)"),
                ("prompts/*.txt", "the official prompts, for --prompt official"),
            ]
            .map(|(pattern, about)| FileFormat { pattern: pattern.into(), description: about.into() })
            .into(),
            options: vec![
                Wording::option(&prompts::STYLES),
                Wording::templates_option(),
                OptionInfo {
                    name: CHUNKS.into(),
                    default: "all".into(),
                    help: format!(
                        "prompt {}: how many of a record's `{}` are read",
                        prompts::RAG,
                        prompts::RETRIEVED
                    ),
                },
            ],
            slices: ["difficulty", "length", "domain"].map(Into::into).into(),
            ..TaskInfo::default()
        }
    }

    fn configure(&mut self, options: &TaskOptions, _: Host) -> Result<()> {
        options.only(&self.info().options)?;
        self.wording = Wording::read(options, &prompts::STYLES)?;
        self.chunks = options.parse(CHUNKS)?;
        if self.chunks.is_some() && !self.wording.is(prompts::RAG) {
            return Err(Error::bad_request(format!(
                "task option `{CHUNKS}` belongs to another style of prompts"
            ))
            .with_help(format!("it is used with --prompt {}", prompts::RAG)));
        }
        if self.chunks == Some(0) {
            return Err(Error::option(CHUNKS, "0 is less than one chunk"));
        }
        Ok(())
    }

    fn open(&self, source: &Source) -> Result<Examples> {
        if let Some(templates) = Templates::read(&self.wording, source)? {
            self.templates.set(templates);
        }
        let files: &[&str] = match source.split.as_str() {
            "test" => &[PLAIN, "data.json"],
            _ => &[PLAIN],
        };
        let chunks = self.wording.is(prompts::RAG).then(|| self.chunks.unwrap_or(usize::MAX));
        Ok(examples(source.records(files, SAMPLE)?, move |record| {
            let example = if record.is_plain() { record.plain(&["document_id"]) } else { official(record) };
            let mut example = choice::complete(record, example?, PROTOCOL)?;
            if let Some(text) = chunks.map(|most| prompts::retrieved(record, most)).transpose()?.flatten() {
                example.context = text; // but the group of the whole text
            }
            Ok(vec![example])
        }))
    }

    fn prompt(&self, example: &Example) -> Result<Prompt> {
        if prompts::STYLES.contains(&self.wording.style()) {
            return self.templates.get()?.prompt(self.wording.style(), example);
        }
        let mut prompt = Prompt::new(example, TEMPLATE, MAX_NEW_TOKENS);
        prompt.instruction = format!(
            "Choose the right answer to a question about the text.\n\n{}\n\nReply with one sentence of the form \
             \"The correct answer is (X)\", where X is the letter of your choice.",
            example.instruction
        );
        Ok(prompt)
    }

    /// The second turn of `official-cot`: the answer from the reasoning, without the text.
    fn next_turn(&self, example: &Example, response: &str, turn: u32) -> Result<Option<Prompt>> {
        if !self.wording.is(prompts::COT) || turn > 1 {
            return Ok(None);
        }
        self.templates.get()?.answer(self.wording.style(), example, response).map(Some)
    }

    /// The official reading: `The correct answer is (X)`, else `The correct answer is X`, else nothing.
    fn extract(&self, _: &Example, response: &str) -> Prediction {
        choice::longbench_v2(response).into()
    }
}

/// A record of `data.json`; every text is stripped, as the official script does.
fn official(record: &Record) -> Result<Example> {
    let text = |field| record.text(field).map(python_trim);
    let context = text("context")?;
    let options = CHOICES.map(text).into_iter().collect::<Result<Vec<_>>>()?;
    let mut meta = Map::new();
    for field in ["_id", "domain", "sub_domain", "difficulty", "length", "question", "answer"] {
        meta.insert(field.into(), text(field)?.into());
    }
    meta.extend(CHOICES.iter().zip(&options).map(|(field, option)| ((*field).to_owned(), (*option).into())));
    Ok(Example {
        id: text("_id")?.to_owned(),
        context: context.to_owned(),
        instruction: choice::question(text("question")?, &options),
        references: vec![text("answer")?.to_owned()],
        group: context_group(context),
        meta,
    })
}
