//! A task's samples as far as scores are made of them: a quarter of a KiB each, whatever was asked and answered.

use crate::store::{Outcome, SampleRecord};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The slices a sample belongs to, by key.
type SliceValues = BTreeMap<String, String>;

/// A task's samples, scored, in the order of its plan.
#[derive(Debug, Clone, Default)]
pub struct Samples {
    columns: Columns,
    /// By their places.
    samples: Vec<Sample>,
}

impl Samples {
    /// Adds a sample; one at the same place is forgotten, as a batch that was redone whole asks for.
    pub fn add(&mut self, record: &SampleRecord) {
        let sample = self.columns.sample(record);
        // in order but for batches that were redone
        match self.samples.last() {
            Some(last) if last.index >= sample.index => {
                match self.samples.binary_search_by_key(&sample.index, |s| s.index) {
                    Ok(at) => self.samples[at] = sample,
                    Err(at) => self.samples.insert(at, sample),
                }
            }
            _ => self.samples.push(sample),
        }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// In order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Sample> {
        self.samples.iter()
    }

    /// Where the samples' values are.
    pub(super) fn columns(&self) -> &Columns {
        &self.columns
    }
}

impl<'a> FromIterator<&'a SampleRecord> for Samples {
    fn from_iter<T: IntoIterator<Item = &'a SampleRecord>>(records: T) -> Self {
        let mut samples = Self::default();
        records.into_iter().for_each(|r| samples.add(r));
        samples
    }
}

/// Positions of values by their ids; documents and sets of slices, each kept once.
#[derive(Debug, Clone, Default)]
pub(super) struct Columns {
    ids: Vec<String>,
    groups: BTreeSet<Arc<str>>,
    slices: BTreeSet<Arc<SliceValues>>,
}

impl Columns {
    /// A record as a sample.
    pub(super) fn sample(&mut self, record: &SampleRecord) -> Sample {
        let failed = record.failed();
        let mut scores = vec![None; self.ids.len()];
        // a score that an older version of a metric left behind in a sample that failed does not count
        for (id, score) in record.scores.iter().filter(|_| !failed) {
            match self.of(id) {
                Some(at) => scores[at] = Some(*score),
                None => {
                    self.ids.push(id.clone());
                    scores.push(Some(*score));
                }
            }
        }
        let (answer, error) = match &record.outcome {
            Outcome::Failed(e) => (None, Some(e.message.as_str())),
            Outcome::Answered { prediction, usage, .. } => {
                let answer = Answer {
                    is_null: prediction.text.is_empty(),
                    is_truncated: usage.truncation.is_some(),
                    prompt: tokens(usage.prompt_tokens),
                    context: tokens(usage.context_tokens),
                    seen: tokens(usage.context_seen),
                    dropped: tokens(usage.context_dropped),
                    compressed: tokens(usage.context_compressed),
                    soft: tokens(usage.soft_tokens),
                    generated: tokens(usage.generated_tokens),
                    time_to_first_token: usage.time_to_first_token,
                    decode_time: usage.decode_time,
                    peak_memory: usage.peak_memory,
                };
                (Some(answer), record.score_error.as_deref())
            }
        };
        let slices = match self.slices.get(&record.slices) {
            Some(known) => known.clone(),
            None => {
                let new = Arc::new(record.slices.clone());
                self.slices.insert(new.clone());
                new
            }
        };
        let group = match self.groups.get(record.group.as_str()) {
            Some(known) => known.clone(),
            None => {
                let new: Arc<str> = record.group.as_str().into();
                self.groups.insert(new.clone());
                new
            }
        };
        Sample {
            index: record.index,
            id: record.id.as_str().into(),
            group,
            slices,
            scores: scores.into(),
            answer,
            error: failed.then(|| error.unwrap_or_default().into()),
        }
    }

    /// Where a value is; nowhere where no sample had it.
    pub(super) fn of(&self, id: &str) -> Option<usize> {
        self.ids.iter().position(|c| c == id)
    }
}

/// A sample's tokens in half of the memory; no context is longer.
fn tokens(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// One sample.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    /// Position in the plan.
    pub(super) index: u64,
    pub(super) id: Box<str>,
    /// Its document.
    pub(super) group: Arc<str>,
    pub(super) slices: Arc<SliceValues>,
    /// What was answered, scored or not.
    pub(super) answer: Option<Answer>,
    /// Why it counts as 0.
    pub(super) error: Option<Box<str>>,
    scores: Box<[Option<f64>]>,
}

/// What is reported of an answer beside its scores: see [`e2llm_backend::Usage`].
#[derive(Debug, Clone)]
pub(super) struct Answer {
    /// Nothing was read out of the response.
    pub(super) is_null: bool,
    pub(super) is_truncated: bool,
    pub(super) prompt: u32,
    pub(super) context: u32,
    pub(super) seen: u32,
    pub(super) dropped: u32,
    pub(super) compressed: u32,
    pub(super) soft: u32,
    pub(super) generated: u32,
    pub(super) time_to_first_token: f64,
    pub(super) decode_time: f64,
    pub(super) peak_memory: Option<u64>,
}

impl Sample {
    pub(super) fn failed(&self) -> bool {
        self.error.is_some()
    }

    /// Its value in a column.
    pub(super) fn score(&self, column: Option<usize>) -> Option<f64> {
        self.scores.get(column?).copied().flatten()
    }
}
