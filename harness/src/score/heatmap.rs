//! `heatmap.csv`: scores of generated tasks by length and by what else they vary, e.g. depth: the cells of a heat map.

use super::aggregate::{Aggregator, corpus_values, shown_in, ten_decimals};
use super::leaderboard::{decimals, into_text, unwritable};
use super::samples::{Part, Samples};
use super::slices::{ALL, slices};
use crate::failure::Result;
use e2llm_plugin::MetricInfo;
use serde::Serialize;

/// The slice key that is a number in heat maps.
const LENGTH: &str = "length";

/// One metric of one cell, with the table's columns in their order.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cell {
    /// Task id.
    pub task: String,
    /// The length.
    pub length: String,
    /// What else varies, e.g. `depth`.
    pub by: String,
    /// Which of its values.
    pub level: String,
    /// Metric id.
    pub metric: String,
    /// `%`, `count` or nothing.
    pub unit: &'static str,
    /// The metric over the cell's samples, errors counted as 0.
    pub value: String,
    /// Samples.
    pub n: usize,
}

/// The cells of a task: every length with every value of every other slice key; none where samples have no number as
/// their length.
///
/// # Errors
/// An error of `aggregate`.
pub fn cells(
    task: &str,
    samples: &Samples,
    metrics: &[MetricInfo],
    wanted: &[String],
    aggregate: &Aggregator<'_>,
) -> Result<Vec<Cell>> {
    let is_number = |l: &String| l.parse::<f64>().is_ok();
    let has_length: Vec<bool> =
        samples.slice_sets().iter().map(|set| set.get(LENGTH).is_some_and(is_number)).collect();
    let places = samples.places();
    let mut cells = Vec::new();
    if !places.iter().all(|p| has_length[samples.slice_set(*p)]) {
        return Ok(cells);
    }
    // slices are in the order of showing: numbers by size
    for slice in slices(Part { samples, places: &places }).filter(|s| s.name != ALL) {
        let Some((LENGTH, length)) = slice.name.split_once('=') else { continue };
        for cell in slices(Part { samples, places: &slice.places }) {
            let Some((by, level)) = cell.name.split_once('=').filter(|(key, _)| *key != LENGTH) else {
                continue;
            };
            let made = corpus_values(metrics, Part { samples, places: &cell.places }, aggregate)?;
            let values = metrics.iter().flat_map(|m| &m.values).filter(|v| wanted.contains(&v.id));
            cells.extend(values.filter_map(|v| {
                let (unit, scale) = shown_in(v.unit);
                Some(Cell {
                    task: task.to_owned(),
                    length: length.to_owned(),
                    by: by.to_owned(),
                    level: level.to_owned(),
                    metric: v.id.clone(),
                    unit,
                    value: decimals(ten_decimals(made.get(&v.id)? * scale), 4),
                    n: cell.places.len(),
                })
            }));
        }
    }
    Ok(cells)
}

/// The text of `heatmap.csv`.
///
/// # Errors
/// None in practice: everything here can be written.
pub fn heatmap_csv(cells: &[Cell]) -> Result<String> {
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
    for cell in cells {
        writer.serialize(cell).map_err(unwritable)?;
    }
    into_text(writer)
}
