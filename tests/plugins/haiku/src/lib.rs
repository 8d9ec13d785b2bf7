//! Haiku: one-word questions about small collections of verse.

use e2llm_plugin::source::{PLAIN, examples};
use e2llm_plugin::{Example, Examples, Prompt, Result, Source, Task, TaskInfo};

const SAMPLE: &str = include_str!("../sample.jsonl");

/// The task.
#[derive(Debug, Default)]
pub struct Haiku;

e2llm_plugin::export_task! { Haiku, id: "haiku", description: "One-word questions about verse" }

impl Task for Haiku {
    fn info(&self) -> TaskInfo {
        TaskInfo {
            id: "haiku".into(),
            version: "1".into(),
            description: "One-word questions about small collections of verse".into(),
            licence: "MIT OR Apache-2.0".into(),
            splits: vec!["test".into()],
            default_split: "test".into(),
            metrics: vec!["em_squad".into(), "f1_squad".into()],
            primary_metric: "em_squad".into(),
            max_new_tokens: 8,
            slices: vec!["season".into()],
            ..TaskInfo::default()
        }
    }

    fn open(&self, source: &Source) -> Result<Examples> {
        Ok(examples(source.records(&[PLAIN], SAMPLE)?, |record| Ok(vec![record.plain(&["collection"])?])))
    }

    fn prompt(&self, example: &Example) -> Result<Prompt> {
        Ok(Prompt::new(example, "{context}\n\n{instruction} Answer with one word.", 8))
    }
}
