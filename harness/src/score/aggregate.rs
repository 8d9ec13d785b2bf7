//! From a task's samples to its results.

use super::columns::Column;
use super::results::{FirstError, MetricResult, SliceResults, TaskMeta, TaskResults, TokenMeans};
use super::samples::{Part, Samples};
use super::slices::{Slice, slices};
use super::stats::{Clusters, DEFAULT_RESAMPLES, Statistic, interval_seed, mean};
use crate::failure::{Failure, Result, did_you_mean};
use e2llm_plugin::{Aggregate, Aggregation, MetricInfo, Row, Unit, ValueInfo, aggregate_values};
use std::borrow::Cow;

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
    let places = samples.places();
    let all = Part { samples, places: &places };
    for value in &wanted {
        value.check(all).map_err(place)?;
    }
    let scope = Scope { task: &meta.task, samples, metrics, wanted: &wanted, bootstrap, aggregate };
    let first_error = |(place, message): (usize, &str)| FirstError {
        sample: samples.id(place).to_owned(),
        message: message.to_owned(),
    };
    let first_error = samples.first_error().map(first_error);
    let slices = slices(all).map(|s| scope.slice(&s)).collect::<Result<_>>().map_err(place)?;
    Ok(TaskResults { meta: meta.clone(), planned: None, first_error, slices })
}

/// Some samples, each once.
fn check_ids(samples: &Samples) -> Result<()> {
    if samples.is_empty() {
        return Err(Failure::failed("there are no samples to aggregate")
            .help("run the task first; `--resume` continues a run that was interrupted"));
    }
    let mut by_id = samples.places();
    by_id.sort_unstable_by_key(|p| (samples.id(*p), *p));
    let pairs = by_id.iter().zip(by_id.iter().skip(1));
    let twice = pairs.filter(|(a, b)| samples.id(**a) == samples.id(**b));
    if let Some((first, second)) = twice.min_by_key(|(_, second)| **second) {
        let message = format!("sample `{}` is there twice, as {first} and as {second}", samples.id(*first));
        return Err(Failure::failed(message).help("ids must be unique within a task and split"));
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
    fn columns(&self, samples: &Samples) -> Vec<Option<usize>> {
        self.sources().iter().map(|id| samples.column(id)).collect()
    }

    /// Fails where a score is unusable, or where the metric evidently never ran.
    fn check(&self, part: Part<'_>) -> Result<()> {
        let samples = part.samples;
        let any_answered = part.iter().any(|p| !samples.failed(p));
        for (source, column) in self.sources().iter().zip(self.columns(samples)) {
            let mut scores =
                part.iter().filter_map(|p| Some((samples.id(p), samples.score(column, p)?))).peekable();
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

    fn missing(&self, answered: Part<'_>) -> usize {
        let columns = self.columns(answered.samples);
        let is_missing = |p: &usize| columns.iter().any(|c| answered.samples.score(*c, *p).is_none());
        answered.iter().filter(is_missing).count()
    }
}

/// The samples' values; a sample without one counts as 0.
fn statistic(value: &ValueInfo, part: Part<'_>) -> Statistic {
    let column = |id: &String| part.scores(part.samples.column(id));
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
    part: Part<'_>,
    aggregate: &Aggregator<'_>,
) -> Result<(f64, Option<Statistic>)> {
    let wanted = Wanted { metric, value };
    wanted.check(part)?;
    let made = corpus_value(&aggregate(metric, &Rows::new(part, metric))?, &wanted)?;
    let statistic = statistic(value, part);
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
    samples: &'a Samples,
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
        let samples = self.samples;
        let part = Part { samples, places: &slice.places };
        let n_error = part.iter().filter(|p| samples.failed(*p)).count();
        let answered: Cow<'_, [usize]> = match n_error {
            0 => part.places.into(),
            _ => part.iter().filter(|p| !samples.failed(*p)).collect(),
        };
        let answered = Part { samples, places: &answered };
        let clusters = Clusters::numbered(part.iter().map(|p| samples.document(p)));
        let of = |part: Part<'_>| corpus_values(self.used(), part, self.aggregate);
        let values = of(part)?;
        let completed = match answered.len() {
            0 => None,
            n if n == part.len() => Some(values.clone()),
            _ => Some(of(answered)?),
        };
        let metric = |w: &Wanted<'_>| -> Result<MetricResult> {
            let statistic = statistic(w.value, part);
            let value = corpus_value(&values, w)?;
            let completed = completed.as_ref().map(|c| corpus_value(c, w)).transpose()?;
            let spread = Spread::of(&statistic, &clusters, value, || {
                (
                    interval_seed(self.bootstrap.seed, self.task, &w.value.id, &slice.name),
                    self.bootstrap.resamples,
                )
            });
            let missing = w.missing(answered);
            Ok(metric_result(w, value, completed, &spread, part.len(), missing))
        };
        let count = |f: fn(&Samples, usize) -> bool| answered.iter().filter(|p| f(samples, *p)).count();
        Ok(SliceResults {
            slice: slice.name.clone(),
            n: part.len(),
            groups: clusters.len(),
            n_error,
            n_null: count(Samples::is_null),
            n_truncated: count(Samples::is_truncated),
            tokens: token_means(answered),
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
    part: Part<'_>,
    aggregate: &Aggregator<'_>,
) -> Result<Aggregate> {
    let mut values = Aggregate::new();
    for metric in metrics {
        let rows = Rows::new(part, metric);
        let found = aggregate(metric, &rows).map_err(|f| f.within(format!("metric `{}`", metric.id)))?;
        values.extend(found.into_iter().filter(|(id, _)| metric.values.iter().any(|v| v.id == *id)));
    }
    Ok(values)
}

/// What a metric aggregates of samples, made one by one: they are many, and only sums come of them.
pub struct Rows<'a> {
    /// The metric's values and where they are.
    own: Vec<(&'a String, Option<usize>)>,
    part: Part<'a>,
}

impl<'a> Rows<'a> {
    fn new(part: Part<'a>, metric: &'a MetricInfo) -> Self {
        Self { own: metric.values.iter().map(|v| (&v.id, part.samples.column(&v.id))).collect(), part }
    }

    /// In order; of a sample that ended in an error there is an empty row.
    pub fn iter(&self) -> impl Iterator<Item = Row> + Clone {
        self.part.iter().map(|p| Row {
            scores: (self.own.iter())
                .filter_map(|(id, column)| Some(((*id).clone(), self.part.samples.score(*column, p)?)))
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

fn token_means(answered: Part<'_>) -> Option<TokenMeans> {
    if answered.len() == 0 {
        return None;
    }
    let mean_of = |column: &Column<u32>| {
        let values: Vec<f64> = answered.iter().map(|p| f64::from(column.get(p))).collect();
        ten_decimals(mean(&values))
    };
    let tokens = answered.samples.tokens();
    Some(TokenMeans {
        prompt: mean_of(&tokens.prompt),
        context: mean_of(&tokens.context),
        seen: mean_of(&tokens.seen),
        dropped: mean_of(&tokens.dropped),
        compressed: mean_of(&tokens.compressed),
        soft: mean_of(&tokens.soft),
        generated: mean_of(&tokens.generated),
    })
}
