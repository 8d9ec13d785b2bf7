//! A metric that panics at the prediction `panic`, and when it aggregates a corpus of two samples.

use e2llm_plugin::{Aggregate, Metric, MetricInfo, Result, Row, Scored, Scores, ValueInfo, aggregate_values};

/// The metric.
#[derive(Debug, Default)]
pub struct TouchyMetric;

e2llm_plugin::export_metric! {
    TouchyMetric, id: "touchy-metric", description: "Panics where it is told to", provides: "calm"
}

impl Metric for TouchyMetric {
    fn info(&self) -> MetricInfo {
        let value = ValueInfo { id: "calm".into(), higher_is_better: true, ..ValueInfo::default() };
        MetricInfo {
            id: "touchy-metric".into(),
            version: "1".into(),
            description: "Panics where it is told to".into(),
            values: vec![value],
            as_declared: false,
            gold: Scored { prediction: "x".into(), references: vec!["x".into()], ..Scored::default() },
        }
    }

    fn score(&self, sample: &Scored) -> Result<Scores> {
        assert!(sample.prediction != "panic", "touched in score");
        Ok(Scores::from([("calm".to_owned(), 1.0)]))
    }

    fn aggregate(&self, rows: &mut dyn Iterator<Item = Row>) -> Result<Aggregate> {
        let rows: Vec<Row> = rows.collect();
        assert!(rows.len() != 2, "touched in aggregate");
        Ok(aggregate_values(&self.info().values, rows))
    }
}
