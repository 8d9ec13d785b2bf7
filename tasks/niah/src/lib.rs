//! NIAH: needles in a haystack, generated over a grid of lengths and depths.
//!
//! After Kamradt's pressure test (<https://github.com/gkamradt/LLMTest_NeedleInAHaystack>): the text is cut to the
//! length less a buffer, the needle goes where `depth` percent of it end, moved back to the end of a sentence, and
//! is appended at 100. Every sample depends on seed, length, depth and repeat alone. The split `test` of a data
//! folder is read from a file instead: the plain format, or rows of RULER.

mod fit;
mod grid;
mod needle;
mod records;
mod settings;

use crate::settings::Settings;
use e2llm_plugin::haystack::{Counter, GENERATED, is_generated};
use e2llm_plugin::source::{PLAIN, examples};
use e2llm_plugin::text::ruler_clean;
use e2llm_plugin::{
    Error, Example, Examples, FileFormat, Host, Prediction, Prompt, Result, Source, Task, TaskInfo,
    TaskOptions,
};

const TEMPLATE: &str =
    "Read this text. A question about one of its details follows.\n\n{context}\n\n{instruction}";

/// Tokens for one answer of our own needles; RULER's 128 for anything longer.
const ONE_ANSWER: usize = 64;
const MAX_NEW_TOKENS: usize = 128;

/// The task.
#[derive(Clone, Default)]
pub struct Niah {
    settings: Settings,
    host: Host,
    counter: Counter,
}

e2llm_plugin::export_task! {
    Niah, id: "niah", description: "Finds facts hidden in long texts, by length and depth"
}

impl Task for Niah {
    fn info(&self) -> TaskInfo {
        TaskInfo {
            id: "niah".into(),
            version: "1".into(),
            description: "Finds facts hidden at given depths of generated texts of given lengths".into(),
            licence: "generated text: MIT OR Apache-2.0; haystack files and records: their own".into(),
            citation:
                "Kamradt, Needle In A Haystack, 2023, https://github.com/gkamradt/LLMTest_NeedleInAHaystack; \
                       records: Hsieh et al., RULER, 2024, https://arxiv.org/abs/2404.06654"
                    .into(),
            splits: [GENERATED, "test"].map(Into::into).into(),
            default_split: GENERATED.into(),
            metrics: ["needle_recall", "ruler_all", "needle_rouge", "em_squad"].map(Into::into).into(),
            primary_metric: "needle_recall".into(),
            max_new_tokens: MAX_NEW_TOKENS,
            formats: [
                ("{split}.jsonl", "rows of RULER: index, input, outputs, length"),
                ("**/*.txt", "texts of the haystack, for the split `generated`"),
            ]
            .map(|(pattern, about)| FileFormat { pattern: pattern.into(), description: about.into() })
            .into(),
            options: settings::options(),
            slices: ["length", "depth"].map(Into::into).into(),
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
            return grid::open(self, source);
        }
        if source.folder.is_none() {
            return Err(Error::bad_request(format!(
                "split `{}` is read from a data folder, and none is given",
                source.split
            ))
            .with_help("give one with --data, or take the split `generated`"));
        }
        let mut number = 0;
        Ok(examples(source.records(&[PLAIN], "")?, move |record| {
            let example = records::example(record, number)?;
            number += 1;
            Ok(vec![example])
        }))
    }

    fn prompt(&self, example: &Example) -> Result<Prompt> {
        let short = example.meta.contains_key("length_unit") && example.references.len() == 1;
        let mut prompt = Prompt::new(example, TEMPLATE, if short { ONE_ANSWER } else { MAX_NEW_TOKENS });
        if let Some(prefix) = example.meta.get("answer_prefix").and_then(|p| p.as_str()) {
            prompt.answer_prefix = prefix.to_owned();
        }
        Ok(prompt)
    }

    /// RULER's clean-up: control characters count as line ends.
    fn extract(&self, _example: &Example, response: &str) -> Prediction {
        Prediction { text: ruler_clean(response), rule: "trimmed".into() }
    }
}

#[cfg(test)]
mod tests;
