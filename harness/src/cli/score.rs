//! `score`: new results from stored responses.

use super::args::ScoreArgs;
use super::output;
use super::run_set::write_tables;
use crate::failure::{Exit, Failure, Result};
use crate::plugins::{Index, SearchPath};
use crate::run::{MetricSet, write_results};
use crate::score::Results;
use crate::store::{RunFolder, RunSet};
use std::path::Path;

/// Scores a run, or each of a folder of runs, again: with today's metric plugins and without a backend.
///
/// # Errors
/// A folder that holds no run; an unknown metric.
pub(super) fn score(args: &ScoreArgs) -> Result<Exit> {
    let index = Index::scan(&SearchPath::usual(&args.plugins.plugin_dir))?;
    let Some(set) = RunSet::open(&args.run)? else {
        let Some((results, folder)) = score_one(args, &index, &args.run)? else {
            return Err(Failure::failed(format!("{} has no finished samples", args.run.display())));
        };
        super::run::show(&results, &folder, args.json, args.quiet)?;
        return Ok(exit(results.errors()));
    };
    let mut errors = 0;
    for (_, path) in set.runs() {
        let Some((results, _)) = score_one(args, &index, &path)? else { continue };
        errors += results.errors();
        if args.json {
            output::print_json(&results)?;
        }
    }
    let Some(table) = write_tables(&set)? else {
        return Err(Failure::failed(format!("no run in {} has finished samples", args.run.display())));
    };
    if !args.json && !args.quiet {
        output::print(&table)?;
    }
    Ok(exit(errors))
}

fn exit(errors: usize) -> Exit {
    if errors > 0 { Exit::SampleErrors } else { Exit::Done }
}

/// `None` where no sample is finished.
fn score_one(args: &ScoreArgs, index: &Index, path: &Path) -> Result<Option<(Results, RunFolder)>> {
    let (folder, mut manifest) = RunFolder::open(path)?;
    if let Some(n) = args.bootstrap {
        manifest.bootstrap = n;
    }
    if let Some(metrics) = &args.metrics {
        for task in &mut manifest.tasks {
            let set = MetricSet::load(index, metrics)?;
            task.metrics.clone_from(&set.wanted);
            if !set.wanted.contains(&task.primary_metric) {
                task.primary_metric = set.wanted.first().cloned().unwrap_or_default();
            }
        }
    }
    let results = write_results(&folder, &manifest, |task| MetricSet::load(index, &task.metrics), true)?;
    Ok((!results.tasks.is_empty()).then_some((results, folder)))
}
