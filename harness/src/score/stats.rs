//! Means, standard errors and intervals of samples that come in groups (documents).
//!
//! Questions about one document are not independent, so documents are what is drawn, not questions. All sums are
//! in f64 and in the samples' order.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Resamples of the bootstrap where nothing else is asked for.
pub const DEFAULT_RESAMPLES: usize = 2_000;

/// Which sample belongs to which group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clusters {
    /// Group of each sample; groups are numbered as they first appear.
    of: Vec<u32>,
    /// Samples of each group.
    sizes: Vec<u32>,
}

impl Clusters {
    /// Numbers the groups of samples given in order. An empty name is a group of its own.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut known = BTreeMap::new();
        let names = names.into_iter().map(|name| (!name.is_empty()).then_some(name));
        Self::collect(names, |name, next| *known.entry(name).or_insert(next))
    }

    /// The same of groups that are numbered from 1; 0 is a group of its own.
    pub(super) fn numbered(groups: impl IntoIterator<Item = u32>) -> Self {
        let mut known = Vec::new();
        let groups = groups.into_iter().map(|number| (number > 0).then_some(number as usize));
        Self::collect(groups, |number, next| {
            known.resize(known.len().max(number + 1), None);
            *known[number].get_or_insert(next)
        })
    }

    /// `group_of` gives the group of a name, which is the next one where the name is new.
    fn collect<K>(names: impl Iterator<Item = Option<K>>, mut group_of: impl FnMut(K, u32) -> u32) -> Self {
        let mut clusters = Self { of: Vec::new(), sizes: Vec::new() };
        for name in names {
            let next = clusters.sizes.len() as u32;
            let group = name.map_or(next, |name| group_of(name, next));
            if group == next {
                clusters.sizes.push(0);
            }
            clusters.sizes[group as usize] += 1;
            clusters.of.push(group);
        }
        clusters
    }

    /// How many groups.
    pub fn len(&self) -> usize {
        self.sizes.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.sizes.is_empty()
    }

    /// How many samples.
    pub fn samples(&self) -> usize {
        self.of.len()
    }

    /// The sum of each group's values.
    pub(super) fn sums(&self, values: &[f64]) -> Vec<f64> {
        let mut sums = vec![0.0; self.len()];
        for (&group, value) in self.of.iter().zip(values) {
            sums[group as usize] += value;
        }
        sums
    }
}

/// A corpus value made of samples' values. Every column is as long as there are samples.
#[derive(Debug, Clone, PartialEq)]
pub enum Statistic {
    /// The mean of one column.
    Mean(Vec<f64>),
    /// The sum of one column.
    Sum(Vec<f64>),
    /// The geometric mean of the means of several columns.
    GeometricMean(Vec<Vec<f64>>),
    /// The sum of the first column over that of the second, e.g. nats over tokens.
    Ratio([Vec<f64>; 2]),
}

impl Statistic {
    /// Its columns; a mean and a sum have one.
    pub(super) fn columns(&self) -> &[Vec<f64>] {
        match self {
            Self::Mean(column) | Self::Sum(column) => std::slice::from_ref(column),
            Self::GeometricMean(columns) => columns,
            Self::Ratio(columns) => columns,
        }
    }

    /// The value, given the mean of each column and the number of samples it stands for.
    pub(super) fn combine(&self, means: &[f64], n: usize) -> f64 {
        match self {
            Self::Mean(_) => means[0],
            Self::Sum(_) => means[0] * n as f64,
            Self::GeometricMean(_) if means.is_empty() => 0.0,
            Self::GeometricMean(_) => means.iter().product::<f64>().powf(1.0 / means.len() as f64),
            Self::Ratio(_) if means[1] == 0.0 => 0.0,
            Self::Ratio(_) => means[0] / means[1],
        }
    }

    /// The value itself; 0 where there are no samples.
    pub fn value(&self) -> f64 {
        let means: Vec<f64> = self.columns().iter().map(|c| mean(c)).collect();
        self.combine(&means, self.columns().first().map_or(0, Vec::len))
    }

    /// How much each sample moves the value: sums of these over groups give its variance. The geometric mean is
    /// linearised at the observed means (delta method); where one of them is 0 it cannot move.
    pub(super) fn influences(&self) -> Vec<f64> {
        let n = self.columns().first().map_or(0, Vec::len);
        let means: Vec<f64> = self.columns().iter().map(|c| mean(c)).collect();
        match self {
            Self::Mean(column) => column.iter().map(|x| (x - means[0]) / n as f64).collect(),
            Self::Sum(column) => column.iter().map(|x| x - means[0]).collect(),
            Self::GeometricMean(_) if means.contains(&0.0) => vec![0.0; n],
            Self::GeometricMean(columns) => {
                let scale = self.combine(&means, n) / (columns.len() * n) as f64;
                let moved = |i: usize| columns.iter().zip(&means).map(|(c, m)| (c[i] - m) / m).sum::<f64>();
                (0..n).map(|i| scale * moved(i)).collect()
            }
            Self::Ratio(_) if means[1] == 0.0 => vec![0.0; n],
            Self::Ratio([top, bottom]) => {
                let ratio = means[0] / means[1];
                let moved = |(t, b): (&f64, &f64)| (t - ratio * b) / (means[1] * n as f64);
                top.iter().zip(bottom).map(moved).collect()
            }
        }
    }

