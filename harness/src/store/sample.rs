//! One line of `samples/<task>.jsonl`.

use e2llm_backend::{BackendError, FinishReason, Usage};
use e2llm_plugin::{Prediction, Scores};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// A finished sample: everything scoring needs, so that it can be scored again without inference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SampleRecord {
    /// Hash of all that decides the answer: task, prompt, backend, generation settings.
    pub key: String,
    /// Position in the task's plan: the order of aggregation.
    pub index: u64,
    /// The example's id.
    pub id: String,
    /// The example's document.
    pub group: String,
    /// Values of the task's slices, e.g. `difficulty` -> `hard`.
    #[serde(default)]
    pub slices: BTreeMap<String, String>,
    /// What was asked, without the context.
    pub instruction: String,
    /// Right answers.
    pub references: Vec<String>,
    /// The example's meta, less values of over 8 KiB.
    #[serde(default)]
    pub meta: Map<String, Value>,
    /// How it went.
    pub outcome: Outcome,
    /// Values by metric id; empty where the sample ended in an error.
    #[serde(default)]
    pub scores: Scores,
    /// Why a metric could not score the answer; the sample counts as an error until it is scored again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score_error: Option<String>,
    /// The rendered prompt, with `--store-prompts` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
}

/// An answer or an error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The backend answered.
    Answered {
        /// The last turn's response.
        response: String,
        /// What the task read out of it.
        prediction: Prediction,
        /// Why generation ended.
        finish: FinishReason,
        /// What it took, all turns together.
        usage: Usage,
    },
    /// It did not: counts as 0, stays in the denominator.
    Failed(BackendError),
}

impl SampleRecord {
    /// Whether the sample ended in an error.
    pub fn failed(&self) -> bool {
        self.score_error.is_some() || matches!(self.outcome, Outcome::Failed(_))
    }
}

/// As much of a finished sample as decides whether it is done again.
#[derive(Debug, Deserialize)]
pub struct KnownSample {
    /// As [`SampleRecord::key`].
    pub key: String,
    /// As [`SampleRecord::index`].
    pub index: u64,
    outcome: KnownOutcome,
    #[serde(default)]
    score_error: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum KnownOutcome {
    Answered(IgnoredAny),
    Failed(IgnoredAny),
}

impl KnownSample {
    /// As [`SampleRecord::failed`].
    pub fn failed(&self) -> bool {
        self.score_error.is_some() || matches!(self.outcome, KnownOutcome::Failed(_))
    }
}
