//! The parts of a task that are reported apart: all of it, then e.g. `difficulty=hard`.

use super::samples::Part;
use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeSet;

/// The name of the slice that is everything.
pub(super) const ALL: &str = "all";

/// One slice: its name and its samples' places, in order.
pub(super) struct Slice<'a> {
    pub(super) name: String,
    pub(super) places: Cow<'a, [usize]>,
}

/// All slices of samples, made one by one: the whole first, then by name and by value (numbers by size, before words).
pub(super) fn slices(part: Part<'_>) -> impl Iterator<Item = Slice<'_>> {
    let sets = part.samples.slice_sets();
    let mut is_used = vec![false; sets.len()];
    part.iter().for_each(|p| is_used[part.samples.slice_set(p)] = true);
    let used = sets.iter().zip(&is_used).filter(|(_, used)| **used).flat_map(|(set, _)| set.iter());
    let keys: BTreeSet<(&str, Value<'_>)> = used.map(|(k, v)| (k.as_str(), Value(v))).collect();
    let of = move |(key, Value(value)): (&str, Value<'_>)| {
        let has: Vec<bool> = sets.iter().map(|set| set.get(key).is_some_and(|v| v == value)).collect();
        Slice {
            name: format!("{key}={value}"),
            places: part.iter().filter(|p| has[part.samples.slice_set(*p)]).collect(),
        }
    };
    let all = Slice { name: ALL.to_owned(), places: part.places.into() };
    std::iter::once(all).chain(keys.into_iter().map(of))
}

/// A slice's value in the order of showing: 4000 comes before 16000.
struct Value<'a>(&'a str);

impl Value<'_> {
    fn number(&self) -> Option<f64> {
        self.0.parse().ok().filter(|x: &f64| x.is_finite())
    }
}

impl Ord for Value<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_number = match (self.number(), other.number()) {
            (Some(a), Some(b)) => a.total_cmp(&b),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => Ordering::Equal,
        };
        by_number.then_with(|| self.0.cmp(other.0))
    }
}

impl PartialOrd for Value<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Value<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Value<'_> {}
