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
    let pairs = open(&args.input)?;
    if !args.aggregate {
        tell_absent(&set);
    }
    let threads =
        args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).max(1);
    let mut rows = Vec::new();
    // the next block is read while one is scored
    std::thread::scope(|scope| {
        let (sender, blocks) = mpsc::sync_channel(1);
        scope.spawn(move || read_blocks(pairs, &sender));
        for block in blocks {
            for (scores, lines) in score_block(&set, &block?, threads, args.aggregate)? {
                rows.extend(scores.into_iter().map(|scores| Row { scores }));
                output::print(&lines)?;
            }
        }
        Ok::<_, Box<Failure>>(())
    })?;
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

/// Sends the pairs block by block, until there are no more or nobody wants them.
fn read_blocks(mut pairs: JsonLines, sender: &mpsc::SyncSender<e2llm_plugin::Result<Vec<Record>>>) {
    loop {
        let block = pairs.by_ref().take(BLOCK).collect::<e2llm_plugin::Result<Vec<_>>>();
        let is_last = !matches!(&block, Ok(block) if block.len() == BLOCK);
        if sender.send(block).is_err() || is_last {
            return;
        }
    }
}

/// Scores of some pairs to aggregate, or the lines that show them.
type Made = (Vec<Scores>, String);

/// Scores a block over threads, each a part of it; the parts are in the pairs' order.
fn score_block(set: &MetricSet, block: &[Record], threads: usize, aggregate: bool) -> Result<Vec<Made>> {
    let make = |records: &[Record]| -> std::result::Result<Made, String> {
        let (mut all, mut lines) = (Vec::new(), String::new());
        for record in records {
            let scores = score(set, record)?;
            if aggregate {
                all.push(scores);
            } else {
                lines += &Value::Object(in_order(set, &scores)).to_string();
                lines.push('\n');
            }
        }
        Ok((all, lines))
    };
    let part = block.len().div_ceil(threads).max(1);
    let parts: Vec<_> = std::thread::scope(|scope| {
        let parts: Vec<_> = block.chunks(part).map(|part| scope.spawn(move || make(part))).collect();
        let ended = || Err("a thread that scored pairs has ended".to_owned());
        parts.into_iter().map(|part| part.join().unwrap_or_else(|_| ended())).collect()
    });
    parts.into_iter().map(|part| part.map_err(Failure::failed)).collect()
}

fn score(set: &MetricSet, record: &Record) -> std::result::Result<Scores, String> {
    let sample = pair(record).map_err(|e| e.message)?;
    set.score(&sample).map_err(|e| format!("{}: {e}", record.place))
}

/// Says which values no pair has, because they are of all pairs together.
fn tell_absent(set: &MetricSet) {
    let of_all = |id: &&String| set.parts(id) != [id.as_str()];
    let absent: Vec<_> = set.wanted.iter().filter(of_all).cloned().collect();
    if !absent.is_empty() {
        output::note(&format!("note: {} is of all pairs together: see --aggregate", absent.join(", ")));
    }
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
