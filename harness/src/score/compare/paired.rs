//! Two values of the same samples: how far apart, how surely, and what could have been seen at all.
//!
//! Documents are what is drawn and what is swapped, never single samples: questions about one document are not
//! independent.

use crate::score::stats::{Clusters, Statistic, clustered_error, percentile_interval, resampled};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use statrs::distribution::{ContinuousCDF, StudentsT};

/// The level of intervals and of the detectable difference, and the power of the latter.
const LEVEL: f64 = 0.05;
const POWER: f64 = 0.8;

/// A value of a baseline and of a run, over the same samples in the same order.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paired<'a> {
    pub(super) baseline: &'a Statistic,
    pub(super) run: &'a Statistic,
    pub(super) clusters: &'a Clusters,
}

impl Paired<'_> {
    /// The run's value less the baseline's.
    pub(super) fn difference(&self) -> f64 {
        self.run.value() - self.baseline.value()
    }

    /// The 95 % interval of the difference: paired percentile bootstrap, documents drawn with replacement. Absent
    /// with fewer than two documents.
    pub(super) fn interval(&self, seed: [u8; 32], resamples: usize) -> Option<(f64, f64)> {
        let difference = |values: &[f64]| values[1] - values[0];
        percentile_interval(resampled(&[self.baseline, self.run], self.clusters, seed, resamples, difference))
    }

    /// The two-sided p-value of the paired permutation test: were the methods alike, each document's two results
    /// could as well be the other's, so documents are swapped and the difference of the whole is made anew. All
    /// `2^documents` ways where there are no more than `permutations`, else so many at random with the observed one
    /// among them. Absent with fewer than two documents.
    pub(super) fn p_value(&self, seed: [u8; 32], permutations: usize) -> Option<f64> {
        let groups = self.clusters.len();
        if groups < 2 || permutations == 0 {
            return None;
        }
        let swaps = Swaps::new(self);
        let observed = swaps.difference(|_| false).abs() - swaps.rounding();
        let extreme = |swapped: &dyn Fn(usize) -> bool| swaps.difference(swapped).abs() >= observed;
        // the first document stays: swapping all of them only turns the sign
        let ways = u32::try_from(groups - 1).ok().and_then(|free| 1usize.checked_shl(free));
        if let Some(ways) = ways.filter(|ways| *ways <= permutations) {
            let count = (0..ways).filter(|way| extreme(&|group| way << 1 >> group & 1 == 1)).count();
            return Some(count as f64 / ways as f64);
        }
        let mut rng = ChaCha8Rng::from_seed(seed);
        let mut bits = vec![0u64; groups.div_ceil(64)];
        let mut count = 1;
        for _ in 0..permutations {
            bits.fill_with(|| rng.next_u64());
            count += usize::from(extreme(&|group| bits[group / 64] >> (group % 64) & 1 == 1));
        }
        Some(count as f64 / (permutations + 1) as f64)
    }

    /// Cohen's d of paired differences (d_z): the difference by the standard deviation of the samples' differences.
    /// For a geometric mean these are differences of what each sample contributes (delta method). Absent where all
    /// samples differ by the same, not 0, or where there is one sample.
    pub(super) fn effect_size(&self) -> Option<f64> {
        let difference = self.difference();
        let moved = self.moved();
        let n = moved.len() as f64;
        if moved.len() < 2 {
            return None;
        }
        let deviation = (moved.iter().map(|m| (m * n).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
        if difference == 0.0 {
            return Some(0.0);
        }
        (deviation > 1e-12 * difference.abs()).then(|| difference / deviation)
    }

    /// The difference that a test at 5 % on so many documents, as varied as these, finds with 80 % power:
    /// `(t(0.975) + t(0.8)) * standard error` with documents - 1 degrees of freedom. Absent with fewer than two
    /// documents.
    /// Source: Bloom 1995, Minimum detectable effects, Evaluation Review 19(5).
    pub(super) fn detectable(&self) -> Option<f64> {
        let error = clustered_error(&self.moved(), self.clusters)?;
        let t = StudentsT::new(0.0, 1.0, (self.clusters.len() - 1) as f64).ok()?;
        Some((t.inverse_cdf(1.0 - LEVEL / 2.0) + t.inverse_cdf(POWER)) * error)
    }

    /// How much each sample moves the difference.
    fn moved(&self) -> Vec<f64> {
        let (run, baseline) = (self.run.influences(), self.baseline.influences());
        run.iter().zip(&baseline).map(|(r, b)| r - b).collect()
    }
}

/// Sums by document, for swapping.
struct Swaps<'a> {
    statistic: &'a Statistic,
    samples: usize,
    /// By column, by document: of the baseline and of the run.
    sums: Vec<(Vec<f64>, Vec<f64>)>,
}

