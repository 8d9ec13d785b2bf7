//! GovReport: one-page summaries of government reports (Huang et al., NAACL 2021), as LongBench and L-Eval ship them.

mod published;

use e2llm_plugin::official::{OFFICIAL, Published, SCROLLS, Wording, ZEROSCROLLS, ZeroScrolls, scrolls};
use e2llm_plugin::source::{PLAIN, examples};
use e2llm_plugin::{
    Example, Examples, FileFormat, Host, Prompt, Result, Source, Task, TaskInfo, TaskOptions,
};

const SAMPLE: &str = include_str!("../sample/sample.jsonl");

const TEMPLATE: &str = "This is a report on the work of the government.\n\n{context}\n\n{instruction}";

const MAX_NEW_TOKENS: usize = 512;

/// Of a summary in the style of SCROLLS or ZeroSCROLLS.
const SCROLLS_TOKENS: usize = 1024;

const STYLES: [&str; 3] = [OFFICIAL, SCROLLS, ZEROSCROLLS];

/// The task.
#[derive(Debug, Default)]
pub struct GovReport {
    published: Published,
}

e2llm_plugin::export_task! {
    GovReport, id: "govreport", description: "Summarises a government report"
}

impl Task for GovReport {
    fn info(&self) -> TaskInfo {
        TaskInfo {
            id: "govreport".into(),
            version: "1".into(),
            description: "Summarises a long report of a government agency in about a page".into(),
            licence: "CC BY 4.0; the reports are works of the US government".into(),
            citation: "Huang et al., Efficient Attentions for Long Document Summarization, NAACL 2021, \
                       https://arxiv.org/abs/2104.02112"
                .into(),
            splits: ["train", "validation", "test"].map(Into::into).into(),
            default_split: "test".into(),
            metrics: ["rouge_gmean", "rouge1", "rouge2", "rougeL", "rougeLsum@sentences", "rouge_l_pltrdy"]
                .map(Into::into)
                .into(),
            primary_metric: "rouge_gmean".into(),
            max_new_tokens: MAX_NEW_TOKENS,
            formats: [
                ("gov_report.jsonl", "LongBench's copy (split `test`)"),
                ("gov_report_summ.jsonl", "L-Eval's copy (split `test`)"),
            ]
            .map(|(pattern, about)| FileFormat { pattern: pattern.into(), description: about.into() })
            .into(),
            options: vec![Wording::option(&STYLES), Wording::templates_option()],
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
        // both benchmarks took their reports from the test split
        let files: &[&str] = match source.split.as_str() {
            "test" => &[PLAIN, "gov_report.jsonl", "gov_report_summ.jsonl"],
            _ => &[PLAIN],
        };
        Ok(examples(source.records(files, SAMPLE)?, |record| {
            if published::is_longbench(record) {
                Ok(vec![published::longbench(record)?])
            } else if published::is_leval(record) {
                published::leval(record)
            } else if ZeroScrolls::is_record(record) {
                Ok(vec![ZeroScrolls::example(record)?])
            } else {
                Ok(vec![record.plain(&["report"])?])
            }
        }))
    }

    /// Every report gets the same instruction, whatever the file it comes from says: a run over reports from two
    /// sources would else compare two prompts.
    fn prompt(&self, example: &Example) -> Result<Prompt> {
        if self.published.is(SCROLLS) {
            // the document alone: it is for models that were trained to summarise what they are given
            let prompt = scrolls(example, SCROLLS_TOKENS);
            return Ok(Prompt {
                instruction: String::new(),
                template: "{context}{instruction}".into(),
                ..prompt
            });
        }
        if let Some(prompt) = self.published.prompt(example, "gov_report", SCROLLS_TOKENS)? {
            return Ok(prompt);
        }
        let mut prompt = Prompt::new(example, TEMPLATE, MAX_NEW_TOKENS);
        prompt.instruction = published::INSTRUCTION.into();
        Ok(prompt)
    }
}
