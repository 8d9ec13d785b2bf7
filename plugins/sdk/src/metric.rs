//! The scoring side: [`Metric`] and what it hands over.

use crate::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Values of one sample by metric id.
pub type Scores = BTreeMap<String, f64>;

/// Corpus values by metric id.
pub type Aggregate = BTreeMap<String, f64>;

/// One answered sample.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Scored {
    /// The answer as the task read it out of the response.
    pub prediction: String,
    /// The response as the backend gave it; absent where only the prediction is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<String>,
    /// Right answers, one or more.
    pub references: Vec<String>,
    /// The example's `meta`.
    #[serde(default)]
    pub meta: Map<String, Value>,
}

impl Scored {
    /// The response, or the prediction where there is none.
    pub fn raw(&self) -> &str {
        self.response.as_deref().unwrap_or(&self.prediction)
    }
}

/// One sample's values among many, for aggregation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Row {
    /// Its values; empty where the sample ended in an error, which counts as 0 and stays in the denominator.
    pub scores: Scores,
}

/// What a value is measured in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Between 0 and 1; reports multiply by 100.
    #[default]
    Proportion,
    /// A number of samples.
    Count,
    /// Anything else; reported as it is.
    Plain,
}

/// How the values of samples become one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Aggregation {
    /// The plain mean over all samples.
    #[default]
    Mean,
    /// The sum.
    Sum,
    /// The geometric mean of the means of other values of the same metric; samples have no value of their own.
    GeometricMean(Vec<String>),
}

/// What one value of a metric is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ValueInfo {
    /// Its id, e.g. `rougeL+stem`.
    pub id: String,
    /// One line.
    pub description: String,
    /// What it is measured in.
    pub unit: Unit,
    /// Whether more is better.
    pub higher_is_better: bool,
    /// How samples become one value.
    pub aggregation: Aggregation,
    /// The implementation it reproduces, e.g. `rouge_score 0.1.2`.
    pub reference: String,
    /// What an empty answer gets; above 0 only where the definition says so.
    #[serde(default)]
    pub empty: f64,
}

/// What a metric says of itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MetricInfo {
    /// Name of the family, as exported.
    pub id: String,
    /// Grows with every change that can move a value.
    pub version: String,
    /// One line.
    pub description: String,
    /// Its values, in the order to show them.
    pub values: Vec<ValueInfo>,
    /// Whether `aggregate` does no more than `values` declare. The host may then do it itself, and need not write down all
    /// rows for the plugin.
    #[serde(default)]
    pub as_declared: bool,
    /// A sample whose answer is right: every [`Unit::Proportion`] of it is 1. For conformance checks.
    pub gold: Scored,
}

/// What the host tells a metric when it makes an instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MetricOptions {
    /// The values that will be looked at; all where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub values: Option<Vec<String>>,
}

/// A metric family. Calls may come from several threads at once.
pub trait Metric: Send + Sync {
    /// What it is. Called often: cheap, and always the same.
    fn info(&self) -> MetricInfo;

    /// Is told, once and before anything else, which of its values will be looked at: the others need not be computed.
    /// Names it does not know are not its own. The default computes all.
    fn only(&mut self, values: &[String]) {
        let _ = values;
    }

    /// Scores one sample.
    ///
    /// # Errors
    /// A sample without references, or without something in `meta` that the metric needs.
    fn score(&self, sample: &Scored) -> Result<Scores>;

    /// Makes one value of many, whose rows come in the samples' order. The default does what [`MetricInfo::values`]
    /// declares; who keeps it says so with [`MetricInfo::as_declared`].
    ///
    /// # Errors
    /// Rows that cannot be aggregated.
    fn aggregate(&self, rows: &mut dyn Iterator<Item = Row>) -> Result<Aggregate> {
        Ok(aggregate_values(&self.info().values, rows))
    }
}

/// Aggregates as declared. A row without a value counts as 0; sums are taken in the rows' order, in f64, so that
/// the result does not depend on threads.
pub fn aggregate_values(values: &[ValueInfo], rows: impl IntoIterator<Item = Row>) -> Aggregate {
    let ids = values.iter().flat_map(|v| match &v.aggregation {
        Aggregation::Mean | Aggregation::Sum => std::slice::from_ref(&v.id),
        Aggregation::GeometricMean(of) => of,
    });
    let mut sums: BTreeMap<&str, f64> = ids.map(|id| (id.as_str(), 0.0)).collect();
    let mut n = 0usize;
    for row in rows {
        n += 1;
        for (id, sum) in &mut sums {
            *sum += row.scores.get(*id).copied().unwrap_or(0.0);
        }
    }
    let sum = |id: &str| sums.get(id).copied().unwrap_or(0.0);
    let mean = |id: &str| if n == 0 { 0.0 } else { sum(id) / n as f64 };
    values
        .iter()
        .map(|v| {
            let value = match &v.aggregation {
                Aggregation::Mean => mean(&v.id),
                Aggregation::Sum => sum(&v.id),
                Aggregation::GeometricMean(of) => {
                    let product: f64 = of.iter().map(|id| mean(id)).product();
                    if of.is_empty() { 0.0 } else { product.powf(1.0 / of.len() as f64) }
                }
            };
            (v.id.clone(), value)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_sample_stays_in_the_denominator() {
        let value = |id: &str, aggregation| ValueInfo { id: id.into(), aggregation, ..ValueInfo::default() };
        let values = [
            value("a", Aggregation::Mean),
            value("b", Aggregation::Mean),
            value("n", Aggregation::Sum),
            value("g", Aggregation::GeometricMean(vec!["a".into(), "b".into()])),
        ];
        let row = |a, b, n| Row {
            scores: [("a".to_owned(), a), ("b".to_owned(), b), ("n".to_owned(), n)].into_iter().collect(),
        };
        let got = aggregate_values(&values, [row(1.0, 0.5, 1.0), row(0.5, 0.25, 1.0), Row::default()]);
        assert_eq!(got["a"], 0.5);
        assert_eq!(got["b"], 0.25);
        assert_eq!(got["n"], 2.0);
        assert!((got["g"] - (0.5f64 * 0.25).sqrt()).abs() < 1e-15);
    }
}
