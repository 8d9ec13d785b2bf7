//! Runs against a baseline, sample by sample: differences, their intervals, and whether they can be chance.
//!
//! ```text
//! TaskRun* --align--> pairs of samples --Paired--> Difference* --holm--> Comparison --> text, CSV, Markdown, JSON
//! ```

mod paired;
mod pairing;
mod tables;
#[cfg(test)]
mod tests;

pub use pairing::TaskRun;
pub use tables::{comparison_csv, comparison_markdown, comparison_text, notes};

use super::aggregate::{Aggregator, measure, shown_in, ten_decimals};
use super::samples::{Part, Samples};
use super::stats::{Clusters, Statistic, interval_seed};
use crate::failure::{Failure, Result};
use crate::store::SampleRecord;
use e2llm_plugin::{MetricInfo, ValueInfo};
use paired::{Paired, between, holm};
use pairing::align;
use serde::Serialize;

/// Permutations where nothing else is asked for.
pub const DEFAULT_PERMUTATIONS: usize = 10_000;

/// How runs are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct CompareSettings {
    /// Of the draws.
    pub seed: u64,
    /// Resamples of the intervals.
    pub resamples: usize,
    /// Swaps of the permutation test.
    pub permutations: usize,
    /// Compare runs that were asked other things, and only the samples they share.
    pub allow_differences: bool,
}

/// One value of one task, of a run and of the baseline. Values of unit `%` are multiplied by 100.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// The task's id.
    pub task: String,
    /// Its version (the baseline's).
    pub task_version: String,
    /// The split.
    pub split: String,
    /// The value's id.
    pub metric: String,
    /// The metric family and its version: both runs are scored with it.
    pub metric_version: String,
    /// `%`, `count`, or empty.
    pub unit: String,
    /// Whether more is better.
    pub higher_is_better: bool,
    /// The baseline's name.
    pub baseline: String,
    /// The run's name.
    pub run: String,
    /// The baseline's value over the shared samples.
    pub baseline_value: f64,
    /// The run's.
    pub value: f64,
    /// The run's less the baseline's.
    pub difference: f64,
    /// Lower end of its 95 % paired bootstrap interval, documents resampled.
    pub ci_low: Option<f64>,
    /// Its upper end.
    pub ci_high: Option<f64>,
    /// Two-sided p-value: paired permutation test, documents swapped.
    pub p: Option<f64>,
    /// The same by Holm's correction over all differences shown.
    pub p_holm: Option<f64>,
    /// Cohen's d_z, for paired differences.
    pub cohens_dz: Option<f64>,
    /// The smallest difference found with 80 % power at 5 %, given so many documents.
    pub detectable: Option<f64>,
    /// Samples compared.
    pub n: usize,
    /// Documents they are about.
    pub groups: usize,
    /// Of these samples, the baseline's that ended in errors and count as 0.
    pub baseline_errors: usize,
    /// The run's.
    pub run_errors: usize,
    /// What a reader should know; usually empty.
    pub note: String,
}

/// A run's value between `no-context` (0) and `full` (1).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Normalised {
    /// The task's id.
    pub task: String,
    /// Its version.
    pub task_version: String,
    /// The split.
    pub split: String,
    /// The value's id.
    pub metric: String,
    /// The metric family and its version.
    pub metric_version: String,
    /// `%`, `count`, or empty: of the three values, not of the normalised one.
    pub unit: String,
    /// The run's name.
    pub run: String,
    /// Its value.
    pub value: f64,
    /// That of `no-context`.
    pub no_context: f64,
    /// That of `full`.
    pub full: f64,
    /// `(value - no_context) / (full - no_context)`.
    pub normalised: Option<f64>,
    /// Lower end of its 95 % bootstrap interval, the three runs resampled together by document.
    pub ci_low: Option<f64>,
    /// Its upper end.
    pub ci_high: Option<f64>,
    /// Samples that all three have.
    pub n: usize,
    /// Documents they are about.
    pub groups: usize,
    /// What a reader should know; usually empty.
    pub note: String,
}

/// All that was compared.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// How.
    pub settings: CompareSettings,
    /// By task, metric and run.
    pub differences: Vec<Difference>,
    /// Where asked for.
    pub normalised: Vec<Normalised>,
    /// What a reader must know before the numbers.
    pub warnings: Vec<String>,
}

