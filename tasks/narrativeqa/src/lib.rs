//! NarrativeQA: questions about books and film scripts, or about their summaries (Kocisky et al., TACL 2018).

mod official;

use e2llm_plugin::official::{OFFICIAL, Published, SCROLLS, Wording, ZEROSCROLLS, ZeroScrolls};
use e2llm_plugin::record::Record;
use e2llm_plugin::source::{PLAIN, bare_name, examples};
use e2llm_plugin::{
    Error, Example, Examples, FileFormat, Host, OptionInfo, Prompt, Result, Source, Task, TaskInfo,
    TaskOptions,
};

use official::Setting;

const SAMPLE: &str = include_str!("../sample/sample.jsonl");

const TEMPLATE: &str = "Here is a story, or what is known of it.\n\n{context}\n\n{instruction}";

const MAX_NEW_TOKENS: usize = 128;

/// Of an answer in SCROLLS' styles.
const SCROLLS_TOKENS: usize = 64;

const STYLES: [&str; 3] = [OFFICIAL, SCROLLS, ZEROSCROLLS];

/// The task.
#[derive(Debug, Default)]
pub struct NarrativeQa {
    setting: Setting,
    published: Published,
}

e2llm_plugin::export_task! {
    NarrativeQa, id: "narrativeqa", description: "Answers questions about stories"
}

impl Task for NarrativeQa {
    fn info(&self) -> TaskInfo {
        TaskInfo {
            id: "narrativeqa".into(),
            version: "1".into(),
            description: "Answers questions about books and film scripts, given the story or its summary"
                .into(),
            licence: "Apache-2.0; the stories belong to their authors or are in the public domain".into(),
            citation: "Kocisky et al., The NarrativeQA Reading Comprehension Challenge, TACL 2018, \
                       https://arxiv.org/abs/1712.07040"
                .into(),
            splits: ["train", "validation", "test"].map(Into::into).into(),
            default_split: "test".into(),
            metrics: ["f1_squad", "em_squad", "rougeL"].map(Into::into).into(),
            primary_metric: "f1_squad".into(),
            max_new_tokens: MAX_NEW_TOKENS,
            formats: [
                (official::QUESTIONS, "the official questions of all splits, with documents.csv beside them"),
                (official::SUMMARIES, "the official summaries (setting `summary`)"),
                (
                    "tmp/{document}.content",
                    "the stories, as the official script downloads them (setting `story`)",
                ),
            ]
            .map(|(pattern, about)| FileFormat { pattern: pattern.into(), description: about.into() })
            .into(),
            options: vec![
                OptionInfo {
                    name: "setting".into(),
                    default: "summary".into(),
                    help: "what the official files are read for: `summary` or `story`".into(),
                },
                Wording::option(&STYLES),
                Wording::templates_option(),
            ],
            slices: vec!["kind".into()],
            ..TaskInfo::default()
        }
    }

    fn configure(&mut self, options: &TaskOptions, _: Host) -> Result<()> {
        options.only(&self.info().options)?;
        self.published = Published::read(options, &STYLES)?;
        self.setting = match options.text("setting").as_deref() {
            None | Some("summary") => Setting::Summary,
            Some("story") => Setting::Story,
            Some(other) => {
                return Err(Error::option("setting", format!("no setting `{other}`"))
                    .with_help("it is `summary` or `story`"));
            }
        };
        Ok(())
    }

    fn open(&self, source: &Source) -> Result<Examples> {
        self.published.open(source)?;
        let plain = |record: &Record| {
            Ok(vec![if ZeroScrolls::is_record(record) {
                ZeroScrolls::example(record)?
            } else {
                record.plain(&["document_id"])?
            }])
        };
        if source.folder.is_none() {
            return Ok(examples(source.records(&[PLAIN], SAMPLE)?, plain));
        }
        let path = source.locate(&[PLAIN, official::QUESTIONS])?;
        if bare_name(&path) == official::QUESTIONS {
            official::open(source, &path, self.setting)
        } else {
            Ok(examples(ZeroScrolls::joined(source.read(&path)?), plain))
        }
    }

    fn prompt(&self, example: &Example) -> Result<Prompt> {
        if let Some(prompt) = self.published.prompt(example, "narrativeqa", SCROLLS_TOKENS)? {
            return Ok(prompt);
        }
        let mut prompt = Prompt::new(example, TEMPLATE, MAX_NEW_TOKENS);
        prompt.instruction = format!(
            "Answer the question about the story with a few words or one short phrase, and nothing else.\n\n\
             Question: {}",
            example.instruction
        );
        Ok(prompt)
    }
}
