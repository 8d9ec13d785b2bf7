//! RULER: thirteen synthetic tasks of any length (Hsieh et al., 2024).
//!
//! Generated after RULER's procedure and settings, in wordings of our own: needles in repeated lines, in connected text and
//! among other needles; a chain of variables; common and frequent words; and questions from SQuAD's and HotpotQA's files,
//! which a user supplies. A prompt with its answer prefix, its answer and room for the chat template fills its length as
//! far as whole pieces go. Every sample depends on seed, task, length and number alone.

mod aggregates;
mod documents;
mod fit;
mod generate;
mod made;
mod needles;
mod settings;
mod subtasks;
mod words;

use crate::settings::Settings;
use e2llm_plugin::haystack::{Counter, GENERATED, is_generated};
use e2llm_plugin::text::ruler_clean;
use e2llm_plugin::{
    Error, Example, Examples, FileFormat, Host, Prediction, Prompt, Result, Source, Task, TaskInfo,
    TaskOptions,
};

/// The task.
#[derive(Clone, Default)]
pub struct Ruler {
    settings: Settings,
    host: Host,
    counter: Counter,
}

e2llm_plugin::export_task! {
    Ruler, id: "ruler", description: "RULER: needles, variable chains, word counts and questions, of any length"
}

impl Task for Ruler {
    fn info(&self) -> TaskInfo {
        TaskInfo {
            id: "ruler".into(),
            version: "1".into(),
            description: "Finds needles, follows variables, counts words and answers questions in generated texts of \
                          given lengths"
                .into(),
            licence: "generated text: MIT OR Apache-2.0; files of questions and haystacks: their own".into(),
            citation: "Hsieh et al., RULER: What's the Real Context Size of Your Long-Context Language Models?, 2024, \
                       https://arxiv.org/abs/2404.06654"
                .into(),
            splits: vec![GENERATED.into()],
            default_split: GENERATED.into(),
            metrics: ["ruler_score", "ruler_all", "ruler_part"].map(Into::into).into(),
            primary_metric: "ruler_score".into(),
            max_new_tokens: 128,
            formats: [
                ("squad.json", "SQuAD 2.0's development file, for qa_1"),
                ("hotpotqa.json", "HotpotQA's development file (distractor setting), for qa_2"),
            ]
            .map(|(pattern, about)| FileFormat { pattern: pattern.into(), description: about.into() })
            .into(),
            options: settings::options(),
            slices: ["task", "length"].map(Into::into).into(),
            ..TaskInfo::default()
        }
    }

    fn configure(&mut self, options: &TaskOptions, host: Host) -> Result<()> {
        self.settings = Settings::read(options)?;
        self.host = host;
        self.counter = Counter::of(host);
        Ok(())
    }

    fn open(&self, source: &Source) -> Result<Examples> {
        if is_generated(source) {
            return generate::open(self, source);
        }
        Err(Error::bad_request(format!("RULER is generated; there is no split `{}`", source.split))
            .with_help(
                "take the split `generated`; the task `niah` reads rows that RULER's own scripts made",
            ))
    }

    fn prompt(&self, example: &Example) -> Result<Prompt> {
        let text = |key: &str| example.meta.get(key).and_then(|v| v.as_str()).unwrap_or_default();
        let name = text("task");
        let known = subtasks::subtask(name);
        let known =
            known.ok_or_else(|| Error::bad_request(format!("sample `{}`: no task `{name}`", example.id)))?;
        Ok(made::prompt(example, name, text("answer_prefix"), known.answer_tokens))
    }

    /// RULER's clean-up: control characters count as line ends.
    fn extract(&self, _: &Example, response: &str) -> Prediction {
        Prediction { text: ruler_clean(response), rule: "trimmed".into() }
    }
}

#[cfg(test)]
mod tests;