/// The values of one task to compare, and how they are made.
pub struct Values<'a> {
    /// The metric families.
    pub metrics: &'a [MetricInfo],
    /// Ids of the values, in order.
    pub wanted: &'a [String],
    /// How corpus values are made.
    pub aggregate: &'a Aggregator<'a>,
}

impl Comparison {
    /// An empty comparison.
    pub fn new(settings: CompareSettings) -> Self {
        Self { settings, differences: Vec::new(), normalised: Vec::new(), warnings: Vec::new() }
    }

    /// Compares each run of a task with the first.
    ///
    /// # Errors
    /// Runs that were asked other things, where that is not allowed; a value that no metric has or that cannot be
    /// made.
    pub fn add_task(&mut self, runs: &[TaskRun<'_>], values: &Values<'_>) -> Result<()> {
        let Some((baseline, others)) = runs.split_first() else { return Ok(()) };
        for run in others {
            let records = self.aligned(&[*baseline, *run])?;
            let clusters = clusters(&records[0]);
            for id in values.wanted {
                let [base, other] = [0, 1].map(|i| values.measure(id, &records[i]));
                let (base, other) = (base?, other?);
                self.differences.push(self.difference(baseline, run, &records, &clusters, &base, &other));
            }
        }
        Ok(())
    }

    /// Places every other run of a task between those of `no-context` and `full`.
    ///
    /// # Errors
    /// As [`Comparison::add_task`].
    pub fn add_normalised(
        &mut self,
        runs: &[TaskRun<'_>],
        no_context: &TaskRun<'_>,
        full: &TaskRun<'_>,
        values: &Values<'_>,
    ) -> Result<()> {
        for run in runs {
            let records = self.aligned(&[*run, *no_context, *full])?;
            let clusters = clusters(&records[0]);
            for id in values.wanted {
                let [value, low, high] = [0, 1, 2].map(|i| values.measure(id, &records[i]));
                let (value, low, high) = (value?, low?, high?);
                self.normalised.push(self.between(run, &clusters, &value, &low, &high));
            }
        }
        Ok(())
    }

    /// Corrects the p-values for how many there are. Call it once, when all tasks are there.
    pub fn correct(&mut self) {
        let p_values: Vec<f64> = self.differences.iter().filter_map(|d| d.p).collect();
        let mut adjusted = holm(&p_values).into_iter();
        for difference in &mut self.differences {
            difference.p_holm = difference.p.and_then(|_| adjusted.next()).map(ten_decimals);
        }
    }

    fn aligned<'a>(&mut self, runs: &[TaskRun<'a>]) -> Result<Vec<Vec<&'a SampleRecord>>> {
        let aligned = align(runs)?;
        if aligned.differences.is_empty() {
            return Ok(aligned.records);
        }
        let task = &runs[0].entry.id;
        if !self.settings.allow_differences {
            let message = format!("the runs of task `{task}` cannot be compared as they are");
            return Err(Failure::usage(message).help(format!(
                "{}\n--allow-differences compares the {} samples they share all the same",
                aligned.differences.join("\n"),
                aligned.records[0].len()
            )));
        }
        for difference in aligned.differences {
            self.warn(format!("{task}: {difference}"));
        }
        Ok(aligned.records)
    }

    /// Adds a warning, once.
    pub fn warn(&mut self, warning: String) {
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    fn difference(
        &self,
        baseline: &TaskRun<'_>,
        run: &TaskRun<'_>,
        records: &[Vec<&SampleRecord>],
        clusters: &Clusters,
        base: &Measured<'_>,
        other: &Measured<'_>,
    ) -> Difference {
        let (unit, scale) = shown_in(base.value.unit);
        let scaled = |x: f64| ten_decimals(x * scale);
        let errors = |of: &[&SampleRecord]| of.iter().filter(|r| r.failed()).count();
        let mut notes = Vec::new();
        let paired = match (&base.statistic, &other.statistic) {
            (Some(baseline), Some(run)) => Some(Paired { baseline, run, clusters }),
            _ => {
                notes.push("no interval and no test: the metric aggregates in its own way".to_owned());
                None
            }
        };
        let seed = |what: &str| interval_seed(self.settings.seed, &baseline.entry.id, &base.value.id, what);
        let interval = paired.and_then(|p| p.interval(seed("compare: interval"), self.settings.resamples));
        let p = paired.and_then(|p| p.p_value(seed("compare: permutation"), self.settings.permutations));
        let groups = clusters.len();
        if groups < 2 {
            notes.push("no interval and no test: one document".to_owned());
        } else if groups < 6 {
            // 2 of the 2^groups ways are always as extreme
            notes.push(format!(
                "with {groups} documents p cannot be below {}",
                0.5_f64.powi(groups as i32 - 1)
            ));
        }
        Difference {
            task: baseline.entry.id.clone(),
            task_version: baseline.entry.version.clone(),
            split: baseline.entry.split.clone(),
            metric: base.value.id.clone(),
            metric_version: format!("{}@{}", base.metric.id, base.metric.version),
            unit: unit.to_owned(),
            higher_is_better: base.value.higher_is_better,
            baseline: baseline.run.to_owned(),
            run: run.run.to_owned(),
            baseline_value: scaled(base.made),
            value: scaled(other.made),
            difference: scaled(other.made - base.made),
            ci_low: interval.map(|(low, _)| scaled(low)),
            ci_high: interval.map(|(_, high)| scaled(high)),
            p: p.map(ten_decimals),
            p_holm: None,
            cohens_dz: paired.and_then(|p| p.effect_size()).map(ten_decimals),
            detectable: paired.and_then(|p| p.detectable()).map(scaled),
            n: records[0].len(),
            groups,
            baseline_errors: errors(&records[0]),
            run_errors: errors(&records[1]),
            note: notes.join("; "),
        }
    }

    fn between(
        &self,
        run: &TaskRun<'_>,
        clusters: &Clusters,
        value: &Measured<'_>,
        low: &Measured<'_>,
        high: &Measured<'_>,
    ) -> Normalised {
        let (unit, scale) = shown_in(value.value.unit);
        let scaled = |x: f64| ten_decimals(x * scale);
        let seed = interval_seed(self.settings.seed, &run.entry.id, &value.value.id, "compare: normalised");
        let placed = match (&value.statistic, &low.statistic, &high.statistic) {
            (Some(v), Some(l), Some(h)) => {
                between(v, l, h, value.value.higher_is_better, clusters, seed, self.settings.resamples)
            }
            _ => paired::Between {
                value: None,
                interval: None,
                note: "not defined: the metric aggregates in its own way".into(),
            },
        };
        Normalised {
            task: run.entry.id.clone(),
            task_version: run.entry.version.clone(),
            split: run.entry.split.clone(),
            metric: value.value.id.clone(),
            metric_version: format!("{}@{}", value.metric.id, value.metric.version),
            unit: unit.to_owned(),
            run: run.run.to_owned(),
            value: scaled(value.made),
            no_context: scaled(low.made),
            full: scaled(high.made),
            normalised: placed.value.map(ten_decimals),
            ci_low: placed.interval.map(|(low, _)| ten_decimals(low)),
            ci_high: placed.interval.map(|(_, high)| ten_decimals(high)),
            n: clusters.samples(),
            groups: clusters.len(),
            note: placed.note,
        }
    }
}

/// A value of one run's samples.
struct Measured<'a> {
    metric: &'a MetricInfo,
    value: &'a ValueInfo,
    made: f64,
    statistic: Option<Statistic>,
}

impl<'a> Values<'a> {
    fn measure(&self, id: &str, records: &[&SampleRecord]) -> Result<Measured<'a>> {
        let mut all = self.metrics.iter().flat_map(|m| m.values.iter().map(move |v| (m, v)));
        let Some((metric, value)) = all.find(|(_, v)| v.id == id) else {
            return Err(Failure::usage(format!("no metric is called `{id}`")));
        };
        let mut samples = Samples::default();
        records.iter().enumerate().for_each(|(place, r)| samples.put(place, r));
        let part = Part { samples: &samples, places: &samples.places() };
        let (made, statistic) = measure(metric, value, part, self.aggregate)?;
        Ok(Measured { metric, value, made, statistic })
    }
}

/// Documents are those of the first run.
fn clusters(records: &[&SampleRecord]) -> Clusters {
    Clusters::new(records.iter().map(|r| r.group.as_str()))
}
