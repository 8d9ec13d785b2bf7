//! From the samples of a run folder to its results and tables.

use super::scoring::MetricSet;
use crate::failure::Result;
use crate::score::{
    Bootstrap, LeaderboardRun, Results, Rows, RunIdentity, Samples, TaskMeta, TaskResults, TaskTimings,
    cells, heatmap_csv, leaderboard_csv, task_results, timings_csv,
};
use crate::store::{Manifest, RunFolder, TaskEntry};
use e2llm_plugin::{Aggregate, MetricInfo};

/// Aggregates every task of a run that has samples and writes `results.json`, `leaderboard.csv` and `timings.csv`, and
/// `heatmap.csv` where a task varies lengths. `metrics` gives a task's metric plugins. Answers are scored again where they
/// lack a value of these, or all with `rescore`.
///
/// # Errors
/// Damaged samples; a metric that fails; files that cannot be written.
pub fn write_results(
    folder: &RunFolder,
    manifest: &Manifest,
    mut metrics: impl FnMut(&TaskEntry) -> Result<MetricSet>,
    rescore: bool,
) -> Result<Results> {
    let bootstrap = Bootstrap { seed: manifest.seed, resamples: manifest.bootstrap };
    let (mut tasks, mut timings, mut heatmap) = (Vec::new(), Vec::new(), Vec::new());
    for entry in &manifest.tasks {
        // not all records at once: they are as large as all questions and answers
        let mut set = None;
        let mut samples = Samples::default();
        for record in folder.records(entry)? {
            let mut record = record?;
            if set.is_none() {
                set = Some(metrics(entry)?);
            }
            if let Some(set) = set.as_ref().filter(|set| rescore || set.lacks(&record)) {
                set.rescore(&mut record);
            }
            samples.add(&record);
        }
        let Some(set) = set else { continue };
        timings.push(TaskTimings::of(&entry.id, &samples));
        samples.forget_times();
        let infos = infos(&set);
        heatmap.extend(cells(&entry.id, &samples, &infos, &set.wanted, &aggregate_by(&set))?);
        tasks.push(aggregate(manifest, entry, &samples, &set, bootstrap)?);
    }
    let run = RunIdentity::new(&manifest.backend, manifest.seed, manifest.bootstrap);
    let mut results = Results::new(run, tasks);
    results.note_unfinished(manifest.planned());
    // not the folder's name: the same run in another folder gives the same bytes
    let name = results.run_id();
    let table = leaderboard_csv(&[LeaderboardRun { name: &name, results: &results }])?;
    folder.write("results.json", &results.to_json()?)?;
    folder.write("leaderboard.csv", &table)?;
    folder.write("timings.csv", &timings_csv(&timings)?)?;
    if !heatmap.is_empty() {
        folder.write("heatmap.csv", &heatmap_csv(&heatmap)?)?;
    }
    Ok(results)
}

fn aggregate(
    manifest: &Manifest,
    entry: &TaskEntry,
    samples: &Samples,
    set: &MetricSet,
    bootstrap: Bootstrap,
) -> Result<TaskResults> {
    let meta = TaskMeta {
        task: entry.id.clone(),
        version: entry.version.clone(),
        split: entry.split.clone(),
        prompt_style: entry.prompt_style.clone(),
        prompt_hash: entry.prompt_hash.clone(),
        truncation: manifest.backend.truncation.clone(),
        primary_metric: entry.primary_metric.clone(),
        sample_data: entry.sample_data,
        trained_on: entry.trained_on,
    };
    task_results(&meta, samples, &infos(set), &set.wanted, bootstrap, &aggregate_by(set))
}

fn infos(set: &MetricSet) -> Vec<MetricInfo> {
    set.plugins.iter().map(|p| p.info.clone()).collect()
}

/// The metrics' own way from rows to corpus values. Rows go to a plugin only where that is another one than it declares:
/// they are then all in one message.
pub fn aggregate_by(set: &MetricSet) -> impl Fn(&MetricInfo, &Rows<'_>) -> Result<Aggregate> + '_ {
    |info, rows| match set.plugins.iter().find(|p| p.info.id == info.id) {
        Some(p) if !info.as_declared => Ok(p.client.aggregate(rows.iter())?),
        _ => crate::score::as_declared(info, rows),
    }
}
