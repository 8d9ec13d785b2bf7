//! SQuALITY: summaries of stories of some 5,000 words, each in answer to a question and written by four people (Wang et
//! al., EMNLP 2022).

use e2llm_plugin::record::Record;
use e2llm_plugin::source::{PLAIN, examples};
use e2llm_plugin::{Example, Examples, FileFormat, Prompt, Result, Source, Task, TaskInfo};
use serde_json::{Map, Value};

const SAMPLE: &str = include_str!("../sample/sample.jsonl");

/// The plain format, and the layout of the official repository.
const FILES: [&str; 3] = [PLAIN, "data/v1-3/txt/{split}.jsonl", "v1-3/txt/{split}.jsonl"];

const TEMPLATE: &str = "Read this story; a question about it follows.\n\n{context}\n\n{instruction}";

const MAX_NEW_TOKENS: usize = 512;

/// The task.
#[derive(Debug, Default)]
pub struct Squality;

e2llm_plugin::export_task! {
    Squality, id: "squality", description: "Summarises a story in answer to a question"
}

impl Task for Squality {
    fn info(&self) -> TaskInfo {
        TaskInfo {
            id: "squality".into(),
            version: "1".into(),
            description:
                "Summarises a short story, or what happens in it to somebody, in answer to a question; four \
                          people's answers are the references"
                    .into(),
            licence: "CC BY 4.0; the stories are in the public domain in the US (Project Gutenberg)".into(),
            citation:
                "Wang et al., SQuALITY: Building a Long-Document Summarization Dataset the Hard Way, EMNLP \
                       2022, https://arxiv.org/abs/2205.11465"
                    .into(),
            splits: ["train", "validation", "test"].map(Into::into).into(),
            default_split: "test".into(),
            metrics: ["rouge_gmean", "rouge1", "rouge2", "rougeL", "rougeLsum@sentences"]
                .map(Into::into)
                .into(),
            primary_metric: "rouge_gmean".into(),
            max_new_tokens: MAX_NEW_TOKENS,
            formats: FILES[1..]
                .iter()
                .map(|pattern| FileFormat {
                    pattern: (*pattern).into(),
                    description: "the official files as plain text, one story a line".into(),
                })
                .collect(),
            slices: vec!["question_number".into()],
            ..TaskInfo::default()
        }
    }

    fn open(&self, source: &Source) -> Result<Examples> {
        Ok(examples(source.records(&FILES, SAMPLE)?, |record| {
            if record.is_plain() { Ok(vec![record.plain(&["passage_id"])?]) } else { story(record) }
        }))
    }

    fn prompt(&self, example: &Example) -> Result<Prompt> {
        let mut prompt = Prompt::new(example, TEMPLATE, MAX_NEW_TOKENS);
        prompt.instruction = format!(
            "Answer the question from the story in one or two paragraphs that somebody who has not read it can \
             follow.\n\nQuestion: {}",
            example.instruction
        );
        Ok(prompt)
    }
}

/// The questions about a story of the official files; what counts is the best of their answers.
fn story(record: &Record) -> Result<Vec<Example>> {
    let context = record.text("document")?;
    let metadata = record.value.get("metadata").unwrap_or(&Value::Null);
    let passage = record.part("metadata", metadata).text_or_number("passage_id")?;
    let mut found = Vec::new();
    for (i, question) in record.list("questions")?.iter().enumerate() {
        let question = record.part(format_args!("questions[{i}]"), question);
        let number = question.text_or_number("question_number")?;
        let mut references = Vec::new();
        for (n, response) in question.list("responses")?.iter().enumerate() {
            let response = question.part(format_args!("responses[{n}]"), response);
            references.push(response.text("response_text")?.to_owned());
        }
        if references.is_empty() {
            return Err(
                question.error("field `responses` is empty: a sample without a reference cannot be scored")
            );
        }
        let meta =
            [("passage_id", Value::from(passage.as_str())), ("question_number", number.as_str().into())];
        found.push(Example {
            id: format!("{passage}-{number}"),
            context: context.to_owned(),
            instruction: question.text("question_text")?.to_owned(),
            references,
            group: passage.clone(),
            meta: Map::from_iter(meta.map(|(k, v)| (k.to_owned(), v))),
        });
    }
    Ok(found)
}
