//! `score`: new results from stored responses.

use super::args::ScoreArgs;
use crate::failure::{Exit, Failure, Result};
use crate::plugins::{Index, SearchPath};
use crate::run::{MetricSet, write_results};
use crate::store::RunFolder;

/// Scores a run again, with today's metric plugins and without a backend.
///
/// # Errors
/// A folder that holds no run; an unknown metric.
pub(super) fn score(args: &ScoreArgs) -> Result<Exit> {
    let (folder, mut manifest) = RunFolder::open(&args.run)?;
    let index = Index::scan(&SearchPath::usual(&args.plugins.plugin_dir))?;
    if let Some(n) = args.bootstrap {
        manifest.bootstrap = n;
    }
    if let Some(metrics) = &args.metrics {
        for task in &mut manifest.tasks {
            let set = MetricSet::load(&index, metrics)?;
            task.metrics.clone_from(&set.wanted);
            if !set.wanted.contains(&task.primary_metric) {
                task.primary_metric = set.wanted.first().cloned().unwrap_or_default();
            }
        }
    }
    let results = write_results(&folder, &manifest, |task| MetricSet::load(&index, &task.metrics), true)?;
    if results.tasks.is_empty() {
        return Err(Failure::failed(format!("{} has no finished samples", args.run.display())));
    }
    super::run::show(&results, &folder, args.json, args.quiet)?;
    Ok(if results.errors() > 0 { Exit::SampleErrors } else { Exit::Done })
}
