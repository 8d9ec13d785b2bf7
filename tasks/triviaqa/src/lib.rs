//! TriviaQA: trivia questions, each with documents that hold the answer (Joshi et al., ACL 2017).

mod official;

use e2llm_plugin::record::Record;
use e2llm_plugin::source::{PLAIN, bare_name, examples};
use e2llm_plugin::{
    Error, Example, Examples, FileFormat, Host, OptionInfo, Prediction, Prompt, Result, Source, Task,
    TaskInfo, TaskOptions,
};

const SAMPLE: &str = include_str!("../sample/sample.jsonl");

const TEMPLATE: &str = "Here is a collection of texts.\n\n{context}\n\n{instruction}";

const MAX_NEW_TOKENS: usize = 32;

/// Files of questions an official release has, each for several splits.
const DOMAINS: [&str; 4] = ["wikipedia", "web", "verified-wikipedia", "verified-web"];

/// The task.
#[derive(Debug)]
pub struct TriviaQa {
    domain: String,
}

impl Default for TriviaQa {
    fn default() -> Self {
        Self { domain: DOMAINS[0].into() }
    }
}

e2llm_plugin::export_task! {
    TriviaQa, id: "triviaqa", description: "Answers trivia questions from evidence documents"
}

impl Task for TriviaQa {
    fn info(&self) -> TaskInfo {
        TaskInfo {
            id: "triviaqa".into(),
            version: "1".into(),
            description: "Answers trivia questions from the documents that were found for them".into(),
            licence: "Apache-2.0; questions and documents belong to their authors".into(),
            citation:
                "Joshi et al., TriviaQA: A Large Scale Distantly Supervised Challenge Dataset for Reading \
                       Comprehension, ACL 2017, https://arxiv.org/abs/1705.03551"
                    .into(),
            splits: ["train", "validation", "test"].map(Into::into).into(),
            default_split: "test".into(),
            metrics: ["f1_triviaqa", "em_triviaqa", "f1_squad", "em_squad"].map(Into::into).into(),
            primary_metric: "f1_triviaqa".into(),
            max_new_tokens: MAX_NEW_TOKENS,
            formats: vec![FileFormat {
                pattern: "qa/{domain}-{split}.json".into(),
                description:
                    "the official questions, with their documents under evidence/; the test split has no \
                              answers"
                        .into(),
            }],
            options: vec![OptionInfo {
                name: "domain".into(),
                default: DOMAINS[0].into(),
                help: format!("which official questions: {}", DOMAINS.join(", ")),
            }],
            ..TaskInfo::default()
        }
    }

    fn configure(&mut self, options: &TaskOptions, _: Host) -> Result<()> {
        options.only(&self.info().options)?;
        if let Some(domain) = options.text("domain") {
            if !DOMAINS.contains(&domain.as_str()) {
                return Err(Error::option("domain", format!("no questions `{domain}`"))
                    .with_help(format!("it is one of {}", DOMAINS.join(", "))));
            }
            self.domain = domain;
        }
        Ok(())
    }

    fn open(&self, source: &Source) -> Result<Examples> {
        let plain = |record: &Record| Ok(vec![record.plain(&["document_id"])?]);
        let Some(folder) = &source.folder else {
            return Ok(examples(source.records(&[PLAIN], SAMPLE)?, plain));
        };
        let path = source.locate(&[PLAIN, &format!("qa/{}-{{split}}.json", self.domain)])?;
        if bare_name(&path).ends_with(".json") {
            official::open(&path, folder.join("evidence"))
        } else {
            Ok(examples(source.read(&path)?, plain))
        }
    }

    fn prompt(&self, example: &Example) -> Result<Prompt> {
        let mut prompt = Prompt::new(example, TEMPLATE, MAX_NEW_TOKENS);
        prompt.instruction = format!(
            "Answer the trivia question below with a name, a number or a short phrase, and nothing else.\n\n\
             Question: {}",
            example.instruction
        );
        Ok(prompt)
    }

    /// The first line after leading line feeds, as LongBench cuts it: models go on with further questions.
    fn extract(&self, _: &Example, response: &str) -> Prediction {
        let line = response.trim_start_matches('\n').split('\n').next().unwrap_or_default().trim();
        let rule = if line.is_empty() { "" } else { "first-line" };
        Prediction { text: line.to_owned(), rule: rule.into() }
    }
}
