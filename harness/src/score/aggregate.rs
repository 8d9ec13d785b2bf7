//! From a task's samples to its results.

use super::results::{FirstError, MetricResult, SliceResults, TaskMeta, TaskResults, TokenMeans};
use super::slices::{Slice, slices};
use super::stats::{Clusters, DEFAULT_RESAMPLES, Statistic, interval_seed, mean};
use crate::failure::{Failure, Result, did_you_mean};
use crate::store::{Outcome, SampleRecord};
use e2llm_backend::Usage;
use e2llm_plugin::{Aggregate, Aggregation, MetricInfo, Row, Unit, ValueInfo, aggregate_values};
use std::collections::BTreeMap;

/// A metric's own way from rows (in order, errors included as empty rows) to corpus values.
pub type Aggregator<'a> = dyn Fn(&MetricInfo, &[Row]) -> Result<Aggregate> + 'a;

/// How intervals are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bootstrap {
    /// The run's seed.
    pub seed: u64,
    /// How often groups are drawn.
    pub resamples: usize,
}

impl Bootstrap {
    /// Intervals of a run with this seed, with [`DEFAULT_RESAMPLES`].
    pub fn new(seed: u64) -> Self {
        Self { seed, resamples: DEFAULT_RESAMPLES }
    }
}

/// The [`Aggregator`] of metrics that aggregate as they declare, for when no plugin is at hand.
///
/// # Errors
/// None.
pub fn as_declared(metric: &MetricInfo, rows: &[Row]) -> Result<Aggregate> {
    Ok(aggregate_values(&metric.values, rows))
}

/// Aggregates the samples of one task. `wanted` names the values to report, in the order of showing; `metrics` are
/// the families they belong to. The order of `records` does not matter.
///
/// # Errors
/// No records; a sample that is there twice; a wanted value that no metric has or that no answered sample got; a
/// primary metric that is not wanted; a value that is not finite; an error of `aggregate`.
pub fn task_results(
    meta: &TaskMeta,
    records: &[SampleRecord],
    metrics: &[MetricInfo],
    wanted: &[String],
    bootstrap: Bootstrap,
    aggregate: &Aggregator<'_>,
) -> Result<TaskResults> {
    let place = |f: Box<Failure>| f.within(format!("scores of task `{}`", meta.task));
    let records = in_order(records).map_err(place)?;
    let wanted = find_values(metrics, wanted, &meta.primary_metric).map_err(place)?;
    for value in &wanted {
        value.check(&records).map_err(place)?;
    }
    let scope = Scope { task: &meta.task, metrics, wanted: &wanted, bootstrap, aggregate };
    let first_error = records.iter().find_map(|r| first_error(r));
    let slices = slices(&records).iter().map(|s| scope.slice(s)).collect::<Result<_>>().map_err(place)?;
    Ok(TaskResults { meta: meta.clone(), first_error, slices })
}

fn first_error(record: &SampleRecord) -> Option<FirstError> {
    let message = match (&record.outcome, &record.score_error) {
        (Outcome::Failed(e), _) => &e.message,
        (Outcome::Answered { .. }, Some(e)) => e,
        (Outcome::Answered { .. }, None) => return None,
    };
    Some(FirstError { sample: record.id.clone(), message: message.clone() })
}

/// Records by index, each sample once.
fn in_order(records: &[SampleRecord]) -> Result<Vec<&SampleRecord>> {
    if records.is_empty() {
        return Err(Failure::failed("there are no samples to aggregate")
            .help("run the task first; `--resume` continues a run that was interrupted"));
    }
    let mut sorted: Vec<_> = records.iter().collect();
    sorted.sort_by(|a, b| a.index.cmp(&b.index).then_with(|| a.id.cmp(&b.id)));
    let mut seen = BTreeMap::new();
    for record in &sorted {
        if let Some(first) = seen.insert(&record.id, record.index) {
            let message =
                format!("sample `{}` is there twice, as {first} and as {}", record.id, record.index);
            return Err(Failure::failed(message).help("ids must be unique within a task and split"));
        }
    }
    Ok(sorted)
}

