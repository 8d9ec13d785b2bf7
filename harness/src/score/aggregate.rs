//! From a task's samples to its results.

use super::results::{FirstError, MetricResult, SliceResults, TaskMeta, TaskResults, TokenMeans};
use super::samples::{Answer, Columns, Sample, Samples};
use super::slices::{Slice, slices};
use super::stats::{Clusters, DEFAULT_RESAMPLES, Statistic, interval_seed, mean};
use crate::failure::{Failure, Result, did_you_mean};
use e2llm_plugin::{Aggregate, Aggregation, MetricInfo, Row, Unit, ValueInfo, aggregate_values};
use std::collections::BTreeMap;

/// A metric's own way from rows (in order, errors included as empty rows) to corpus values.
pub type Aggregator<'a> = dyn Fn(&MetricInfo, &Rows<'_>) -> Result<Aggregate> + 'a;

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
pub fn as_declared(metric: &MetricInfo, rows: &Rows<'_>) -> Result<Aggregate> {
    Ok(aggregate_values(&metric.values, rows.iter()))
}

/// Aggregates the samples of one task. `wanted` names the values to report, in the order of showing; `metrics` are
/// the families they belong to.
///
/// # Errors
/// No samples; an id that is there twice; a wanted value that no metric has or that no answered sample got; a
/// primary metric that is not wanted; a value that is not finite; an error of `aggregate`.
pub fn task_results(
    meta: &TaskMeta,
    samples: &Samples,
    metrics: &[MetricInfo],
    wanted: &[String],
    bootstrap: Bootstrap,
    aggregate: &Aggregator<'_>,
) -> Result<TaskResults> {
    let place = |f: Box<Failure>| f.within(format!("scores of task `{}`", meta.task));
    check_ids(samples).map_err(place)?;
    let wanted = find_values(metrics, wanted, &meta.primary_metric).map_err(place)?;
    let all: Vec<&Sample> = samples.iter().collect();
    let columns = samples.columns();
    for value in &wanted {
        value.check(columns, &all).map_err(place)?;
    }
    let scope = Scope { task: &meta.task, columns, metrics, wanted: &wanted, bootstrap, aggregate };
    let first_error = all.iter().find_map(|s| first_error(s));
    let slices = slices(&all).iter().map(|s| scope.slice(s)).collect::<Result<_>>().map_err(place)?;
    Ok(TaskResults { meta: meta.clone(), first_error, slices })
}

fn first_error(sample: &Sample) -> Option<FirstError> {
    Some(FirstError { sample: sample.id.to_string(), message: sample.error.as_ref()?.to_string() })
}