impl<'a> Swaps<'a> {
    fn new(paired: &Paired<'a>) -> Self {
        let sums = |s: &Statistic| s.columns().iter().map(|c| paired.clusters.sums(c)).collect::<Vec<_>>();
        Self {
            statistic: paired.run,
            samples: paired.run.columns().first().map_or(0, Vec::len),
            sums: sums(paired.baseline).into_iter().zip(sums(paired.run)).collect(),
        }
    }

    /// The difference where these documents' results change sides.
    fn difference(&self, swapped: impl Fn(usize) -> bool) -> f64 {
        let n = self.samples as f64;
        let (mut baseline, mut run) =
            (Vec::with_capacity(self.sums.len()), Vec::with_capacity(self.sums.len()));
        for (b, r) in &self.sums {
            let (mut of_baseline, mut of_run) = (0.0, 0.0);
            for (group, (b, r)) in b.iter().zip(r).enumerate() {
                let (b, r) = if swapped(group) { (r, b) } else { (b, r) };
                of_baseline += b;
                of_run += r;
            }
            baseline.push(of_baseline / n);
            run.push(of_run / n);
        }
        self.statistic.combine(&run, self.samples) - self.statistic.combine(&baseline, self.samples)
    }

    /// How far sums in another order may be apart: differences that close are the same.
    fn rounding(&self) -> f64 {
        let size: f64 = self.sums.iter().flat_map(|(b, r)| b.iter().chain(r)).map(|x| x.abs()).sum();
        let scale = if matches!(self.statistic, Statistic::Sum(_)) { 1.0 } else { self.samples as f64 };
        1e-12 * size / scale
    }
}

/// Holm's adjustment: with `m` p-values, the smallest counts `m` times, the next `m - 1` times, none less than one
/// before it. In the given order; at most 1.
/// Source: Holm 1979, A simple sequentially rejective multiple test procedure.
pub(super) fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]));
    let mut adjusted = vec![0.0; p_values.len()];
    let mut least = 0.0_f64;
    for (rank, &i) in order.iter().enumerate() {
        least = least.max((p_values.len() - rank) as f64 * p_values[i]).min(1.0);
        adjusted[i] = least;
    }
    adjusted
}

/// A score between two anchors: `(value - low) / (high - low)`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Between {
    /// Absent where `high` is not above `low`.
    pub(super) value: Option<f64>,
    /// 95 % interval, the three resampled together; absent where a resample has `high` not above `low`.
    pub(super) interval: Option<(f64, f64)>,
    /// Why something is absent.
    pub(super) note: String,
}

/// Places a value between two anchors of the same samples. For values of which less is better the anchors' order is
/// turned, so that `high` is 1 all the same.
pub(super) fn between(
    value: &Statistic,
    low: &Statistic,
    high: &Statistic,
    better_is_higher: bool,
    clusters: &Clusters,
    seed: [u8; 32],
    resamples: usize,
) -> Between {
    let sign = if better_is_higher { 1.0 } else { -1.0 };
    let share = |v: &[f64]| {
        let span = sign * (v[2] - v[1]);
        if span > 0.0 { sign * (v[0] - v[1]) / span } else { f64::NAN }
    };
    let point = share(&[value.value(), low.value(), high.value()]);
    if !point.is_finite() {
        let note = "not defined: `full` is not better than `no-context` here".to_owned();
        return Between { value: None, interval: None, note };
    }
    let drawn = resampled(&[value, low, high], clusters, seed, resamples, share);
    let undefined = drawn.iter().filter(|x| !x.is_finite()).count();
    let note = match (drawn.len(), undefined) {
        (0, _) => "no interval: one document".to_owned(),
        (_, 0) => String::new(),
        (all, some) => {
            format!("no interval: in {some} of {all} resamples `full` is not better than `no-context`")
        }
    };
    Between { value: Some(point), interval: percentile_interval(drawn), note }
}
