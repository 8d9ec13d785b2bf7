//! A task's samples as far as scores are made of them: a tenth of a KiB each, whatever was asked and answered.

use super::columns::{Column, Texts};
use crate::names::NameHash;
use crate::store::{Outcome, SampleRecord};
use e2llm_backend::Usage;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The slices a sample belongs to, by key.
type SliceValues = BTreeMap<String, String>;

/// A task's samples, scored, each at its place: that in the task's plan.
#[derive(Debug, Clone, Default)]
pub struct Samples {
    states: Column<State>,
    /// How many there are.
    len: usize,
    /// One more than the last place.
    end: usize,
    ids: Texts,
    /// Documents by their numbers, from 1; 0 is a document without a name.
    documents: Column<u32>,
    known_documents: HashMap<NameHash, u32>,
    /// By their numbers, as `slice_sets` has them.
    slices: Column<u32>,
    slice_sets: BTreeMap<SliceValues, u32>,
    scores: Vec<ScoreColumn>,
    /// Nothing was read out of the response.
    is_null: Column<bool>,
    is_truncated: Column<bool>,
    tokens: Tokens,
    times: Times,
    /// Why samples count as 0.
    errors: BTreeMap<usize, Arc<str>>,
}

/// How far a sample came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    /// Nothing is at this place.
    #[default]
    Absent,
    /// The backend failed.
    Unanswered,
    /// A metric failed.
    Unscored,
    Scored,
}

/// A value of the samples.
#[derive(Debug, Clone, Default)]
struct ScoreColumn {
    id: String,
    values: Column<f64>,
    is_known: Column<bool>,
}

/// Tokens in half of the memory, as no context is longer: see [`Usage`].
#[derive(Debug, Clone, Default)]
pub(super) struct Tokens {
    pub(super) prompt: Column<u32>,
    pub(super) context: Column<u32>,
    pub(super) seen: Column<u32>,
    pub(super) dropped: Column<u32>,
    pub(super) compressed: Column<u32>,
    pub(super) soft: Column<u32>,
    pub(super) generated: Column<u32>,
}

impl Tokens {
    fn set(&mut self, place: usize, usage: &Usage) {
        for (column, n) in [
            (&mut self.prompt, usage.prompt_tokens),
            (&mut self.context, usage.context_tokens),
            (&mut self.seen, usage.context_seen),
            (&mut self.dropped, usage.context_dropped),
            (&mut self.compressed, usage.context_compressed),
            (&mut self.soft, usage.soft_tokens),
            (&mut self.generated, usage.generated_tokens),
        ] {
            column.set(place, u32::try_from(n).unwrap_or(u32::MAX));
        }
    }
}

/// What answers took: see [`Usage`].
#[derive(Debug, Clone, Default)]
pub(super) struct Times {
    pub(super) to_first_token: Column<f64>,
    pub(super) decode: Column<f64>,
    pub(super) peak_memory: Column<Option<u64>>,
}

impl Times {
    fn set(&mut self, place: usize, usage: &Usage) {
        self.to_first_token.set(place, usage.time_to_first_token);
        self.decode.set(place, usage.decode_time);
        self.peak_memory.set(place, usage.peak_memory);
    }
}

impl Samples {
    /// Adds a sample; one at the same place is forgotten, as a batch that was redone whole asks for.
    pub fn add(&mut self, record: &SampleRecord) {
        self.put(record.index as usize, record);
    }

    /// The same at another place than the plan's.
    pub(super) fn put(&mut self, place: usize, record: &SampleRecord) {
        self.len += usize::from(self.states.get(place) == State::Absent);
        self.end = self.end.max(place + 1);
        self.ids.set(place, &record.id);
        self.put_document(place, &record.group);
        self.put_slices(place, &record.slices);
        self.put_scores(place, record);
        let (nothing, answered) = (Usage::default(), matches!(record.outcome, Outcome::Answered { .. }));
        let (is_null, usage, error) = match &record.outcome {
            Outcome::Failed(e) => (false, &nothing, e.message.as_str()),
            Outcome::Answered { prediction, usage, .. } => {
                (prediction.text.is_empty(), usage, record.score_error.as_deref().unwrap_or_default())
            }
        };
        self.is_null.set(place, is_null);
        self.is_truncated.set(place, usage.truncation.is_some());
        self.tokens.set(place, usage);
        self.times.set(place, usage);
        self.errors.remove(&place);
        if record.failed() {
            // errors repeat
            let same = self.errors.last_key_value().filter(|(_, last)| ***last == *error);
            let error = same.map_or_else(|| error.into(), |(_, last)| last.clone());
            self.errors.insert(place, error);
        }
        self.states.set(
            place,
            match (answered, record.failed()) {
                (false, _) => State::Unanswered,
                (true, true) => State::Unscored,
                (true, false) => State::Scored,
            },
        );
    }

