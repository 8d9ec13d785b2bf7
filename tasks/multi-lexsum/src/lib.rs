//! Multi-LexSum: short summaries of civil-rights lawsuits (Shen et al., NeurIPS 2022).

use e2llm_plugin::record::{Record, context_group};
use e2llm_plugin::source::{PLAIN, examples};
use e2llm_plugin::{Example, Examples, FileFormat, Prompt, Result, Source, Task, TaskInfo};

const SAMPLE: &str = include_str!("../sample/sample.jsonl");

const TEMPLATE: &str = "This is the account of a lawsuit.\n\n{context}\n\n{instruction}";

const INSTRUCTION: &str = "Summarise the case in one paragraph: who sued whom and where, over what, what the court \
     decided, and how it ended.";

const MAX_NEW_TOKENS: usize = 256;

/// The task.
#[derive(Debug, Default)]
pub struct MultiLexSum;

e2llm_plugin::export_task! {
    MultiLexSum, id: "multi-lexsum", description: "Summarises a civil-rights lawsuit"
}

impl Task for MultiLexSum {
    fn info(&self) -> TaskInfo {
        TaskInfo {
            id: "multi-lexsum".into(),
            version: "1".into(),
            description: "Summarises the account of a civil-rights lawsuit in a paragraph".into(),
            licence: "ODC-By".into(),
            citation: "Shen et al., Multi-LexSum: Real-World Summaries of Civil Rights Lawsuits at Multiple \
                       Granularities, NeurIPS 2022, https://arxiv.org/abs/2206.10883"
                .into(),
            splits: ["train", "validation", "test"].map(Into::into).into(),
            default_split: "test".into(),
            metrics: ["rouge_gmean", "rouge1", "rouge2", "rougeL", "rougeLsum@sentences"]
                .map(Into::into)
                .into(),
            primary_metric: "rouge_gmean".into(),
            max_new_tokens: MAX_NEW_TOKENS,
            formats: vec![FileFormat {
                pattern: PLAIN.into(),
                description: "pairs {\"document\",\"summary\"}, one a line".into(),
            }],
            ..TaskInfo::default()
        }
    }

    fn open(&self, source: &Source) -> Result<Examples> {
        let (split, mut line) = (source.split.clone(), 0);
        Ok(examples(source.records(&[PLAIN], SAMPLE)?, move |record| {
            line += 1;
            let plain = record.is_plain();
            Ok(vec![if plain { record.plain(&["case"])? } else { pair(record, format!("{split}-{line}"))? }])
        }))
    }

    /// Every case gets the same instruction, whatever the file it comes from says.
    fn prompt(&self, example: &Example) -> Result<Prompt> {
        let mut prompt = Prompt::new(example, TEMPLATE, MAX_NEW_TOKENS);
        prompt.instruction = INSTRUCTION.into();
        Ok(prompt)
    }
}

/// A pair of account and summary; the format has no ids.
fn pair(record: &Record, id: String) -> Result<Example> {
    let context = record.text("document")?;
    Ok(Example {
        id,
        context: context.to_owned(),
        instruction: INSTRUCTION.into(),
        references: vec![record.text("summary")?.to_owned()],
        group: context_group(context),
        ..Example::default()
    })
}
