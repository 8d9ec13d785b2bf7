//! GovReport: one-page summaries of government reports (Huang et al., NAACL 2021), as LongBench and L-Eval ship them.

mod published;

use e2llm_plugin::source::{PLAIN, examples};
use e2llm_plugin::{Example, Examples, FileFormat, Prompt, Result, Source, Task, TaskInfo};

const SAMPLE: &str = include_str!("../sample/sample.jsonl");

const TEMPLATE: &str = "This is a report on the work of the government.\n\n{context}\n\n{instruction}";

const MAX_NEW_TOKENS: usize = 512;

/// The task.
#[derive(Debug, Default)]
pub struct GovReport;

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
            ..TaskInfo::default()
        }
    }

    fn open(&self, source: &Source) -> Result<Examples> {
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
            } else {
                Ok(vec![record.plain(&["report"])?])
            }
        }))
    }

    /// Every report gets the same instruction, whatever the file it comes from says: a run over reports from two
    /// sources would else compare two prompts.
    fn prompt(&self, example: &Example) -> Result<Prompt> {
        let mut prompt = Prompt::new(example, TEMPLATE, MAX_NEW_TOKENS);
        prompt.instruction = published::INSTRUCTION.into();
        Ok(prompt)
    }
}