/// A value to report and the family it belongs to.
struct Wanted<'a> {
    metric: &'a MetricInfo,
    value: &'a ValueInfo,
}

fn find_values<'a>(metrics: &'a [MetricInfo], ids: &[String], primary: &str) -> Result<Vec<Wanted<'a>>> {
    let all = || metrics.iter().flat_map(|m| m.values.iter().map(move |value| Wanted { metric: m, value }));
    let mut wanted: Vec<Wanted<'a>> = Vec::with_capacity(ids.len());
    for id in ids {
        if wanted.iter().any(|w| w.value.id == *id) {
            return Err(Failure::usage(format!("metric `{id}` is asked for twice")));
        }
        let Some(found) = all().find(|w| w.value.id == *id) else {
            let help = did_you_mean(id, all().map(|w| w.value.id.as_str()));
            return Err(Failure::usage(format!("no metric is called `{id}`")).help(help));
        };
        wanted.push(found);
    }
    if !ids.iter().any(|id| id == primary) {
        let message = format!("the primary metric `{primary}` is not among the metrics to report");
        return Err(Failure::usage(message).help(format!("those are: {}", ids.join(", "))));
    }
    Ok(wanted)
}

impl Wanted<'_> {
    /// Ids of the samples' values that this one is made of.
    fn sources(&self) -> &[String] {
        match &self.value.aggregation {
            Aggregation::GeometricMean(of) => of,
            Aggregation::Mean | Aggregation::Sum => std::slice::from_ref(&self.value.id),
        }
    }

    /// Fails where a score is unusable, or where the metric evidently never ran.
    fn check(&self, records: &[&SampleRecord]) -> Result<()> {
        let answered: Vec<_> = records.iter().filter(|r| !r.failed()).collect();
        for source in self.sources() {
            let mut scores = answered.iter().filter_map(|r| Some((&r.id, *r.scores.get(source)?))).peekable();
            if !answered.is_empty() && scores.peek().is_none() {
                return Err(Failure::failed(format!("no answered sample has a value `{source}`"))
                    .help("score the samples with `e2llm-bench score RUN`"));
            }
            if let Some((sample, score)) = scores.find(|(_, s)| !s.is_finite()) {
                return Err(Failure::failed(format!(
                    "`{source}` of sample `{sample}` is {score}, not a number"
                )));
            }
        }
        Ok(())
    }

    fn missing(&self, records: &[&SampleRecord]) -> usize {
        let lacks = |r: &&&SampleRecord| self.sources().iter().any(|id| !r.scores.contains_key(id));
        records.iter().filter(|r| !r.failed()).filter(lacks).count()
    }
}

/// The samples' values; a sample without one counts as 0.
fn statistic(value: &ValueInfo, records: &[&SampleRecord]) -> Statistic {
    let column = |id: &String| records.iter().map(|r| score(r, id)).collect();
    match &value.aggregation {
        Aggregation::Mean => Statistic::Mean(column(&value.id)),
        Aggregation::Sum => Statistic::Sum(column(&value.id)),
        Aggregation::GeometricMean(of) => Statistic::GeometricMean(of.iter().map(column).collect()),
    }
}

/// One value of samples, errors included: as its metric makes it, and as a statistic where that is the same.
///
/// # Errors
/// An unusable score; a metric that fails or makes no such value.
pub(super) fn measure(
    metric: &MetricInfo,
    value: &ValueInfo,
    records: &[&SampleRecord],
    aggregate: &Aggregator<'_>,
) -> Result<(f64, Option<Statistic>)> {
    let wanted = Wanted { metric, value };
    wanted.check(records)?;
    let rows: Vec<Row> = records.iter().map(|r| row(r, metric)).collect();
    let made = corpus_value(&aggregate(metric, &rows)?, &wanted)?;
    let statistic = statistic(value, records);
    let same = is_same(statistic.value(), made);
    Ok((made, same.then_some(statistic)))
}

