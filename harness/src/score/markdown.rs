//! Many runs side by side for a reader: one row per run, one column per task.

use super::leaderboard::{LeaderboardRun, check, decimals, trained_on};
use super::results::{MetricResult, SliceResults, TaskMeta, TaskResults};
use crate::failure::Result;
use std::fmt::Write as _;

/// A Markdown table of each task's primary value with its 95 % interval, and notes below it. Numbers of another
/// version, split, prompt or metric, or of sample records, are not comparable and get a column of their own.
///
/// # Errors
/// No runs, or runs without results.
pub fn leaderboard_markdown(runs: &[LeaderboardRun<'_>]) -> Result<String> {
    check(runs)?;
    let columns = columns(runs);
    let mut rows = vec![["run", "backend", "model"].map(str::to_owned).to_vec()];
    rows[0].extend(columns.iter().map(|c| heading(c, &columns)));
    for run in runs {
        let identity = &run.results.run;
        let mut row = vec![run.name.to_owned(), identity.backend.clone(), identity.model.clone()];
        row.extend(columns.iter().map(|c| {
            let same = run.results.tasks.iter().find(|task| Column(task) == *c);
            same.and_then(primary).map_or_else(|| "-".to_owned(), |(slice, metric)| cell(slice, metric))
        }));
        rows.push(row);
    }
    let mut text = String::new();
    for (i, row) in rows.iter().enumerate() {
        let cells: Vec<_> = row.iter().map(|c| escape(c)).collect();
        let _ = writeln!(text, "| {} |", cells.join(" | "));
        if i == 0 {
            let _ = writeln!(text, "|{}{}", " --- |".repeat(3), " ---: |".repeat(columns.len()));
        }
    }
    let notes = notes(runs);
    if !notes.is_empty() {
        let _ = writeln!(text, "\n{}", notes.join("\n"));
    }
    Ok(text)
}

/// A task as some run evaluated it.
struct Column<'a>(&'a TaskResults);

/// Methods differ by nature in truncation and in what they were trained on, so numbers of one column may differ in these;
/// all else must agree.
impl PartialEq for Column<'_> {
    fn eq(&self, other: &Self) -> bool {
        let meta = |c: &Self| TaskMeta { truncation: String::new(), trained_on: None, ..c.0.meta.clone() };
        let metric = |c: &Self| primary(c.0).map(|(_, m)| m.metric.clone());
        meta(self) == meta(other) && metric(self) == metric(other)
    }
}

/// The distinct columns of all runs, in order of appearance.
fn columns<'a>(runs: &[LeaderboardRun<'a>]) -> Vec<Column<'a>> {
    let mut columns = Vec::new();
    for run in runs {
        for task in &run.results.tasks {
            let column = Column(task);
            if !columns.contains(&column) {
                columns.push(column);
            }
        }
    }
    columns
}

/// The task and its metric; where the task has several columns, also all that may tell them apart.
fn heading(column: &Column<'_>, all: &[Column<'_>]) -> String {
    let meta = &column.0.meta;
    let metric = primary(column.0).map(|(_, m)| m);
    let mut heading = format!("{}@{}", meta.task, meta.version);
    if all.iter().filter(|c| c.0.meta.task == meta.task).count() > 1 {
        let hash: String = meta.prompt_hash.chars().take(8).collect();
        let family = metric.map_or("", |m| m.metric.as_str());
        let sample = if meta.sample_data { " sample records" } else { "" };
        let _ = write!(heading, " {} {} {hash} {family}{sample}", meta.split, meta.prompt_style);
    }
    let unit = metric.map(|m| m.unit.as_str()).filter(|u| !u.is_empty());
    let unit = unit.map(|u| format!(", {u}")).unwrap_or_default();
    let _ = write!(heading, " ({}{unit})", meta.primary_metric);
    heading
}

/// The whole task's primary value.
fn primary(task: &TaskResults) -> Option<(&SliceResults, &MetricResult)> {
    let all = task.slices.first()?;
    all.metrics.iter().find(|m| m.id == task.meta.primary_metric).map(|m| (all, m))
}

fn cell(slice: &SliceResults, metric: &MetricResult) -> String {
    let mut text = decimals(metric.value, 2);
    if let (Some(low), Some(high)) = (metric.ci_low, metric.ci_high) {
        let _ = write!(text, " [{}, {}]", decimals(low, 2), decimals(high, 2));
    }
    if slice.n_error > 0 {
        let _ = write!(text, " ERR({} of {})", slice.n_error, slice.n);
    }
    text
}

fn notes(runs: &[LeaderboardRun<'_>]) -> Vec<String> {
    let mut notes = Vec::new();
    for run in runs {
        let (name, identity) = (escape(run.name), &run.results.run);
        let samples: Vec<_> =
            run.results.tasks.iter().filter(|t| t.meta.sample_data).map(|t| escape(&t.meta.task)).collect();
        if !samples.is_empty() {
            let names = samples.join(", ");
            notes.push(format!("- {name}: made from the sample records, not a benchmark result: {names}"));
        }
        notes.extend(run.results.unfinished().iter().map(|text| format!("- {name}: {}", escape(text))));
        let trained = run.results.tasks.iter().map(|t| (trained_on(&t.meta), &t.meta.task));
        let trained = trained.filter(|(text, _)| !text.is_empty());
        notes.extend(trained.map(|(text, task)| format!("- {name}: {}: {text}", escape(task))));
        notes.extend(identity.warnings.iter().map(|w| format!("- {name}: {}", escape(w))));
        notes.extend(run.results.tasks.iter().filter_map(|t| {
            let error = t.first_error.as_ref()?;
            Some(format!(
                "- {name}: {}: first error, of sample {}: {}",
                escape(&t.meta.task),
                escape(&error.sample),
                escape(&error.message)
            ))
        }));
    }
    notes
}

/// Text that stays within its cell.
pub(super) fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('|', "\\|").split(['\r', '\n']).collect::<Vec<_>>().join(" ")
}
