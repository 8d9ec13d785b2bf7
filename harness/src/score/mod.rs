//! Scores of a run, made from its samples and nothing else: no plugin is loaded, nothing is measured.
//!
//! ```text
//! SampleRecord* --> Samples --task_results--> TaskResults --+--> Results (results.json)
//!                           |                               +--> leaderboard_csv, leaderboard_markdown (one run or many)
//!                           +--TaskTimings::of--> timings_csv
//!                           +--cells--> heatmap_csv
//! SampleRecord* of several runs --Comparison::add_task--> Comparison --> comparison_text, _csv, _markdown
//! ```
//!
//! Guarantees: the same records give the same bytes, whatever order they were loaded in and whatever number of
//! threads made them; a sample that ended in an error counts as 0, stays in the denominator and is counted; no
//! time and no date is in anything but `timings.csv`. Proportions are multiplied by 100 here and nowhere before.

mod aggregate;
mod columns;
mod compare;
mod heatmap;
mod leaderboard;
mod markdown;
mod results;
mod samples;
mod slices;
mod stats;
mod timings;

#[cfg(test)]
pub(in crate::score) mod tests;

pub use aggregate::{Aggregator, Bootstrap, Rows, as_declared, task_results};
pub use compare::{
    CompareSettings, Comparison, DEFAULT_PERMUTATIONS, Difference, Normalised, TaskRun, Values,
    comparison_csv, comparison_markdown, comparison_text, notes as comparison_notes,
};
pub use heatmap::{Cell, cells, heatmap_csv};
pub use leaderboard::{LeaderboardRun, leaderboard_csv};
pub use markdown::leaderboard_markdown;
pub use results::{
    FORMAT, FirstError, MetricResult, NotBegun, Results, RunIdentity, SliceResults, TaskMeta, TaskResults,
    TokenMeans,
};
pub use samples::Samples;
pub use stats::{Clusters, DEFAULT_RESAMPLES, Statistic, interval_seed};
pub use timings::{FirstToken, TaskTimings, timings_csv};