/// A metric may aggregate in a way it cannot declare; an interval of the declared way would be of another number
/// than the one beside it.
fn is_same(declared: f64, made: f64) -> bool {
    (declared - made).abs() <= 1e-9 * made.abs().max(1.0)
}

/// A sample's value. An error counts as 0 even where an older version of a metric left a score behind.
fn score(record: &SampleRecord, id: &str) -> f64 {
    if record.failed() { 0.0 } else { record.scores.get(id).copied().unwrap_or(0.0) }
}

/// What all slices of a task share.
struct Scope<'a> {
    task: &'a str,
    metrics: &'a [MetricInfo],
    wanted: &'a [Wanted<'a>],
    bootstrap: Bootstrap,
    aggregate: &'a Aggregator<'a>,
}

impl Scope<'_> {
    fn slice(&self, slice: &Slice<'_>) -> Result<SliceResults> {
        let records = &slice.records;
        let answered: Vec<_> = records.iter().copied().filter(|r| !r.failed()).collect();
        let clusters = Clusters::new(records.iter().map(|r| r.group.as_str()));
        let values = self.corpus_values(records)?;
        let completed = match answered.len() {
            0 => None,
            n if n == records.len() => Some(values.clone()),
            _ => Some(self.corpus_values(&answered)?),
        };
        let metric = |w: &Wanted<'_>| -> Result<MetricResult> {
            let statistic = statistic(w.value, records);
            let value = corpus_value(&values, w)?;
            let completed = completed.as_ref().map(|c| corpus_value(c, w)).transpose()?;
            let spread = Spread::of(&statistic, &clusters, value, || {
                (
                    interval_seed(self.bootstrap.seed, self.task, &w.value.id, &slice.name),
                    self.bootstrap.resamples,
                )
            });
            Ok(metric_result(w, value, completed, &spread, records.len(), w.missing(&answered)))
        };
        let count = |f: fn(&SampleRecord) -> bool| answered.iter().filter(|r| f(r)).count();
        Ok(SliceResults {
            slice: slice.name.clone(),
            n: records.len(),
            groups: clusters.len(),
            n_error: records.len() - answered.len(),
            n_null: count(
                |r| matches!(&r.outcome, Outcome::Answered { prediction, .. } if prediction.text.is_empty()),
            ),
            n_truncated: count(
                |r| matches!(&r.outcome, Outcome::Answered { usage, .. } if usage.truncation.is_some()),
            ),
            tokens: token_means(&answered),
            metrics: self.wanted.iter().map(metric).collect::<Result<_>>()?,
        })
    }

    /// All corpus values, as the metrics themselves make them.
    fn corpus_values(&self, records: &[&SampleRecord]) -> Result<Aggregate> {
        let mut values = Aggregate::new();
        for metric in self.metrics {
            if !self.wanted.iter().any(|w| w.metric.id == metric.id) {
                continue;
            }
            let rows: Vec<Row> = records.iter().map(|r| row(r, metric)).collect();
            let found =
                (self.aggregate)(metric, &rows).map_err(|f| f.within(format!("metric `{}`", metric.id)))?;
            values.extend(found.into_iter().filter(|(id, _)| metric.values.iter().any(|v| v.id == *id)));
        }
        Ok(values)
    }
}

/// What a metric aggregates of a sample: nothing where it ended in an error.
fn row(record: &SampleRecord, metric: &MetricInfo) -> Row {
    if record.failed() {
        return Row::default();
    }
    let own = |v: &ValueInfo| Some((v.id.clone(), *record.scores.get(&v.id)?));
    Row { scores: metric.values.iter().filter_map(own).collect() }
}

