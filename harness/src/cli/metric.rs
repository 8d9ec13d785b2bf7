//! `metric`: scores pairs of a file.

use super::args::MetricArgs;
use super::output;
use crate::failure::{Exit, Failure, Result};
use crate::plugins::{Index, SearchPath};
use crate::run::MetricSet;
use e2llm_plugin::json_lines::JsonLines;
use e2llm_plugin::record::Record;
use e2llm_plugin::{Row, Scored, Scores};
use serde_json::{Map, Value};
use std::io::BufReader;
use std::path::Path;
use std::sync::mpsc;

/// Pairs scored at once, so that a file larger than memory works.
const BLOCK: usize = 4096;

/// Prints one line of JSON per pair, or the corpus figures.
///
/// # Errors
/// An unknown metric; a line that is no pair, by its number.
pub(super) fn metric(args: &MetricArgs) -> Result<Exit> {
    let index = Index::scan(&SearchPath::usual(&args.plugins.plugin_dir))?;
    let set = MetricSet::load(&index, &args.names)?;
    let mut pairs = open(&args.input)?;
    let threads =
        args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).max(1);
    let mut rows = Vec::new();
    loop {
        let block = pairs.by_ref().take(BLOCK).collect::<e2llm_plugin::Result<Vec<_>>>()?;
        if block.is_empty() {
            break;
        }
        let scores = score_block(&set, &block, threads)?;
        if args.aggregate {
            rows.extend(scores.into_iter().map(|scores| Row { scores }));
            continue;
        }
        let mut lines = String::new();
        for scores in &scores {
            lines += &Value::Object(in_order(&set, scores)).to_string();
            lines.push('\n');
        }
        output::print(&lines)?;
    }
    if args.aggregate {
        if rows.is_empty() {
            return Err(Failure::usage(format!("{} holds no pairs", args.input.display())));
        }
        let mut all = Scores::new();
        for plugin in &set.plugins {
            all.extend(plugin.client.aggregate(rows.iter().cloned())?);
        }
        let mut line = in_order(&set, &all);
        line.insert("n".into(), rows.len().into());
        output::print_json(&line)?;
    }
    Ok(Exit::Done)
}

fn open(input: &Path) -> Result<JsonLines> {
    if input == Path::new("-") {
        return Ok(JsonLines::from_reader("stdin", Box::new(BufReader::new(std::io::stdin()))));
    }
    if !input.is_file() {
        return Err(Failure::usage(format!("no file {}", input.display())));
    }
    Ok(JsonLines::open(input)?)
}

/// Scores a block over threads; the scores are in the pairs' order.
fn score_block(set: &MetricSet, block: &[Record], threads: usize) -> Result<Vec<Scores>> {
    let part = block.len().div_ceil(threads).max(1);
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        for (i, records) in block.chunks(part).enumerate() {
            let sender = sender.clone();
            scope.spawn(move || {
                let scores: std::result::Result<Vec<_>, String> =
                    records.iter().map(|r| score(set, r)).collect();
                let _ = sender.send((i, scores)); // the receiver outlives the scope
            });
        }
    });
    drop(sender);
    let mut parts: Vec<_> = receiver.into_iter().collect();
    parts.sort_by_key(|(i, _)| *i);
    let mut all = Vec::with_capacity(block.len());
    for (_, scores) in parts {
        all.extend(scores.map_err(Failure::failed)?);
    }
    Ok(all)
}

fn score(set: &MetricSet, record: &Record) -> std::result::Result<Scores, String> {
    let sample = pair(record).map_err(|e| e.message)?;
    set.score(&sample).map_err(|e| format!("{}: {e}", record.place))
}

fn pair(record: &Record) -> e2llm_plugin::Result<Scored> {
    let response = match record.value.get("response") {
        Some(Value::String(_)) => Some(record.text("response")?.to_owned()),
        _ => None,
    };
    Ok(Scored {
        prediction: record.text("prediction")?.to_owned(),
        response,
        references: record.texts("references")?,
        meta: record.object("meta"),
    })
}

/// The values in the plugin's order, which JSON objects of this program keep.
fn in_order(set: &MetricSet, scores: &Scores) -> Map<String, Value> {
    let known = set.wanted.iter().filter_map(|id| scores.get(id).map(|v| (id.clone(), Value::from(*v))));
    known.collect()
}
