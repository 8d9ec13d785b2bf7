//! A comparison for a reader and for a spreadsheet.

use super::{Comparison, Difference, Normalised};
use crate::failure::Result;
use crate::score::leaderboard::{decimals, into_text, unwritable};
use crate::score::markdown::escape;
use serde::Serialize;

const DIFFERENCES: [&str; 11] = [
    "task",
    "metric",
    "baseline",
    "run",
    "difference",
    "95 % interval",
    "p",
    "p (Holm)",
    "d_z",
    "detectable",
    "n (documents)",
];
const NORMALISED: [&str; 8] =
    ["task", "metric", "run", "no-context", "full", "normalised", "95 % interval", "n (documents)"];

/// Rows of cells, the heading first, of the differences and of the normalised scores; the latter may be empty.
pub fn comparison_text(comparison: &Comparison) -> [Vec<Vec<String>>; 2] {
    let heading = |names: &[&str]| names.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    let mut differences = Vec::new();
    if !comparison.differences.is_empty() {
        differences.push(heading(&DIFFERENCES));
        differences.extend(comparison.differences.iter().map(difference_cells));
    }
    let mut normalised = Vec::new();
    if !comparison.normalised.is_empty() {
        normalised.push(heading(&NORMALISED));
        normalised.extend(comparison.normalised.iter().map(normalised_cells));
    }
    [differences, normalised]
}

/// Markdown tables, and notes below them.
pub fn comparison_markdown(comparison: &Comparison) -> String {
    let mut parts = Vec::new();
    for rows in comparison_text(comparison).iter().filter(|rows| !rows.is_empty()) {
        let mut lines = Vec::new();
        for (i, row) in rows.iter().enumerate() {
            let cells: Vec<_> = row.iter().map(|c| escape(c)).collect();
            lines.push(format!("| {} |", cells.join(" | ")));
            if i == 0 {
                lines.push(format!("|{}", " --- |".repeat(row.len())));
            }
        }
        parts.push(lines.join("\n"));
    }
    let notes: Vec<_> = notes(comparison).iter().map(|n| format!("- {}", escape(n))).collect();
    if !notes.is_empty() {
        parts.push(notes.join("\n"));
    }
    parts.join("\n\n") + "\n"
}

/// What a reader must know of the numbers. What is to be said of all rows of a task is said once.
pub fn notes(comparison: &Comparison) -> Vec<String> {
    let differences = comparison.differences.iter().map(|d| [&d.task, &d.metric, &d.run, &d.note]);
    let normalised = comparison.normalised.iter().map(|n| [&n.task, &n.metric, &n.run, &n.note]);
    let mut notes = comparison.warnings.clone();
    for rows in [differences.collect::<Vec<_>>(), normalised.collect()] {
        for [task, metric, run, note] in rows.iter().filter(|[.., note]| !note.is_empty()) {
            let of_all = rows.iter().filter(|r| r[0] == *task).all(|r| r[3] == *note);
            let text =
                if of_all { format!("{task}: {note}") } else { format!("{task}, {metric}, {run}: {note}") };
            if !notes.contains(&text) {
                notes.push(text);
            }
        }
    }
    notes
}

/// One row per difference and per normalised score (RFC 4180, lines end in CRLF). Columns never change order; new
/// ones are added at the end.
///
/// # Errors
/// None in practice.
pub fn comparison_csv(comparison: &Comparison) -> Result<String> {
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
    for d in &comparison.differences {
        writer.serialize(difference_line(d)).map_err(unwritable)?;
    }
    for n in &comparison.normalised {
        writer.serialize(normalised_line(n)).map_err(unwritable)?;
    }
    into_text(writer)
}

/// The columns, in order.
#[derive(Serialize)]
struct Line<'a> {
    /// `difference`, or `normalised`.
    kind: &'a str,
    task: &'a str,
    task_version: &'a str,
    split: &'a str,
    metric: &'a str,
    metric_version: &'a str,
    unit: &'a str,
    baseline: &'a str,
    run: &'a str,
    baseline_value: String,
    full_value: String,
    value: String,
    /// The difference, or the normalised score.
    estimate: String,
    ci_low: String,
    ci_high: String,
    p: String,
    p_holm: String,
    cohens_dz: String,
    detectable: String,
    n: usize,
    groups: usize,
    baseline_errors: String,
    run_errors: String,
    note: &'a str,
}