fn corpus_value(values: &Aggregate, wanted: &Wanted<'_>) -> Result<f64> {
    let (id, metric) = (&wanted.value.id, &wanted.metric.id);
    match values.get(id) {
        Some(value) if value.is_finite() => Ok(*value),
        Some(value) => {
            Err(Failure::failed(format!("metric `{metric}` made {value} of `{id}`, not a number")))
        }
        None => Err(Failure::failed(format!("metric `{metric}` made no value of `{id}`"))),
    }
}

/// How sure a value is, and why it is not known where it is not.
struct Spread {
    stderr: Option<f64>,
    interval: Option<(f64, f64)>,
    note: &'static str,
}

impl Spread {
    fn of(
        statistic: &Statistic,
        clusters: &Clusters,
        value: f64,
        bootstrap: impl FnOnce() -> ([u8; 32], usize),
    ) -> Self {
        let absent = |note| Self { stderr: None, interval: None, note };
        if !is_same(statistic.value(), value) {
            return absent("no interval: the metric aggregates in its own way");
        }
        if clusters.len() < 2 {
            return absent("no interval: one document");
        }
        let (seed, resamples) = bootstrap();
        let interval = statistic.interval(clusters, seed, resamples);
        let note = if interval.is_some() { "" } else { "no interval: it cannot be resampled" };
        Self { stderr: statistic.standard_error(clusters), interval, note }
    }
}

fn metric_result(
    wanted: &Wanted<'_>,
    value: f64,
    completed: Option<f64>,
    spread: &Spread,
    n: usize,
    n_missing: usize,
) -> MetricResult {
    let (unit, scale) = shown_in(wanted.value.unit);
    let scaled = |x: f64| ten_decimals(x * scale);
    let missing = (n_missing > 0).then(|| format!("{n_missing} answered without this value"));
    let notes: Vec<_> =
        missing.into_iter().chain((!spread.note.is_empty()).then(|| spread.note.to_owned())).collect();
    MetricResult {
        id: wanted.value.id.clone(),
        metric: format!("{}@{}", wanted.metric.id, wanted.metric.version),
        unit: unit.to_owned(),
        higher_is_better: wanted.value.higher_is_better,
        value: scaled(value),
        value_completed: completed.map(scaled),
        stderr: spread.stderr.map(scaled),
        ci_low: spread.interval.map(|(low, _)| scaled(low)),
        ci_high: spread.interval.map(|(_, high)| scaled(high)),
        n,
        n_missing,
        note: notes.join("; "),
    }
}

/// A unit as it is written, and what values are multiplied by.
pub(super) fn shown_in(unit: Unit) -> (&'static str, f64) {
    match unit {
        Unit::Proportion => ("%", 100.0),
        Unit::Count => ("count", 1.0),
        Unit::Plain => ("", 1.0),
    }
}

/// Rounded to 10 decimals, so that a last bit (of a conversion, of another processor's `powf`) does not show; -0
/// becomes 0.
pub(super) fn ten_decimals(x: f64) -> f64 {
    format!("{x:.10}").parse::<f64>().unwrap_or(x) + 0.0
}

fn token_means(answered: &[&SampleRecord]) -> Option<TokenMeans> {
    if answered.is_empty() {
        return None;
    }
    let mean_of = |field: fn(&Usage) -> u64| {
        let values: Vec<f64> = (answered.iter())
            .filter_map(|r| match &r.outcome {
                Outcome::Answered { usage, .. } => Some(field(usage) as f64),
                Outcome::Failed(_) => None,
            })
            .collect();
        ten_decimals(mean(&values))
    };
    Some(TokenMeans {
        prompt: mean_of(|u| u.prompt_tokens),
        context: mean_of(|u| u.context_tokens),
        seen: mean_of(|u| u.context_seen),
        dropped: mean_of(|u| u.context_dropped),
        compressed: mean_of(|u| u.context_compressed),
        soft: mean_of(|u| u.soft_tokens),
        generated: mean_of(|u| u.generated_tokens),
    })
}