    /// The standard error, robust to clusters: `sqrt(G/(G-1) * sum over groups of (sum of influences)^2)`. With one
    /// sample per group this is `s / sqrt(n)`. Absent with fewer than two groups.
    pub fn standard_error(&self, clusters: &Clusters) -> Option<f64> {
        clustered_error(&self.influences(), clusters)
    }

    /// The 95 % percentile bootstrap interval: whole groups are drawn with replacement, as many as there are, and
    /// the value is computed anew from the means of what was drawn. A sum is scaled to the observed number of
    /// samples, so that its interval does not contain the chance of drawing large documents. Absent with fewer
    /// than two groups. Costs `resamples * groups`.
    pub fn interval(&self, clusters: &Clusters, seed: [u8; 32], resamples: usize) -> Option<(f64, f64)> {
        percentile_interval(resampled(&[self], clusters, seed, resamples, |values| values[0]))
    }
}

/// The standard error of a value that each sample moves by so much; see [`Statistic::standard_error`].
pub(super) fn clustered_error(influences: &[f64], clusters: &Clusters) -> Option<f64> {
    let groups = clusters.len();
    if groups < 2 {
        return None;
    }
    let squares: f64 = clusters.sums(influences).iter().map(|s| s * s).sum();
    Some((squares * groups as f64 / (groups - 1) as f64).sqrt())
}

/// Resamples that one thread makes in a row.
const RESAMPLES_AT_ONCE: usize = 32;

/// What `of` makes of the statistics' values, once for each resample. All statistics are of the same samples and
/// get the same draws, whatever number of threads makes them. Nothing with fewer than two groups.
pub(super) fn resampled(
    statistics: &[&Statistic],
    clusters: &Clusters,
    seed: [u8; 32],
    resamples: usize,
    of: impl Fn(&[f64]) -> f64 + Sync,
) -> Vec<f64> {
    let groups = clusters.len();
    if groups < 2 {
        return Vec::new();
    }
    let sums: Vec<Vec<f64>> =
        statistics.iter().flat_map(|s| s.columns()).map(|column| clusters.sums(column)).collect();
    let observed = clusters.of.len();
    let some = |first: usize| {
        let mut rng = ChaCha8Rng::from_seed(seed);
        // where the draws of the resamples before end: two words each
        rng.set_word_pos(2 * first as u128 * groups as u128);
        let mut totals = vec![0.0; sums.len()];
        let mut values = vec![0.0; statistics.len()];
        let resample = || {
            totals.fill(0.0);
            let mut drawn = 0;
            for _ in 0..groups {
                let group = draw(&mut rng, groups);
                drawn += clusters.sizes[group] as usize;
                for (total, column) in totals.iter_mut().zip(&sums) {
                    *total += column[group];
                }
            }
            for total in &mut totals {
                *total /= drawn as f64;
            }
            let mut rest = totals.as_slice();
            for (value, statistic) in values.iter_mut().zip(statistics) {
                let (own, after) = rest.split_at(statistic.columns().len());
                *value = statistic.combine(own, observed);
                rest = after;
            }
            of(&values)
        };
        std::iter::repeat_with(resample).take(RESAMPLES_AT_ONCE.min(resamples - first)).collect::<Vec<_>>()
    };
    let starts = (0..resamples.div_ceil(RESAMPLES_AT_ONCE)).into_par_iter();
    starts.flat_map_iter(|i| some(i * RESAMPLES_AT_ONCE)).collect()
}

/// From the 2.5th to the 97.5th percentile; absent where there are no values or one is not finite.
pub(super) fn percentile_interval(mut values: Vec<f64>) -> Option<(f64, f64)> {
    if values.is_empty() || values.iter().any(|v| !v.is_finite()) {
        return None;
    }
    values.sort_by(f64::total_cmp);
    Some((quantile(&values, 0.025), quantile(&values, 0.975)))
}

/// The mean; 0 of nothing.
pub(super) fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

/// A quantile of sorted values, linear between neighbours. There must be at least one value.
pub(super) fn quantile(sorted: &[f64], q: f64) -> f64 {
    let position = q * (sorted.len() - 1) as f64;
    let below = position.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (position - below as f64) * (sorted[above] - sorted[below])
}

/// A number below `bound`. Written out, because `rand` may change how it draws one between releases, and intervals
/// must not; its bias is below `bound / 2^64`.
fn draw(rng: &mut ChaCha8Rng, bound: usize) -> usize {
    ((u128::from(rng.next_u64()) * bound as u128) >> 64) as usize
}

/// The bootstrap's seed: a hash of what the value is, so that neither the order of computation nor the other values
/// of a run move its interval.
pub fn interval_seed(seed: u64, task: &str, value: &str, slice: &str) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    for part in [task, value, slice] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().into()
}
