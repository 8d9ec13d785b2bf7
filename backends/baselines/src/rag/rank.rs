//! From scores to an order.

/// Indices by falling score; equals keep their order.
pub(super) fn by_score(scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order
}

/// Reciprocal rank fusion (Cormack et al. 2009): an item's score is the sum over the rankings of `1 / (60 + rank)`, ranks
/// counted from 1.
pub(super) fn fused(rankings: &[Vec<usize>]) -> Vec<usize> {
    const K: f64 = 60.0;
    let n = rankings.first().map_or(0, Vec::len);
    let mut scores = vec![0.0; n];
    for ranking in rankings {
        for (place, &item) in ranking.iter().enumerate() {
            scores[item] += 1.0 / (K + place as f64 + 1.0);
        }
    }
    by_score(&scores)
}

/// Cosine of vectors of length 1.
pub(super) fn cosine(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_keep_their_order() {
        assert_eq!(by_score(&[0.5, 2.0, 0.5, -1.0]), [1, 0, 2, 3]);
        assert_eq!(by_score(&[]), [0; 0]);
    }

    #[test]
    fn fusion_prefers_what_both_rank_high() {
        // Scores 1/61 + 1/63, 1/62 + 1/61, 1/63 + 1/62.
        assert_eq!(fused(&[vec![0, 1, 2], vec![1, 2, 0]]), [1, 0, 2]);
        assert_eq!(fused(&[vec![2, 0, 1]]), [2, 0, 1]);
    }
}
