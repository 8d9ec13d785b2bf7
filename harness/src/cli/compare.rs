//! `compare`: runs against a baseline, sample by sample.

use super::args::{CompareArgs, CompareFormat};
use super::output;
use crate::failure::{Exit, Failure, Result, did_you_mean};
use crate::plugins::{Index, SearchPath};
use crate::run::{MetricSet, aggregate_by};
use crate::score::{
    CompareSettings, Comparison, TaskRun, Values, comparison_csv, comparison_markdown, comparison_notes,
    comparison_text,
};
use crate::store::{Manifest, Outcome, RunFolder, SampleRecord, names_apart};
use std::collections::BTreeMap;

/// A run of the comparison.
struct Loaded {
    name: String,
    folder: RunFolder,
    manifest: Manifest,
}

/// Prints differences between runs.
///
/// # Errors
/// A folder that holds no run; runs that cannot be compared; an unknown metric.
pub(super) fn compare(args: &CompareArgs) -> Result<Exit> {
    if args.runs.len() < 2 {
        return Err(
            Failure::usage("one run cannot be compared").help("name two or more: the first is the baseline")
        );
    }
    let runs = load(args)?;
    let index = Index::scan(&SearchPath::usual(&args.plugins.plugin_dir))?;
    let mut comparison = Comparison::new(CompareSettings {
        seed: args.seed.unwrap_or(runs[0].manifest.seed),
        resamples: args.bootstrap.unwrap_or(runs[0].manifest.bootstrap),
        permutations: args.permutations,
        allow_differences: args.allow_differences,
    });
    comparison.warnings = settings_warnings(&runs);
    for task in tasks(args, &runs, &mut comparison.warnings)? {
        compare_task(args, &runs, &task, &index, &mut comparison)?;
    }
    comparison.correct();
    show(args, &comparison)?;
    Ok(Exit::Done)
}

fn load(args: &CompareArgs) -> Result<Vec<Loaded>> {
    let mut runs = Vec::with_capacity(args.runs.len());
    for (path, name) in args.runs.iter().zip(names_apart(&args.runs)) {
        let (folder, manifest) = RunFolder::open(path)?;
        runs.push(Loaded { name, folder, manifest });
    }
    Ok(runs)
}

/// Tasks that the baseline and some other run have, in the baseline's order.
fn tasks(args: &CompareArgs, runs: &[Loaded], warnings: &mut Vec<String>) -> Result<Vec<String>> {
    let has = |run: &Loaded, task: &str| run.manifest.tasks.iter().any(|t| t.id == task);
    let mut shared = Vec::new();
    let mut all: Vec<&str> = Vec::new();
    for task in runs.iter().flat_map(|r| &r.manifest.tasks) {
        if !all.contains(&task.id.as_str()) {
            all.push(&task.id);
        }
    }
    for task in args.tasks.iter().flatten() {
        if !all.contains(&task.as_str()) {
            let help = did_you_mean(task, all.iter().copied());
            return Err(Failure::usage(format!("no run has a task `{task}`")).help(help));
        }
    }
    for task in all {
        if args.tasks.as_ref().is_some_and(|wanted| !wanted.iter().any(|t| t == task)) {
            continue;
        }
        let lacking: Vec<_> =
            runs.iter().filter(|r| !has(r, task)).map(|r| format!("`{}`", r.name)).collect();
        if !lacking.is_empty() {
            warnings.push(format!("{task}: not in {}", lacking.join(", ")));
        }
        if has(&runs[0], task) && runs[1..].iter().any(|r| has(r, task)) {
            shared.push(task.to_owned());
        }
    }
    if shared.is_empty() {
        return Err(Failure::usage(format!("no task of `{}` is in another run", runs[0].name))
            .help("evaluate the runs on the same tasks"));
    }
    Ok(shared)
}

/// Settings that make answers differ and are not the method's.
fn settings_warnings(runs: &[Loaded]) -> Vec<String> {
    let first = &runs[0];
    let mut warnings = Vec::new();
    for other in &runs[1..] {
        let (a, b) = (&first.manifest.generation, &other.manifest.generation);
        let mut differ = |what: &str, a: String, b: String| {
            if a != b {
                warnings.push(format!("{what}: {a} in `{}`, {b} in `{}`", first.name, other.name));
            }
        };
        differ("temperature", a.temperature.to_string(), b.temperature.to_string());
        differ("top-p", a.top_p.to_string(), b.top_p.to_string());
        let length = |n: usize| if n == 0 { "each task's own".to_owned() } else { n.to_string() };
        differ("longest answer", length(a.max_new_tokens), length(b.max_new_tokens));
    }
    for run in runs {
        let samples: Vec<_> =
            run.manifest.tasks.iter().filter(|t| t.sample_data).map(|t| t.id.as_str()).collect();
        if !samples.is_empty() {
            let names = samples.join(", ");
            warnings.push(format!("`{}`: sample records, not a benchmark result: {names}", run.name));
        }
        warnings.extend(run.manifest.backend.warnings.iter().map(|w| format!("`{}`: {w}", run.name)));
    }
    warnings
}

