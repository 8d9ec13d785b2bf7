//! What a chunk and a token are worth.

/// A chunk's importance: the mean log-likelihood of the question's tokens behind it (the paper's r_k).
pub(super) fn importance(question: &[f64]) -> f64 {
    question.iter().sum::<f64>() / question.len().max(1) as f64
}

/// Tokens' contrastive perplexities: how much likelier each is where the question stands before it, in nats (the paper's
/// s_i, with log-perplexities as in its code).
pub(super) fn contrastive(plain: &[f64], with_question: &[f64]) -> Vec<f64> {
    plain.iter().zip(with_question).map(|(plain, with)| with - plain).collect()
}

/// Which tokens stay: the `n` of the highest scores; of equals the first.
pub(super) fn keep(scores: &[f64], n: usize) -> Vec<bool> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let mut keep = vec![false; scores.len()];
    for i in order.into_iter().take(n) {
        keep[i] = true;
    }
    keep
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Log-likelihood of `id` by logits.
    fn log_prob(logits: &[f64], id: usize) -> f64 {
        logits[id] - logits.iter().map(|l| l.exp()).sum::<f64>().ln()
    }

    #[test]
    fn importance_is_the_questions_negative_log_perplexity() {
        // Two tokens of probabilities 1/2 and 1/8 under these logits: perplexity 4.
        let first = log_prob(&[0.0, 0.0], 1);
        let second = log_prob(&[0.0, 7.0f64.ln()], 0);
        assert!((importance(&[first, second]) + 4.0f64.ln()).abs() < 1e-12);
        assert_eq!(importance(&[]), 0.0);
    }

    #[test]
    fn tokens_the_question_makes_likelier_stay() {
        // Of three tokens the question raises the second's logit, leaves the first alone and lowers the third's.
        let plain = [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]];
        let with = [[0.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, -1.0]];
        let probs = |all: [[f64; 3]; 3]| [0, 1, 2].map(|i| log_prob(&all[i], i));
        let scores = contrastive(&probs(plain), &probs(with));
        assert!(scores[0].abs() < 1e-12);
        assert!((scores[1] - (2.0 - ((2.0 + 2.0f64.exp()) / 3.0).ln())).abs() < 1e-12);
        assert!((scores[2] + 1.0 + ((2.0 + (-1.0f64).exp()) / 3.0).ln()).abs() < 1e-12);
        assert_eq!(keep(&scores, 1), [false, true, false]);
        assert_eq!(keep(&scores, 2), [true, true, false]);
        assert_eq!(keep(&[0.0, 0.0], 1), [true, false]);
        assert_eq!(keep(&[0.0], 5), [true]);
    }
}
