//! Finding the same samples in several runs, and what keeps runs from being comparable.

use crate::failure::{Failure, Result};
use crate::store::{SampleRecord, TaskEntry};
use std::collections::{BTreeMap, BTreeSet};

/// One task of one run.
#[derive(Debug, Clone, Copy)]
pub struct TaskRun<'a> {
    /// The run's name.
    pub run: &'a str,
    /// What was asked.
    pub entry: &'a TaskEntry,
    /// Its samples, scored.
    pub records: &'a [SampleRecord],
}

/// Samples that all of some runs have.
#[derive(Debug)]
pub(super) struct Aligned<'a> {
    /// By run, then by sample in the first run's order.
    pub(super) records: Vec<Vec<&'a SampleRecord>>,
    /// In what the runs were asked other things, and samples left out.
    pub(super) differences: Vec<String>,
}

/// Aligns one task of several runs by sample id.
///
/// # Errors
/// No sample in common; the same id with other references, which is another question under the same name.
pub(super) fn align<'a>(runs: &[TaskRun<'a>]) -> Result<Aligned<'a>> {
    let Some((first, others)) = runs.split_first() else {
        return Err(Failure::usage("nothing to compare"));
    };
    let mut differences = Vec::new();
    for other in others {
        differences.extend(asked_differently(first, other));
    }
    let by_id: Vec<BTreeMap<&str, &SampleRecord>> =
        runs.iter().map(|r| r.records.iter().map(|s| (s.id.as_str(), s)).collect()).collect();
    let mut ordered: Vec<&SampleRecord> = first.records.iter().collect();
    ordered.sort_by_key(|s| s.index);
    let everywhere = |s: &&SampleRecord| by_id.iter().all(|ids| ids.contains_key(s.id.as_str()));
    let common: Vec<&SampleRecord> = ordered.into_iter().filter(everywhere).collect();
    if common.is_empty() {
        let names: Vec<_> = runs.iter().map(|r| format!("`{}`", r.run)).collect();
        let message = format!("task `{}`: {} have no sample in common", first.entry.id, names.join(" and "));
        return Err(Failure::usage(message)
            .help("runs are compared sample by sample: evaluate both on the same data"));
    }
    let kept: BTreeSet<&str> = common.iter().map(|s| s.id.as_str()).collect();
    for (run, ids) in runs.iter().zip(&by_id) {
        let alone: Vec<&str> = ids.keys().copied().filter(|id| !kept.contains(id)).collect();
        if let Some(example) = alone.first() {
            let (n, more) = (alone.len(), if alone.len() > 1 { ", ..." } else { "" });
            differences.push(format!("{n} samples only in `{}`: `{example}`{more}", run.run));
        }
    }
    let records: Vec<Vec<&SampleRecord>> =
        by_id.iter().map(|ids| common.iter().map(|s| ids[s.id.as_str()]).collect()).collect();
    for (other, theirs) in others.iter().zip(&records[1..]) {
        let pairs = || records[0].iter().zip(theirs);
        if let Some((sample, _)) = pairs().find(|(a, b)| a.references != b.references) {
            let message = format!(
                "task `{}`: sample `{}` has other references in `{}` than in `{}`",
                first.entry.id, sample.id, other.run, first.run
            );
            return Err(
                Failure::usage(message).help("the runs read other data; evaluate both on the same files")
            );
        }
        let mut count = |what: &str, differ: fn(&SampleRecord, &SampleRecord) -> bool| {
            let n = pairs().filter(|(a, b)| differ(a, b)).count();
            if n > 0 {
                differences
                    .push(format!("{n} samples of `{}` {what} than those of `{}`", other.run, first.run));
            }
        };
        count("ask something else", |a, b| a.instruction != b.instruction);
        count("belong to other documents", |a, b| a.group != b.group);
    }
    Ok(Aligned { records, differences })
}

/// In what two runs of a task were asked other things.
fn asked_differently(first: &TaskRun<'_>, other: &TaskRun<'_>) -> Vec<String> {
    let (a, b) = (first.entry, other.entry);
    let data = |e: &TaskEntry| if e.sample_data { "sample records" } else { "a data folder" }.to_owned();
    [
        ("task version", a.version.clone(), b.version.clone()),
        ("split", a.split.clone(), b.split.clone()),
        ("data", data(a), data(b)),
        ("prompt style", a.prompt_style.clone(), b.prompt_style.clone()),
        ("prompt wording (hash)", a.prompt_hash.clone(), b.prompt_hash.clone()),
    ]
    .into_iter()
    .filter(|(_, a, b)| a != b)
    .map(|(what, a, b)| format!("{what}: {a} in `{}`, {b} in `{}`", first.run, other.run))
    .collect()
}