fn compare_task(
    args: &CompareArgs,
    runs: &[Loaded],
    task: &str,
    index: &Index,
    comparison: &mut Comparison,
) -> Result<()> {
    let entry = |run: &'_ Loaded| run.manifest.tasks.iter().position(|t| t.id == task);
    let with_task: Vec<_> = runs.iter().filter_map(|r| Some((r, entry(r)?))).collect();
    let own = &runs[0].manifest.tasks[with_task[0].1];
    let wanted = args.metrics.clone().unwrap_or_else(|| vec![own.primary_metric.clone()]);
    let set = MetricSet::load(index, &wanted)?;
    let mut samples: BTreeMap<&str, Vec<SampleRecord>> = BTreeMap::new();
    for (run, at) in &with_task {
        let entry = &run.manifest.tasks[*at];
        let mut records = run.folder.samples(entry)?;
        if records.is_empty() {
            return Err(Failure::usage(format!(
                "run `{}` has no finished sample of task `{task}`",
                run.name
            ))
            .help("finish it with `run --resume`, or leave the task out with --tasks"));
        }
        // with one and the same plugin for all runs, whichever version they were scored with
        records.iter_mut().for_each(|r| set.rescore(r));
        check_scored(run, task, &records)?;
        changed_metrics(run, &set, comparison);
        samples.insert(&run.name, records);
    }
    let task_runs: Vec<TaskRun<'_>> = with_task
        .iter()
        .map(|(run, at)| TaskRun {
            run: &run.name,
            entry: &run.manifest.tasks[*at],
            records: &samples[run.name.as_str()],
        })
        .collect();
    let infos: Vec<_> = set.plugins.iter().map(|p| p.info.clone()).collect();
    let aggregate = aggregate_by(&set);
    let values = Values { metrics: &infos, wanted: &set.wanted, aggregate: &aggregate };
    comparison.add_task(&task_runs, &values)?;
    if args.normalise {
        let backend = |name: &str| {
            let found = with_task.iter().position(|(r, _)| r.manifest.backend.name == name);
            found.ok_or_else(|| {
                Failure::usage(format!("--normalise needs a run of backend `{name}` with task `{task}`"))
                    .help("give the folders of a `no-context` run and of a `full` run among the others")
            })
        };
        let (low, high) = (backend("no-context")?, backend("full")?);
        let others: Vec<_> =
            (0..task_runs.len()).filter(|&i| i != low && i != high).map(|i| task_runs[i]).collect();
        comparison.add_normalised(&others, &task_runs[low], &task_runs[high], &values)?;
    }
    Ok(())
}

/// A metric that can score no answer of a task (it lacks what the metric reads) is a mistake, not a 0.
fn check_scored(run: &Loaded, task: &str, records: &[SampleRecord]) -> Result<()> {
    let mut answered = records.iter().filter(|r| matches!(r.outcome, Outcome::Answered { .. })).peekable();
    let why = answered.peek().and_then(|r| r.score_error.clone());
    match why {
        Some(why) if answered.all(|r| r.score_error.is_some()) => {
            Err(Failure::usage(format!("run `{}`, task `{task}`: no answer can be scored: {why}", run.name))
                .help("choose metrics that fit the task with --metrics, or other tasks with --tasks"))
        }
        _ => Ok(()),
    }
}

/// Says where a run's own tables were made with another version of a metric than this comparison.
fn changed_metrics(run: &Loaded, set: &MetricSet, comparison: &mut Comparison) {
    for plugin in &set.plugins {
        let name = format!("metric/{}", plugin.info.id);
        let now = &plugin.info.version;
        match run.manifest.plugins.get(&name) {
            Some(used) if used.version != *now => comparison.warn(format!(
                "`{}` was scored with {name} {}, this comparison is with {now}",
                run.name, used.version
            )),
            _ => {}
        }
    }
}

fn show(args: &CompareArgs, comparison: &Comparison) -> Result<()> {
    if args.json {
        return output::print_json(comparison);
    }
    match args.format {
        CompareFormat::Csv => output::print(&comparison_csv(comparison)?)?,
        CompareFormat::Md => return output::print(&comparison_markdown(comparison)),
        CompareFormat::Text => {
            let tables: Vec<_> = comparison_text(comparison)
                .iter()
                .filter(|t| !t.is_empty())
                .map(|t| output::table(t))
                .collect();
            output::print(&tables.join("\n"))?;
            output::note(LEGEND);
        }
    }
    for note in comparison_notes(comparison) {
        output::note(&format!("note: {note}"));
    }
    Ok(())
}

const LEGEND: &str = "\
difference: run less baseline, 95 % paired bootstrap interval by document; p: paired permutation test, documents
swapped; p (Holm): corrected for all rows; d_z: Cohen's d of paired differences; detectable: smallest difference found
with 80 % power at 5 %, given so many documents";
