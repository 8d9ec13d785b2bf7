//! Records of LongBench: the official files, the plain format, and the sample.

use e2llm_plugin::json_lines::JsonLines;
use e2llm_plugin::record::{Record, context_group};
use e2llm_plugin::source::{PLAIN, Records};
use e2llm_plugin::{Error, Example, Result, Source};
use serde_json::{Map, Value};

use crate::datasets::{DATASETS, Dataset, Kind, dataset};

const SAMPLE: &str = include_str!("../sample/sample.jsonl");

/// LongBench took up other benchmarks, and so does its sample: the first record of theirs.
const TAKEN_UP: [(&str, &str); 3] = [
    ("narrativeqa", include_str!("../../narrativeqa/sample/sample.jsonl")),
    ("qmsum", include_str!("../../qmsum/sample/sample.jsonl")),
    ("gov_report", include_str!("../../govreport/sample/sample.jsonl")),
];

/// What an empty `input` is read as: the instruction of these data sets is in their prompt.
const NO_INPUT: [(Kind, &str); 3] = [
    (Kind::Summary, "Write a summary."),
    (Kind::Synthetic, "Count the paragraphs."),
    (Kind::Code, "Write the next line."),
];

/// The split that is LongBench-E.
pub(crate) const EVEN: &str = "e";

/// The embedded records.
pub(crate) fn sample() -> Records {
    let taken_up = TAKEN_UP.into_iter().filter_map(|(name, text)| {
        let record = JsonLines::embedded("embedded sample", text).next()?;
        Some(record.map(|mut record| {
            record.value["meta"]["dataset"] = name.into();
            record
        }))
    });
    Box::new(JsonLines::embedded("embedded sample", SAMPLE).chain(taken_up))
}

/// The official files of the data sets asked for, or of all that are there; else the plain file.
pub(crate) fn of_files(source: &Source, chosen: &[&'static Dataset]) -> Result<Records> {
    let mut records: Option<Records> = None;
    let mut missing = Vec::new();
    let all: Vec<_> = if chosen.is_empty() { DATASETS.iter().collect() } else { chosen.to_vec() };
    let suffix = match source.split.as_str() {
        "test" => Some(""),
        EVEN => Some("_e"),
        _ => None,
    };
    for (dataset, suffix) in all.iter().filter_map(|d| Some((d, suffix?))) {
        let names = ["", "data/"].map(|folder| format!("{folder}{}{suffix}.jsonl", dataset.name));
        match source.locate(&names.each_ref().map(String::as_str)) {
            Ok(path) => {
                let more = source.read(&path)?;
                records = Some(match records {
                    None => more,
                    Some(before) => Box::new(before.chain(more)),
                });
            }
            Err(_) => missing.push(names[0].clone()),
        }
    }
    match records {
        Some(_) if !chosen.is_empty() && !missing.is_empty() => {
            let folder = source.folder.as_deref().unwrap_or(std::path::Path::new("."));
            Err(Error::io(format!("{} has no {}", folder.display(), missing.join(", ")))
                .with_help("put LongBench's files there, or into its folder data/"))
        }
        Some(records) => Ok(records),
        None => source.read(&source.locate(&[PLAIN])?).map_err(|e| {
            if e.help.is_empty() {
                e.with_help("expected LongBench's {dataset}.jsonl or a plain test.jsonl")
            } else {
                e
            }
        }),
    }
}

/// The example of a record, and its data set.
pub(crate) fn example(record: &Record) -> Result<(Example, &'static Dataset)> {
    let (mut example, name) = if record.is_plain() {
        let example = record.plain(&["document_id", "meeting", "report"])?;
        let name = example.meta.get("dataset").and_then(Value::as_str).map(str::to_owned);
        (example, name.ok_or_else(|| record.error("field `meta.dataset` is missing"))?)
    } else {
        (official(record)?, record.text("dataset")?.to_owned())
    };
    let Some(dataset) = dataset(&name) else {
        let known = DATASETS.map(|d| d.name).join(", ");
        return Err(record
            .error(format!("data set `{name}` is none of those known"))
            .with_help(format!("they are: {known}")));
    };
    example.meta.insert("dataset".into(), dataset.name.into());
    example.meta.insert("words".into(), bucket(record, &example).into());
    if example.instruction.trim().is_empty() {
        let unasked =
            NO_INPUT.iter().find(|(kind, _)| *kind == dataset.kind && !dataset.task.contains("{input}"));
        let words = unasked.map(|(_, words)| *words);
        example.instruction = words.ok_or_else(|| record.error("field `input` is empty"))?.into();
    }
    if dataset.name == "trec" && !example.meta.get("all_classes").is_some_and(Value::is_array) {
        return Err(
            record.error("field `all_classes` is no list: a label cannot be scored without the others")
        );
    }
    Ok((example, dataset))
}

/// A record `{"input","context","answers","length","dataset","language","all_classes","_id"}`.
fn official(record: &Record) -> Result<Example> {
    let context = record.text("context")?;
    let references = record.texts("answers")?;
    if references.is_empty() {
        return Err(record.error("field `answers` is empty: a sample without a reference cannot be scored"));
    }
    let kept = ["length", "language", "all_classes"];
    let meta: Map<_, _> =
        kept.iter().filter_map(|k| Some(((*k).to_owned(), record.value.get(k)?.clone()))).collect();
    Ok(Example {
        id: record.text_or_number("_id")?,
        context: context.to_owned(),
        instruction: record.text("input")?.to_owned(),
        references,
        group: context_group(context),
        meta,
    })
}

/// LongBench-E's classes of length, in words.
fn bucket(record: &Record, example: &Example) -> &'static str {
    let words = record.value.get("length").and_then(Value::as_u64);
    match words.unwrap_or_else(|| example.context.split_whitespace().count() as u64) {
        0..4000 => "0-4k",
        4000..8000 => "4-8k",
        _ => "8k+",
    }
}
