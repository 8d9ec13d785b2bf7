//! Records and metrics made by hand.

mod results;
mod samples;
mod stats;
mod tables;

use super::*;
use crate::store::{Outcome, SampleRecord};
use e2llm_backend::{BackendError, ErrorKind, FinishReason, Usage};
use e2llm_plugin::{Aggregation, MetricInfo, Prediction, Unit, ValueInfo};

/// An answered sample of a document with its scores.
pub(in crate::score) fn answered(index: u64, group: &str, scores: &[(&str, f64)]) -> SampleRecord {
    let usage = Usage {
        prompt_tokens: 100,
        context_tokens: 1000,
        context_seen: 60,
        context_compressed: 940,
        soft_tokens: 40,
        generated_tokens: 11,
        time_to_first_token: 0.5,
        decode_time: 2.0,
        peak_memory: Some(3 << 20),
        ..Usage::default()
    };
    SampleRecord {
        key: format!("key-{index}"),
        index,
        id: format!("s{index}"),
        group: group.into(),
        slices: Default::default(),
        instruction: "why?".into(),
        references: vec!["because".into()],
        meta: Default::default(),
        outcome: Outcome::Answered {
            response: "because".into(),
            prediction: Prediction { text: "because".into(), rule: "trimmed".into() },
            finish: FinishReason::Eos,
            usage,
        },
        scores: scores.iter().map(|(id, v)| ((*id).to_owned(), *v)).collect(),
        score_error: None,
        prompt: None,
    }
}

pub(in crate::score) fn failed(index: u64, group: &str, message: &str) -> SampleRecord {
    let outcome = Outcome::Failed(BackendError::new(ErrorKind::Failed, message));
    SampleRecord { outcome, ..answered(index, group, &[]) }
}

pub(super) fn in_slice(mut record: SampleRecord, key: &str, value: &str) -> SampleRecord {
    record.slices.insert(key.into(), value.into());
    record
}

/// Values `a`, `b` (proportions), `count` (summed), `plain`, and `g`, the geometric mean of `a` and `b`.
pub(in crate::score) fn metric() -> MetricInfo {
    let value = |id: &str, unit, aggregation| ValueInfo {
        id: id.into(),
        unit,
        higher_is_better: true,
        aggregation,
        ..ValueInfo::default()
    };
    MetricInfo {
        id: "family".into(),
        version: "3".into(),
        values: vec![
            value("a", Unit::Proportion, Aggregation::Mean),
            value("b", Unit::Proportion, Aggregation::Mean),
            value("count", Unit::Count, Aggregation::Sum),
            value("plain", Unit::Plain, Aggregation::Mean),
            value("g", Unit::Proportion, Aggregation::GeometricMean(vec!["a".into(), "b".into()])),
        ],
        ..MetricInfo::default()
    }
}

pub(super) fn meta(primary: &str) -> TaskMeta {
    TaskMeta {
        task: "quality".into(),
        version: "2".into(),
        split: "test".into(),
        prompt_style: "e2llm".into(),
        prompt_hash: "0123456789abcdef".into(),
        truncation: "none".into(),
        primary_metric: primary.into(),
        sample_data: true,
        trained_on: None,
    }
}

/// Results of `records` by the declared aggregation; the first wanted value is the primary one.
pub(super) fn score(records: &[SampleRecord], wanted: &[&str]) -> crate::failure::Result<TaskResults> {
    let ids: Vec<String> = wanted.iter().map(|&s| s.to_owned()).collect();
    let samples: Samples = records.iter().collect();
    task_results(&meta(wanted[0]), &samples, &[metric()], &ids, Bootstrap::new(7), &as_declared)
}

pub(super) fn identity() -> RunIdentity {
    RunIdentity {
        version: "0.1.0".into(),
        backend: "e2llm".into(),
        model: "e2llm-135m".into(),
        fingerprint: "f00d".into(),
        warnings: vec!["adapter untrained".into()],
        seed: 7,
        resamples: DEFAULT_RESAMPLES,
        ..RunIdentity::default()
    }
}