/// Some samples, each once.
fn check_ids(samples: &Samples) -> Result<()> {
    if samples.is_empty() {
        return Err(Failure::failed("there are no samples to aggregate")
            .help("run the task first; `--resume` continues a run that was interrupted"));
    }
    let mut seen = BTreeMap::new();
    for sample in samples.iter() {
        if let Some(first) = seen.insert(&sample.id, sample.index) {
            let message =
                format!("sample `{}` is there twice, as {first} and as {}", sample.id, sample.index);
            return Err(Failure::failed(message).help("ids must be unique within a task and split"));
        }
    }
    Ok(())
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

    /// The same as columns.
    fn places(&self, columns: &Columns) -> Vec<Option<usize>> {
        self.sources().iter().map(|id| columns.of(id)).collect()
    }

    /// Fails where a score is unusable, or where the metric evidently never ran.
    fn check(&self, columns: &Columns, samples: &[&Sample]) -> Result<()> {
        let any_answered = samples.iter().any(|s| !s.failed());
        for (source, place) in self.sources().iter().zip(self.places(columns)) {
            let mut scores = samples.iter().filter_map(|s| Some((&s.id, s.score(place)?))).peekable();
            if any_answered && scores.peek().is_none() {
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

    fn missing(&self, columns: &Columns, answered: &[&Sample]) -> usize {
        let places = self.places(columns);
        answered.iter().filter(|s| places.iter().any(|p| s.score(*p).is_none())).count()
    }
}

/// The samples' values; a sample without one counts as 0.
fn statistic(value: &ValueInfo, columns: &Columns, samples: &[&Sample]) -> Statistic {
    let column = |id: &String| {
        let place = columns.of(id);
        samples.iter().map(|s| s.score(place).unwrap_or(0.0)).collect()
    };
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
    columns: &Columns,
    samples: &[&Sample],
    aggregate: &Aggregator<'_>,
) -> Result<(f64, Option<Statistic>)> {
    let wanted = Wanted { metric, value };
    wanted.check(columns, samples)?;
    let made = corpus_value(&aggregate(metric, &Rows::new(columns, samples, metric))?, &wanted)?;
    let statistic = statistic(value, columns, samples);
    let same = is_same(statistic.value(), made);
    Ok((made, same.then_some(statistic)))
}

/// A metric may aggregate in a way it cannot declare; an interval of the declared way would be of another number
/// than the one beside it.
fn is_same(declared: f64, made: f64) -> bool {
    (declared - made).abs() <= 1e-9 * made.abs().max(1.0)
}

/// What all slices of a task share.
struct Scope<'a> {
    task: &'a str,
    columns: &'a Columns,
    metrics: &'a [MetricInfo],
    wanted: &'a [Wanted<'a>],
    bootstrap: Bootstrap,
    aggregate: &'a Aggregator<'a>,
}

impl Scope<'_> {
    /// The families that a wanted value belongs to.
    fn used(&self) -> impl Iterator<Item = &MetricInfo> {
        self.metrics.iter().filter(|m| self.wanted.iter().any(|w| w.metric.id == m.id))
    }

    fn slice(&self, slice: &Slice<'_>) -> Result<SliceResults> {
        let samples = &slice.samples;
        let answered: Vec<_> = samples.iter().copied().filter(|s| !s.failed()).collect();
        let clusters = Clusters::new(samples.iter().map(|s| &*s.group));
        let of = |samples: &[&Sample]| corpus_values(self.used(), self.columns, samples, self.aggregate);
        let values = of(samples)?;
        let completed = match answered.len() {
            0 => None,
            n if n == samples.len() => Some(values.clone()),
            _ => Some(of(&answered)?),
        };
        let metric = |w: &Wanted<'_>| -> Result<MetricResult> {
            let statistic = statistic(w.value, self.columns, samples);
            let value = corpus_value(&values, w)?;
            let completed = completed.as_ref().map(|c| corpus_value(c, w)).transpose()?;
            let spread = Spread::of(&statistic, &clusters, value, || {
                (
                    interval_seed(self.bootstrap.seed, self.task, &w.value.id, &slice.name),
                    self.bootstrap.resamples,
                )
            });
            let missing = w.missing(self.columns, &answered);
            Ok(metric_result(w, value, completed, &spread, samples.len(), missing))
        };
        let count =
            |f: fn(&Answer) -> bool| answered.iter().filter(|s| s.answer.as_ref().is_some_and(f)).count();
        Ok(SliceResults {
            slice: slice.name.clone(),
            n: samples.len(),
            groups: clusters.len(),
            n_error: samples.len() - answered.len(),
            n_null: count(|a| a.is_null),
            n_truncated: count(|a| a.is_truncated),
            tokens: token_means(&answered),
            metrics: self.wanted.iter().map(metric).collect::<Result<_>>()?,
        })
    }
}

/// All corpus values of `metrics`, as they themselves make them.
///
/// # Errors
/// A metric that fails.
pub(super) fn corpus_values<'a>(
    metrics: impl IntoIterator<Item = &'a MetricInfo>,
    columns: &Columns,
    samples: &[&Sample],
    aggregate: &Aggregator<'_>,
) -> Result<Aggregate> {
    let mut values = Aggregate::new();
    for metric in metrics {
        let rows = Rows::new(columns, samples, metric);
        let found = aggregate(metric, &rows).map_err(|f| f.within(format!("metric `{}`", metric.id)))?;
        values.extend(found.into_iter().filter(|(id, _)| metric.values.iter().any(|v| v.id == *id)));
    }
    Ok(values)
}

/// What a metric aggregates of samples, made one by one: they are many, and only sums come of them.
pub struct Rows<'a> {
    /// The metric's values and where they are.
    own: Vec<(&'a String, Option<usize>)>,
    samples: &'a [&'a Sample],
}

impl<'a> Rows<'a> {
    fn new(columns: &Columns, samples: &'a [&'a Sample], metric: &'a MetricInfo) -> Self {
        Self { own: metric.values.iter().map(|v| (&v.id, columns.of(&v.id))).collect(), samples }
    }

    /// In order; of a sample that ended in an error there is an empty row.
    pub fn iter(&self) -> impl Iterator<Item = Row> + Clone {
        self.samples.iter().map(|s| Row {
            scores: (self.own.iter())
                .filter_map(|(id, place)| Some(((*id).clone(), s.score(*place)?)))
                .collect(),
        })
    }
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

fn token_means(answered: &[&Sample]) -> Option<TokenMeans> {
    if answered.is_empty() {
        return None;
    }
    let mean_of = |field: fn(&Answer) -> u32| {
        let values: Vec<f64> =
            answered.iter().filter_map(|s| s.answer.as_ref()).map(|a| f64::from(field(a))).collect();
        ten_decimals(mean(&values))
    };
    Some(TokenMeans {
        prompt: mean_of(|a| a.prompt),
        context: mean_of(|a| a.context),
        seen: mean_of(|a| a.seen),
        dropped: mean_of(|a| a.dropped),
        compressed: mean_of(|a| a.compressed),
        soft: mean_of(|a| a.soft),
        generated: mean_of(|a| a.generated),
    })
}
