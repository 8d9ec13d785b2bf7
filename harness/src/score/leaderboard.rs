//! `leaderboard.csv`: one row per run, task, slice and value (RFC 4180, lines end in CRLF).
//!
//! Columns never change order; new ones are added at the end. Numbers have 4 decimals, an absent one is an empty
//! field. Rows are in the runs' order, tasks in the run's, slices with `all` first, values as declared.

use super::results::{MetricResult, Results, SliceResults, TaskMeta, TaskResults};
use crate::failure::{Failure, Result};
use serde::Serialize;

/// A run in a leaderboard.
#[derive(Debug, Clone, Copy)]
pub struct LeaderboardRun<'a> {
    /// What it is called there: [`Results::run_id`] in a run's own folder, so that the file does not depend on where
    /// the folder is; a name the user knows when runs are set side by side.
    pub name: &'a str,
    /// Its results.
    pub results: &'a Results,
}

/// The columns, in order.
#[derive(Serialize)]
struct Line<'a> {
    /// The run's name.
    run: &'a str,
    /// Registry name of the backend.
    backend: &'a str,
    /// Model name or path.
    model: &'a str,
    /// Task id.
    task: &'a str,
    /// Its version.
    task_version: &'a str,
    /// Split evaluated.
    split: &'a str,
    /// `all`, or e.g. `difficulty=hard`.
    slice: &'a str,
    /// Value id, e.g. `rougeL+stem`.
    metric: &'a str,
    /// Metric family and version, e.g. `rouge@1`.
    metric_version: &'a str,
    /// Whether the task ranks by this value.
    primary: bool,
    /// `%` (multiplied by 100), `count`, or empty.
    unit: &'a str,
    /// The value; errors count as 0.
    value: String,
    /// Standard error, clustered by document.
    stderr: String,
    /// Lower end of the 95 % interval.
    ci_low: String,
    /// Upper end.
    ci_high: String,
    /// Samples in the denominator.
    n: usize,
    /// Of these, ended in an error.
    n_error: usize,
    /// Of these, answered with nothing the task could read.
    n_null: usize,
    /// Of these, answered after the context was cut.
    n_truncated: usize,
    /// The prompt's wording.
    prompt_style: &'a str,
    /// Hash of its template.
    prompt_hash: &'a str,
    /// Truncation policy.
    truncation: &'a str,
    /// Mean positions read before the first own token.
    prompt_tokens: String,
    /// Mean tokens of the context.
    context_tokens: String,
    /// Mean tokens of it that were compressed.
    compressed_tokens: String,
    /// Mean soft tokens they became.
    soft_tokens: String,
    /// Whether the records are the samples that ship with the tasks.
    sample_data: bool,
    /// What a reader must know, e.g. that an adapter is untrained.
    note: String,
}

/// The text of a leaderboard of one or more runs.
///
/// # Errors
/// No runs, or runs without results.
pub fn leaderboard_csv(runs: &[LeaderboardRun<'_>]) -> Result<String> {
    check(runs)?;
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
    for run in runs {
        for task in &run.results.tasks {
            for slice in &task.slices {
                for metric in &slice.metrics {
                    writer.serialize(line(run, task, slice, metric)).map_err(unwritable)?;
                }
            }
        }
    }
    into_text(writer)
}

fn line<'a>(
    run: &LeaderboardRun<'a>,
    task: &'a TaskResults,
    slice: &'a SliceResults,
    metric: &'a MetricResult,
) -> Line<'a> {
    let (identity, meta) = (&run.results.run, &task.meta);
    let tokens = slice.tokens.as_ref();
    let mut notes: Vec<&str> = identity.warnings.iter().map(String::as_str).collect();
    let (unfinished, trained_on) = (task.unfinished().unwrap_or_default(), trained_on(meta));
    notes.extend([unfinished.as_str(), &trained_on, &metric.note]);
    notes.retain(|n| !n.is_empty());
    Line {
        run: run.name,
        backend: &identity.backend,
        model: &identity.model,
        task: &meta.task,
        task_version: &meta.version,
        split: &meta.split,
        slice: &slice.slice,
        metric: &metric.id,
        metric_version: &metric.metric,
        primary: metric.id == meta.primary_metric,
        unit: &metric.unit,
        value: decimals(metric.value, 4),
        stderr: optional(metric.stderr),
        ci_low: optional(metric.ci_low),
        ci_high: optional(metric.ci_high),
        n: metric.n,
        n_error: slice.n_error,
        n_null: slice.n_null,
        n_truncated: slice.n_truncated,
        prompt_style: &meta.prompt_style,
        prompt_hash: &meta.prompt_hash,
        truncation: &meta.truncation,
        prompt_tokens: optional(tokens.map(|t| t.prompt)),
        context_tokens: optional(tokens.map(|t| t.context)),
        compressed_tokens: optional(tokens.map(|t| t.compressed)),
        soft_tokens: optional(tokens.map(|t| t.soft)),
        sample_data: meta.sample_data,
        note: notes.join("; "),
    }
}

/// Says how many samples are no test of a model; nothing where there are none.
pub(super) fn trained_on(meta: &TaskMeta) -> String {
    match meta.trained_on {
        Some(n) if n > 0 => format!("the model was trained on the texts of {n} of the task's samples"),
        _ => String::new(),
    }
}

/// Fails where there is nothing to show.
pub(super) fn check(runs: &[LeaderboardRun<'_>]) -> Result<()> {
    if runs.is_empty() {
        return Err(Failure::usage("a leaderboard needs at least one run"));
    }
    match runs.iter().find(|r| r.results.tasks.is_empty()) {
        Some(run) => Err(Failure::failed(format!("run `{}` has no results to show", run.name))
            .help("run its tasks, then `e2llm-bench score RUN`")),
        None => Ok(()),
    }
}

/// A number with so many decimals, never `-0`.
pub(super) fn decimals(x: f64, places: usize) -> String {
    let text = format!("{x:.places$}");
    match text.strip_prefix('-') {
        Some(digits) if digits.bytes().all(|b| b == b'0' || b == b'.') => digits.to_owned(),
        _ => text,
    }
}

fn optional(x: Option<f64>) -> String {
    x.map(|x| decimals(x, 4)).unwrap_or_default()
}

/// The finished text of a CSV writer.
pub(super) fn into_text(writer: csv::Writer<Vec<u8>>) -> Result<String> {
    let bytes = writer.into_inner().map_err(|e| unwritable(e.into_error()))?;
    String::from_utf8(bytes).map_err(unwritable)
}

pub(super) fn unwritable(error: impl std::fmt::Display) -> Box<Failure> {
    Failure::failed(format!("a table cannot be written as CSV: {error}"))
}
