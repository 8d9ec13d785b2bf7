//! ROUGE-1 and ROUGE-2: common n-grams, each counted as often as both texts have it.

use crate::score::Score;

/// Memory reused from call to call.
#[derive(Debug, Default)]
pub(crate) struct Ngrams {
    /// By word: how often the reference still has it. All zero between calls.
    words: Vec<u32>,
    /// Open addressing from word pairs to how often the reference still has them.
    pairs: Vec<(u64, u32)>,
}

impl Ngrams {
    /// Prepares for words below `words`.
    pub(crate) fn reserve(&mut self, words: usize) {
        if self.words.len() < words {
            self.words.resize(words, 0);
        }
    }

    /// ROUGE-1.
    pub(crate) fn rouge_1(&mut self, prediction: &[u32], reference: &[u32]) -> Score {
        for &word in reference {
            self.words[word as usize] += 1;
        }
        let mut common = 0;
        for &word in prediction {
            let left = &mut self.words[word as usize];
            common += usize::from(*left > 0);
            *left = left.saturating_sub(1);
        }
        for &word in reference {
            self.words[word as usize] = 0;
        }
        Score::of(common, prediction.len(), reference.len())
    }

    /// ROUGE-2.
    pub(crate) fn rouge_2(&mut self, prediction: &[u32], reference: &[u32]) -> Score {
        let pairs = |text: &[u32]| text.len().saturating_sub(1);
        self.pairs.clear();
        self.pairs.resize((2 * pairs(reference)).next_power_of_two().max(2), (FREE, 0));
        for pair in reference.windows(2) {
            let slot = self.slot(pair);
            self.pairs[slot].0 = key(pair);
            self.pairs[slot].1 += 1;
        }
        let mut common = 0;
        for pair in prediction.windows(2) {
            let slot = self.slot(pair);
            let left = &mut self.pairs[slot].1;
            common += usize::from(*left > 0);
            *left = left.saturating_sub(1);
        }
        Score::of(common, pairs(prediction), pairs(reference))
    }

    /// Where `pair` is or would go.
    fn slot(&self, pair: &[u32]) -> usize {
        const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
        let key = key(pair);
        let mask = self.pairs.len() - 1;
        let mut at = (key.wrapping_mul(MIX) >> 32) as usize & mask;
        while self.pairs[at].0 != key && self.pairs[at].0 != FREE {
            at = (at + 1) & mask;
        }
        at
    }
}

/// No pair's key.
const FREE: u64 = 0;

fn key(pair: &[u32]) -> u64 {
    ((u64::from(pair[0]) << 32) | u64::from(pair[1])) + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn naive(n: usize, prediction: &[u32], reference: &[u32]) -> Score {
        let count = |text: &[u32]| {
            let mut counts = BTreeMap::new();
            text.windows(n).for_each(|ngram| *counts.entry(ngram.to_vec()).or_insert(0usize) += 1);
            counts
        };
        let (p, r) = (count(prediction), count(reference));
        let common = p.iter().map(|(ngram, times)| times.min(r.get(ngram).unwrap_or(&0))).sum();
        Score::of(common, p.values().sum(), r.values().sum())
    }

    proptest! {
        #[test]
        fn counts_are_those_of_multisets(
            prediction in prop::collection::vec(0u32..9, 0..60), reference in prop::collection::vec(0u32..9, 0..60),
        ) {
            let mut ngrams = Ngrams::default();
            ngrams.reserve(9);
            prop_assert_eq!(ngrams.rouge_1(&prediction, &reference), naive(1, &prediction, &reference));
            prop_assert_eq!(ngrams.rouge_2(&prediction, &reference), naive(2, &prediction, &reference));
            prop_assert_eq!(ngrams.rouge_2(&prediction, &reference).f, ngrams.rouge_2(&reference, &prediction).f);
            prop_assert!(ngrams.words.iter().all(|&left| left == 0));
        }
    }
}