    fn put_document(&mut self, place: usize, name: &str) {
        let next = self.known_documents.len() as u32 + 1;
        let number =
            if name.is_empty() { 0 } else { *self.known_documents.entry(NameHash::of(name)).or_insert(next) };
        self.documents.set(place, number);
    }

    fn put_slices(&mut self, place: usize, values: &SliceValues) {
        let number = self.slice_sets.get(values).copied().unwrap_or_else(|| {
            let next = self.slice_sets.len() as u32;
            self.slice_sets.insert(values.clone(), next);
            next
        });
        self.slices.set(place, number);
    }

    fn put_scores(&mut self, place: usize, record: &SampleRecord) {
        for column in &mut self.scores {
            column.is_known.set(place, false);
        }
        // a score that an older version of a metric left behind in a sample that failed does not count
        for (id, score) in record.scores.iter().filter(|_| !record.failed()) {
            let at = self.column(id).unwrap_or_else(|| {
                self.scores.push(ScoreColumn { id: id.clone(), ..ScoreColumn::default() });
                self.scores.len() - 1
            });
            self.scores[at].values.set(place, *score);
            self.scores[at].is_known.set(place, true);
        }
    }

    /// Forgets what [`super::TaskTimings`] are made of.
    pub fn forget_times(&mut self) {
        self.times = Times::default();
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// One more than the last place.
    pub(super) fn end(&self) -> usize {
        self.end
    }

    /// Their places, in order.
    pub(super) fn places(&self) -> Vec<usize> {
        let mut places = Vec::with_capacity(self.len);
        places.extend((0..self.end).filter(|p| self.states.get(*p) != State::Absent));
        places
    }

    pub(super) fn id(&self, place: usize) -> &str {
        self.ids.get(place)
    }

    /// The number of its document; 0 where that has no name.
    pub(super) fn document(&self, place: usize) -> u32 {
        self.documents.get(place)
    }

    /// The number of the slices it belongs to.
    pub(super) fn slice_set(&self, place: usize) -> usize {
        self.slices.get(place) as usize
    }

    /// Slices by that number.
    pub(super) fn slice_sets(&self) -> Vec<&SliceValues> {
        let mut sets: Vec<_> = self.slice_sets.iter().collect();
        sets.sort_unstable_by_key(|(_, number)| **number);
        sets.into_iter().map(|(values, _)| values).collect()
    }

    /// Where a value is; nowhere where no sample had it.
    pub(super) fn column(&self, id: &str) -> Option<usize> {
        self.scores.iter().position(|c| c.id == id)
    }

    /// A sample's value in a column.
    pub(super) fn score(&self, column: Option<usize>, place: usize) -> Option<f64> {
        let column = &self.scores[column?];
        column.is_known.get(place).then(|| column.values.get(place))
    }

    /// What was answered, scored or not.
    pub(super) fn is_answered(&self, place: usize) -> bool {
        matches!(self.states.get(place), State::Unscored | State::Scored)
    }

    pub(super) fn failed(&self, place: usize) -> bool {
        self.states.get(place) != State::Scored
    }

    /// The first sample that failed, and why.
    pub(super) fn first_error(&self) -> Option<(usize, &str)> {
        self.errors.first_key_value().map(|(place, error)| (*place, &**error))
    }

    pub(super) fn is_null(&self, place: usize) -> bool {
        self.is_null.get(place)
    }

    pub(super) fn is_truncated(&self, place: usize) -> bool {
        self.is_truncated.get(place)
    }

    pub(super) fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    pub(super) fn times(&self) -> &Times {
        &self.times
    }
}

impl<'a> FromIterator<&'a SampleRecord> for Samples {
    fn from_iter<T: IntoIterator<Item = &'a SampleRecord>>(records: T) -> Self {
        let mut samples = Self::default();
        records.into_iter().for_each(|r| samples.add(r));
        samples
    }
}

/// Some of a task's samples.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) samples: &'a Samples,
    /// In order.
    pub(super) places: &'a [usize],
}

impl<'a> Part<'a> {
    pub(super) fn len(self) -> usize {
        self.places.len()
    }

    pub(super) fn iter(self) -> impl Iterator<Item = usize> + Clone + use<'a> {
        self.places.iter().copied()
    }

    /// A column of scores; a sample without one counts as 0.
    pub(super) fn scores(self, column: Option<usize>) -> Vec<f64> {
        self.iter().map(|p| self.samples.score(column, p).unwrap_or(0.0)).collect()
    }
}
