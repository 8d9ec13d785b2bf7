//! The benchmarks that ship GovReport's reports in files of their own.

use e2llm_plugin::record::{Record, context_group};
use e2llm_plugin::{Example, Result};
use serde_json::{Map, Value};

/// What is asked of every report.
pub(crate) const INSTRUCTION: &str = "Write a summary of the government report, about one page long. State why the \
     report was made, what was found and what is recommended, in plain prose without headings or lists.";

/// Whether a record is LongBench's: `{"input", "context", "answers", "length", "_id", ...}`.
pub(crate) fn is_longbench(record: &Record) -> bool {
    ["_id", "input", "context"].iter().all(|k| record.value.get(k).is_some())
}

/// The example of a record of LongBench.
pub(crate) fn longbench(record: &Record) -> Result<Example> {
    let context = record.text("context")?;
    let references = record.texts("answers")?;
    if references.is_empty() {
        return Err(record.error("field `answers` is empty: a sample without a reference cannot be scored"));
    }
    let mut meta = source("LongBench");
    meta.insert("length".into(), record.value.get("length").cloned().unwrap_or(Value::Null));
    Ok(Example {
        id: record.text_or_number("_id")?,
        context: context.to_owned(),
        instruction: INSTRUCTION.into(),
        references,
        group: context_group(context),
        meta,
    })
}

/// Whether a record is L-Eval's: `{"instructions", "outputs", "input", ...}`.
pub(crate) fn is_leval(record: &Record) -> bool {
    ["instructions", "outputs", "input"].iter().all(|k| record.value.get(k).is_some())
}

/// The examples of a record of L-Eval: one for every summary of its report. The format has no ids.
pub(crate) fn leval(record: &Record) -> Result<Vec<Example>> {
    let context = record.text("input")?;
    let group = context_group(context);
    let summaries = record.texts("outputs")?;
    if summaries.is_empty() {
        return Err(record.error("field `outputs` is empty: a sample without a reference cannot be scored"));
    }
    let example = |(i, summary)| Example {
        id: format!("{group}-{i}"),
        context: context.to_owned(),
        instruction: INSTRUCTION.into(),
        references: vec![summary],
        group: group.clone(),
        meta: source("L-Eval"),
    };
    Ok(summaries.into_iter().enumerate().map(example).collect())
}

fn source(name: &str) -> Map<String, Value> {
    Map::from_iter([("source".to_owned(), name.into())])
}
