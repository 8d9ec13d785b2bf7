//! `run` with several backends: the same samples, one backend after another, one table at the end.

use super::output;
use super::run::{Evaluation, out_folder, resumable};
use crate::config::RunSettings;
use crate::failure::{Exit, Failure, Result};
use crate::run::open_tasks;
use crate::score::{LeaderboardRun, Results, leaderboard_csv, leaderboard_markdown};
use crate::store::{Manifest, RunSet};
use e2llm_lm::TensorStore;

/// Evaluates each backend into a folder of its own under one parent. One that fails, because it cannot be built or
/// later, fails alone.
///
/// # Errors
/// A parent folder that cannot be used; an interrupt; at the end, the reasons of the backends that failed.
pub(super) fn run_set(runs: &[RunSettings], evaluation: &mut Evaluation<'_>) -> Result<Exit> {
    let Some(first) = runs.first() else { return Err(Failure::usage("no backend")) };
    let labels: Vec<_> = runs.iter().map(|r| r.label.clone()).collect();
    let parent = out_folder(first, "compare");
    let set = RunSet::create(&parent, first.resume, &labels)?;
    evaluation.store = Some(TensorStore::default());
    let (mut failed, mut errors) = (Vec::new(), 0);
    for (i, settings) in runs.iter().enumerate() {
        let label = &settings.label;
        if !evaluation.args.quiet {
            output::note(&format!("== {label} ({} of {})", i + 1, runs.len()));
        }
        let out = set.folder(label);
        let evaluated = open_tasks(settings, evaluation.index).and_then(|tasks| {
            evaluation.evaluate(settings, tasks, &out, &|m| same_questions(&set, label, m))
        });
        match evaluated {
            Ok(evaluated) => {
                errors += evaluated.results.errors();
                if evaluation.args.json {
                    output::print_json(&evaluated.results)?;
                }
            }
            Err(failure) if failure.exit() == Exit::Interrupted => return Err(resumable(failure, &parent)),
            Err(failure) => {
                failed.push(format!("{label}: {failure}"));
                output::note(&format!("{label} failed\n{:?}", miette::Report::new(*failure)));
            }
        }
    }
    if let Some(store) = &evaluation.store {
        let counts = store.counts();
        tracing::info!("base weights: {} tensors read, {} shared", counts.read, counts.shared);
    }
    let table = write_tables(&set)?;
    if let Some(table) = table.filter(|_| !evaluation.args.quiet && !evaluation.args.json) {
        output::print(&table)?;
        output::note(&format!("written to {}", set.path().join("leaderboard.csv").display()));
    }
    if !failed.is_empty() {
        let message = format!("{} of {} backends failed\n{}", failed.len(), runs.len(), failed.join("\n"));
        return Err(Failure::failed(message));
    }
    Ok(if errors > 0 { Exit::SampleErrors } else { Exit::Done })
}

/// Fails where a run of a set is to be asked something else than the others: their numbers do not belong into one table.
fn same_questions(set: &RunSet, label: &str, own: &Manifest) -> Result<()> {
    for (other, folder) in set.runs().into_iter().filter(|(other, _)| other != label) {
        let theirs = Manifest::read(&folder.join("manifest.toml"))?;
        for task in &own.tasks {
            let same = theirs.tasks.iter().find(|t| t.id == task.id && t.samples == task.samples);
            if same.is_some_and(|t| t.questions != task.questions) {
                let message = format!("its samples of `{}` are not those that `{other}` was asked", task.id);
                return Err(Failure::failed(message).help(format!(
                    "generated texts are measured by the first backend: name `{other}` first, or another folder with --out"
                )));
            }
        }
    }
    Ok(())
}

/// The runs of a set that have results, by label.
///
/// # Errors
/// Results that cannot be read.
pub(super) fn results_of(set: &RunSet) -> Result<Vec<(String, Results)>> {
    let mut all = Vec::new();
    for (label, folder) in set.runs() {
        let file = folder.join("results.json");
        if let Ok(text) = std::fs::read_to_string(&file) {
            let mut results = Results::from_json(&file.display().to_string(), &text)?;
            // they may be older than what is being added to the run
            results.note_unfinished(Manifest::read(&folder.join("manifest.toml"))?.planned());
            if !results.tasks.is_empty() {
                all.push((label, results));
            }
        }
    }
    Ok(all)
}

/// Writes a set's tables and gives the one for a reader; `None` where no run has results.
///
/// # Errors
/// Results that cannot be read, tables that cannot be written.
pub(super) fn write_tables(set: &RunSet) -> Result<Option<String>> {
    let results = results_of(set)?;
    let runs: Vec<_> = results.iter().map(|(name, results)| LeaderboardRun { name, results }).collect();
    if runs.is_empty() {
        return Ok(None);
    }
    set.write("leaderboard.csv", &leaderboard_csv(&runs)?)?;
    let table = leaderboard_markdown(&runs)?;
    set.write("leaderboard.md", &table)?;
    Ok(Some(table))
}
