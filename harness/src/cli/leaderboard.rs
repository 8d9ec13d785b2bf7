//! `leaderboard`: one table of several runs.

use super::args::{LeaderboardArgs, TableFormat};
use super::output;
use crate::failure::{Exit, Failure, Result};
use crate::score::{LeaderboardRun, Results, leaderboard_csv, leaderboard_markdown};
use crate::store::RunFolder;

/// Prints the table.
///
/// # Errors
/// A folder without results.
pub(super) fn leaderboard(args: &LeaderboardArgs) -> Result<Exit> {
    let mut runs = Vec::new();
    for path in &args.runs {
        let (folder, _) = RunFolder::open(path)?;
        let file = path.join("results.json");
        let text = std::fs::read_to_string(&file).map_err(|e| {
            Failure::failed(format!("cannot read {}: {e}", file.display())).help(format!(
                "make it from the samples that are there: e2llm-bench score {}",
                path.display()
            ))
        })?;
        runs.push((folder.name(), Results::from_json(&file.display().to_string(), &text)?));
    }
    let runs: Vec<_> = runs.iter().map(|(name, results)| LeaderboardRun { name, results }).collect();
    let table = match args.format {
        TableFormat::Csv => leaderboard_csv(&runs)?,
        TableFormat::Md => leaderboard_markdown(&runs)?,
    };
    output::print(&table)?;
    Ok(Exit::Done)
}
