//! How many tokens each chunk keeps. Pure arithmetic, no model.

/// Chunks that are read on, in their ranking: the first whose tokens together reach `budget` (the last one included).
pub(super) fn coarse(ranking: &[usize], tokens: &[usize], budget: usize) -> Vec<usize> {
    let mut sum = 0;
    let mut chosen = Vec::new();
    for &chunk in ranking {
        if sum >= budget {
            break;
        }
        sum += tokens[chunk];
        chosen.push(chunk);
    }
    chosen
}

/// Tokens kept of each of the chosen chunks, which are given by their tokens in the order of their ranking.
///
/// Chunk i of n gets the part `t + delta (n - 1 - 2 i) / (n - 1)` of its tokens, between 0 and 1; t is such that the sum is
/// `target` (all of them, where there are no more).
pub(super) fn kept(tokens: &[usize], target: usize, delta: f64) -> Vec<usize> {
    let all: usize = tokens.iter().sum();
    if target >= all {
        return tokens.to_vec();
    }
    let n = tokens.len();
    let part = |i: usize, base: f64| {
        let shift = if n > 1 { delta * (n as f64 - 1.0 - 2.0 * i as f64) / (n as f64 - 1.0) } else { 0.0 };
        (base + shift).clamp(0.0, 1.0)
    };
    let sum = |base: f64| -> f64 { tokens.iter().enumerate().map(|(i, t)| part(i, base) * *t as f64).sum() };
    // The sum grows with the base, from 0 at -delta to all at 1 + delta.
    let (mut low, mut high) = (-delta.abs(), 1.0 + delta.abs());
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if sum(middle) < target as f64 { low = middle } else { high = middle }
    }
    let parts: Vec<f64> = tokens.iter().enumerate().map(|(i, t)| part(i, high) * *t as f64).collect();
    shares(&parts)
}

/// Whole numbers near `parts` whose sum is that of `parts`, rounded.
fn shares(parts: &[f64]) -> Vec<usize> {
    let (mut sum, mut given) = (0.0, 0);
    let share = |part: &f64| {
        sum += part;
        let share = (sum.round() as usize).saturating_sub(given);
        given += share;
        share
    };
    parts.iter().map(share).collect()
}

/// Tokens kept of each segment of a chunk of which `kept` tokens stay.
pub(super) fn segments(chunk: usize, kept: usize, size: usize) -> Vec<(usize, usize)> {
    let lengths: Vec<usize> = (0..chunk).step_by(size).map(|start| size.min(chunk - start)).collect();
    let part = kept as f64 / chunk.max(1) as f64;
    let parts: Vec<f64> = lengths.iter().map(|n| *n as f64 * part).collect();
    lengths.into_iter().zip(shares(&parts)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_chunks_up_to_the_budget() {
        let tokens = [100, 50, 80, 120];
        assert_eq!(coarse(&[2, 0, 3, 1], &tokens, 150), [2, 0]);
        assert_eq!(coarse(&[2, 0, 3, 1], &tokens, 180), [2, 0]);
        assert_eq!(coarse(&[2, 0, 3, 1], &tokens, 181), [2, 0, 3]);
        assert_eq!(coarse(&[1], &tokens, 1000), [1]);
        assert_eq!(coarse(&[1], &tokens, 0), [0; 0]);
    }

    #[test]
    fn better_chunks_keep_more_and_the_sum_is_the_target() {
        // Parts 0.5 + 0.2, 0.5, 0.5 - 0.2.
        assert_eq!(kept(&[100, 100, 100], 150, 0.2), [70, 50, 30]);
        // 0.9 + 0.3 is cut to 1: the others make up for it.
        assert_eq!(kept(&[100, 100], 170, 0.3), [100, 70]);
        assert_eq!(kept(&[100, 100], 20, 0.3), [20, 0]);
        assert_eq!(kept(&[100, 60], 500, 0.3), [100, 60]);
        assert_eq!(kept(&[40], 10, 0.3), [10]);
        for target in 0..300 {
            let got = kept(&[37, 101, 3, 160], target, 0.3);
            assert_eq!(got.iter().sum::<usize>(), target);
            assert!(got.iter().zip([37, 101, 3, 160]).all(|(kept, n)| *kept <= n), "{got:?}");
        }
    }

    #[test]
    fn segments_share_what_their_chunk_keeps() {
        assert_eq!(segments(450, 225, 200), [(200, 100), (200, 100), (50, 25)]);
        assert_eq!(segments(10, 0, 200), [(10, 0)]);
        assert_eq!(segments(0, 0, 200), []);
        let all: usize = segments(777, 333, 50).iter().map(|(_, kept)| kept).sum();
        assert_eq!(all, 333);
    }
}
