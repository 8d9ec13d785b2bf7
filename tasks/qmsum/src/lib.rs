//! QMSum: summaries of meetings, each in answer to a query (Zhong et al., NAACL 2021).

mod official;

use e2llm_plugin::official::{OFFICIAL, Published, SCROLLS, Wording, ZEROSCROLLS, ZeroScrolls};
use e2llm_plugin::source::{PLAIN, examples};
use e2llm_plugin::{
    Example, Examples, FileFormat, Host, Prompt, Result, Source, Task, TaskInfo, TaskOptions,
};

const SAMPLE: &str = include_str!("../sample/sample.jsonl");

/// The plain format, and the layout of the official repository.
const FILES: [&str; 3] = [PLAIN, "data/ALL/jsonl/{split}.jsonl", "data/ALL/{split}/"];

const TEMPLATE: &str =
    "This is the transcript of a meeting, one turn after another.\n\n{context}\n\n{instruction}";

/// Of every wording.
const MAX_NEW_TOKENS: usize = 512;

const STYLES: [&str; 3] = [OFFICIAL, SCROLLS, ZEROSCROLLS];

/// The task.
#[derive(Debug, Default)]
pub struct Qmsum {
    published: Published,
}

e2llm_plugin::export_task! {
    Qmsum, id: "qmsum", description: "Summarises a meeting in answer to a query"
}

impl Task for Qmsum {
    fn info(&self) -> TaskInfo {
        TaskInfo {
            id: "qmsum".into(),
            version: "1".into(),
            description: "Summarises a meeting, or what was said in it about a topic, in answer to a query"
                .into(),
            licence: "MIT".into(),
            citation: "Zhong et al., QMSum: A New Benchmark for Query-based Multi-domain Meeting \
                       Summarization, NAACL 2021, https://arxiv.org/abs/2104.05938"
                .into(),
            splits: ["train", "validation", "test"].map(Into::into).into(),
            default_split: "test".into(),
            metrics: ["rouge_gmean", "rouge1", "rouge2", "rougeL", "rougeLsum@sentences", "rouge_l_pltrdy"]
                .map(Into::into)
                .into(),
            primary_metric: "rouge_gmean".into(),
            max_new_tokens: MAX_NEW_TOKENS,
            formats: [
                ("{split}.jsonl", "the official files of `data/ALL/jsonl`, one meeting a line"),
                ("{split}/*.json", "the official folders of `data/ALL`, one meeting a file"),
            ]
            .map(|(pattern, about)| FileFormat { pattern: pattern.into(), description: about.into() })
            .into(),
            options: vec![Wording::option(&STYLES), Wording::templates_option()],
            slices: vec!["query_type".into()],
            ..TaskInfo::default()
        }
    }

    fn configure(&mut self, options: &TaskOptions, _: Host) -> Result<()> {
        options.only(&self.info().options)?;
        self.published = Published::read(options, &STYLES)?;
        Ok(())
    }

    fn open(&self, source: &Source) -> Result<Examples> {
        self.published.open(source)?;
        if source.folder.is_none() {
            return Ok(examples(source.records(&[PLAIN], SAMPLE)?, |r| Ok(vec![r.plain(&["meeting"])?])));
        }
        // a bare folder comes last and by itself: among the patterns, every folder would be listed as a split
        let found = source.locate(&FILES);
        let path = found.or_else(|e| source.locate(&["{split}/"]).map_err(|_| e))?;
        if path.is_dir() {
            return official::folder(source, &path);
        }
        let (split, mut line) = (source.split.clone(), 0);
        Ok(examples(ZeroScrolls::joined(source.read(&path)?), move |record| {
            line += 1;
            if official::is_meeting(record) {
                official::meeting(record, &format!("{split}-{line}"))
            } else if ZeroScrolls::is_record(record) {
                Ok(vec![ZeroScrolls::example(record)?])
            } else {
                Ok(vec![record.plain(&["meeting"])?])
            }
        }))
    }

    fn prompt(&self, example: &Example) -> Result<Prompt> {
        if let Some(prompt) = self.published.prompt(example, "qmsum", MAX_NEW_TOKENS)? {
            return Ok(prompt);
        }
        let mut prompt = Prompt::new(example, TEMPLATE, MAX_NEW_TOKENS);
        prompt.instruction = format!(
            "Answer the query below from what was said in the meeting. Write one coherent paragraph that names who \
             said or decided what, and nothing else.\n\nQuery: {}",
            example.instruction
        );
        Ok(prompt)
    }
}