fn difference_line(d: &Difference) -> Line<'_> {
    Line {
        kind: "difference",
        task: &d.task,
        task_version: &d.task_version,
        split: &d.split,
        metric: &d.metric,
        metric_version: &d.metric_version,
        unit: &d.unit,
        baseline: &d.baseline,
        run: &d.run,
        baseline_value: decimals(d.baseline_value, 4),
        full_value: String::new(),
        value: decimals(d.value, 4),
        estimate: decimals(d.difference, 4),
        ci_low: optional(d.ci_low, 4),
        ci_high: optional(d.ci_high, 4),
        p: optional(d.p, 6),
        p_holm: optional(d.p_holm, 6),
        cohens_dz: optional(d.cohens_dz, 4),
        detectable: optional(d.detectable, 4),
        n: d.n,
        groups: d.groups,
        baseline_errors: d.baseline_errors.to_string(),
        run_errors: d.run_errors.to_string(),
        note: &d.note,
    }
}

fn normalised_line(n: &Normalised) -> Line<'_> {
    Line {
        kind: "normalised",
        task: &n.task,
        task_version: &n.task_version,
        split: &n.split,
        metric: &n.metric,
        metric_version: &n.metric_version,
        unit: &n.unit,
        baseline: "no-context",
        run: &n.run,
        baseline_value: decimals(n.no_context, 4),
        full_value: decimals(n.full, 4),
        value: decimals(n.value, 4),
        estimate: optional(n.normalised, 4),
        ci_low: optional(n.ci_low, 4),
        ci_high: optional(n.ci_high, 4),
        p: String::new(),
        p_holm: String::new(),
        cohens_dz: String::new(),
        detectable: String::new(),
        n: n.n,
        groups: n.groups,
        baseline_errors: String::new(),
        run_errors: String::new(),
        note: &n.note,
    }
}

fn difference_cells(d: &Difference) -> Vec<String> {
    let unit = if d.unit.is_empty() { String::new() } else { format!(" ({})", d.unit) };
    let value = |name: &str, value: f64, errors: usize| {
        let errors = if errors > 0 { format!(" ERR({errors})") } else { String::new() };
        format!("{name} {}{errors}", decimals(value, 2))
    };
    let signed = if d.difference > 0.0 { "+" } else { "" };
    vec![
        d.task.clone(),
        format!("{}{unit}", d.metric),
        value(&d.baseline, d.baseline_value, d.baseline_errors),
        value(&d.run, d.value, d.run_errors),
        format!("{signed}{}", decimals(d.difference, 2)),
        interval(d.ci_low, d.ci_high, 2),
        p_value(d.p),
        p_value(d.p_holm),
        shown(d.cohens_dz, 2),
        shown(d.detectable, 2),
        format!("{} ({})", d.n, d.groups),
    ]
}

fn normalised_cells(n: &Normalised) -> Vec<String> {
    let unit = if n.unit.is_empty() { String::new() } else { format!(" ({})", n.unit) };
    vec![
        n.task.clone(),
        format!("{}{unit}", n.metric),
        format!("{} {}", n.run, decimals(n.value, 2)),
        decimals(n.no_context, 2),
        decimals(n.full, 2),
        shown(n.normalised, 3),
        interval(n.ci_low, n.ci_high, 3),
        format!("{} ({})", n.n, n.groups),
    ]
}

fn interval(low: Option<f64>, high: Option<f64>, places: usize) -> String {
    match (low, high) {
        (Some(low), Some(high)) => format!("{} to {}", decimals(low, places), decimals(high, places)),
        _ => "-".to_owned(),
    }
}

fn p_value(p: Option<f64>) -> String {
    match p {
        Some(p) if p < 0.0001 => "<0.0001".to_owned(),
        p => shown(p, 4),
    }
}

fn shown(x: Option<f64>, places: usize) -> String {
    x.map_or_else(|| "-".to_owned(), |x| decimals(x, places))
}

fn optional(x: Option<f64>, places: usize) -> String {
    x.map(|x| decimals(x, places)).unwrap_or_default()
}
