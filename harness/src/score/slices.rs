//! The parts of a task that are reported apart: all of it, then e.g. `difficulty=hard`.

use super::samples::Sample;
use std::cmp::Ordering;
use std::collections::BTreeSet;

/// The name of the slice that is everything.
pub(super) const ALL: &str = "all";

/// One slice: its name and its samples, in order.
pub(super) struct Slice<'a> {
    pub(super) name: String,
    pub(super) samples: Vec<&'a Sample>,
}

/// All slices of samples: the whole first, then by name and by value (numbers by size, before words).
pub(super) fn slices<'a>(samples: &[&'a Sample]) -> Vec<Slice<'a>> {
    let keys: BTreeSet<(&str, Value<'_>)> =
        samples.iter().flat_map(|r| r.slices.iter()).map(|(k, v)| (k.as_str(), Value(v))).collect();
    let mut all = vec![Slice { name: ALL.to_owned(), samples: samples.to_vec() }];
    all.extend(keys.into_iter().map(|(key, Value(value))| Slice {
        name: format!("{key}={value}"),
        samples: samples.iter().copied().filter(|r| r.slices.get(key).is_some_and(|v| v == value)).collect(),
    }));
    all
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
