//! `leaderboard`: one table of several runs.

use super::args::{LeaderboardArgs, TableFormat};
use super::output;
use super::run_set::results_of;
use crate::failure::{Exit, Failure, Result};
use crate::score::{LeaderboardRun, Results, leaderboard_csv, leaderboard_markdown};
use crate::store::{RunFolder, RunSet, names_apart};

/// Prints the table; a folder of several runs stands for all of them.
///
/// # Errors
/// A folder without results.
pub(super) fn leaderboard(args: &LeaderboardArgs) -> Result<Exit> {
    let mut runs = Vec::new();
    for (path, name) in args.runs.iter().zip(names_apart(&args.runs)) {
        if let Some(set) = RunSet::open(path)? {
            let own = results_of(&set)?;
            if own.is_empty() {
                return Err(Failure::failed(format!("no run in {} has results", path.display())));
            }
            let before = if args.runs.len() > 1 { format!("{name}/") } else { String::new() };
            runs.extend(own.into_iter().map(|(label, results)| (format!("{before}{label}"), results)));
            continue;
        }
        let (_, manifest) = RunFolder::open(path)?;
        let file = path.join("results.json");
        let text = std::fs::read_to_string(&file).map_err(|e| {
            Failure::failed(format!("cannot read {}: {e}", file.display())).help(format!(
                "make it from the samples that are there: e2llm-bench score {}",
                path.display()
            ))
        })?;
        let mut results = Results::from_json(&file.display().to_string(), &text)?;
        // they may be older than what is being added to the run
        results.note_unfinished(manifest.planned());
        runs.push((name, results));
    }
    let runs: Vec<_> = runs.iter().map(|(name, results)| LeaderboardRun { name, results }).collect();
    let table = match args.format {
        TableFormat::Csv => leaderboard_csv(&runs)?,
        TableFormat::Md => leaderboard_markdown(&runs)?,
    };
    output::print(&table)?;
    if matches!(args.format, TableFormat::Csv) {
        // a task without samples has no row to say so in
        let notes = runs.iter().flat_map(|r| r.results.unfinished().into_iter().map(|n| (r.name, n)));
        notes.for_each(|(name, note)| output::note(&format!("{name}: {note}")));
    }
    Ok(Exit::Done)
}
