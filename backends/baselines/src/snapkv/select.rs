//! Which positions a head keeps. Pure arithmetic, no model.

use std::str::FromStr;

/// How scores of neighbours are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pooling {
    /// The greatest.
    Max,
    /// The mean, positions beyond the ends counting as 0 (torch's `avg_pool1d` with padding).
    Average,
}

impl FromStr for Pooling {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "max" => Ok(Self::Max),
            "avg" => Ok(Self::Average),
            _ => Err(format!("`{text}`: known are max, avg")),
        }
    }
}

/// Each position's score with those of its neighbours, `kernel` positions in all (an odd number).
pub(super) fn pooled(scores: &[f32], kernel: usize, pooling: Pooling) -> Vec<f32> {
    let reach = kernel / 2;
    let around = |i: usize| &scores[i.saturating_sub(reach)..(i + reach + 1).min(scores.len())];
    let pool = |i: usize| match pooling {
        Pooling::Max => around(i).iter().copied().fold(f32::NEG_INFINITY, f32::max),
        Pooling::Average => around(i).iter().sum::<f32>() / kernel as f32,
    };
    (0..scores.len()).map(pool).collect()
}

/// The `n` positions of the highest scores, in their order; of equals the first.
pub(super) fn highest(scores: &[f32], n: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..scores.len() as u32).collect();
    if n < order.len() {
        let rank = |a: &u32, b: &u32| scores[*b as usize].total_cmp(&scores[*a as usize]).then(a.cmp(b));
        order.select_nth_unstable_by(n, rank);
        order.truncate(n);
        order.sort_unstable();
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pooling_is_torchs() {
        // F.max_pool1d / F.avg_pool1d of this row with kernel_size=3, padding=1, stride=1
        let row = [1.0, 5.0, 2.0, 0.0, 3.0];
        assert_eq!(pooled(&row, 3, Pooling::Max), [5.0, 5.0, 5.0, 3.0, 3.0]);
        assert_eq!(pooled(&row, 3, Pooling::Average), [2.0, 8.0 / 3.0, 7.0 / 3.0, 5.0 / 3.0, 1.0]);
        assert_eq!(pooled(&row, 1, Pooling::Average), row);
        assert_eq!(pooled(&[2.0, 1.0], 7, Pooling::Max), [2.0, 2.0]);
    }

    #[test]
    fn the_highest_in_their_order() {
        assert_eq!(highest(&[0.1, 0.9, 0.5, 0.9], 2), [1, 3]);
        assert_eq!(highest(&[0.5, 0.5, 0.5], 2), [0, 1]);
        assert_eq!(highest(&[0.5], 3), [0]);
    }
}
