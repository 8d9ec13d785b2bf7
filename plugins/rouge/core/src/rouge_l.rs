//! rougeL and rougeLsum of google's rouge_score.

use crate::lcs::Lcs;
use crate::score::Score;
use crate::tokenize::parts;

/// Memory reused from call to call.
#[derive(Debug, Default)]
pub(crate) struct Union {
    /// By row of a reference line: whether it is in the union.
    in_union: Vec<bool>,
    /// By word: how often the prediction still has it. All zero between calls.
    left: Vec<u32>,
}

/// rougeL: one longest common subsequence of the whole texts.
pub(crate) fn rouge_l(lcs: &mut Lcs, prediction: &[u32], reference: &[u32]) -> Score {
    Score::of(lcs.length(reference, prediction), prediction.len(), reference.len())
}

impl Union {
    /// Prepares for words below `words`.
    pub(crate) fn reserve(&mut self, words: usize) {
        if self.left.len() < words {
            self.left.resize(words, 0);
        }
    }

    /// rougeLsum: for each reference line the union of its longest common subsequences with all lines of the
    /// prediction; a word of a union counts while the prediction has it left.
    ///
    /// The lines are given by the ends of their words. rouge_score also keeps a budget of the reference's words,
    /// which the unions cannot exceed.
    pub(crate) fn rouge_l_sum(
        &mut self,
        lcs: &mut Lcs,
        (prediction, prediction_ends): (&[u32], &[usize]),
        (reference, reference_ends): (&[u32], &[usize]),
    ) -> Score {
        for &word in prediction {
            self.left[word as usize] += 1;
        }
        let mut hits = 0;
        for line in parts(reference, reference_ends) {
            self.in_union.clear();
            self.in_union.resize(line.len(), false);
            lcs.union(line, parts(prediction, prediction_ends), |row| self.in_union[row] = true);
            for (&word, _) in line.iter().zip(&self.in_union).filter(|(_, in_union)| **in_union) {
                let left = &mut self.left[word as usize];
                hits += usize::from(*left > 0);
                *left = left.saturating_sub(1);
            }
        }
        for &word in prediction {
            self.left[word as usize] = 0;
        }
        Score::of(hits, prediction.len(), reference.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    type Lines = Vec<Vec<u32>>;

    fn common_rows(rows: &[u32], columns: &[u32]) -> Vec<usize> {
        let mut t = vec![vec![0; columns.len() + 1]; rows.len() + 1];
        for (i, row) in rows.iter().enumerate() {
            for (j, column) in columns.iter().enumerate() {
                t[i + 1][j + 1] = if row == column { t[i][j] + 1 } else { t[i][j + 1].max(t[i + 1][j]) };
            }
        }
        let (mut i, mut j, mut found) = (rows.len(), columns.len(), Vec::new());
        while i > 0 && j > 0 {
            if rows[i - 1] == columns[j - 1] {
                (i, j) = (i - 1, j - 1);
                found.push(i);
            } else if t[i][j - 1] > t[i - 1][j] {
                j -= 1;
            } else {
                i -= 1;
            }
        }
        found
    }

    /// The definition, step by step and with both budgets.
    fn naive(prediction: &Lines, reference: &Lines) -> Score {
        let count = |lines: &Lines| {
            let mut counts = BTreeMap::new();
            lines.iter().flatten().for_each(|word| *counts.entry(*word).or_insert(0usize) += 1);
            counts
        };
        let (mut left_p, mut left_r) = (count(prediction), count(reference));
        let mut hits = 0;
        for line in reference {
            let union: BTreeSet<usize> =
                prediction.iter().flat_map(|other| common_rows(line, other)).collect();
            for row in union {
                let word = line[row];
                if left_p.get(&word).is_some_and(|&n| n > 0) && left_r[&word] > 0 {
                    hits += 1;
                    *left_p.get_mut(&word).unwrap() -= 1;
                    *left_r.get_mut(&word).unwrap() -= 1;
                }
            }
        }
        Score::of(hits, prediction.iter().flatten().count(), reference.iter().flatten().count())
    }

    fn flat(lines: &Lines) -> (Vec<u32>, Vec<usize>) {
        let mut words = Vec::new();
        let ends = lines.iter().map(|line| {
            words.extend(line);
            words.len()
        });
        let ends = ends.collect();
        (words, ends)
    }

    fn lines() -> impl Strategy<Value = Lines> {
        (1u32..12, 1usize..100).prop_flat_map(|(kinds, most)| {
            prop::collection::vec(prop::collection::vec(0..kinds, 0..most), 0..6)
        })
    }

    proptest! {
        #[test]
        fn rouge_l_sum_is_that_of_the_definition(prediction in lines(), reference in lines()) {
            let (p, p_ends) = flat(&prediction);
            let (r, r_ends) = flat(&reference);
            let (mut lcs, mut union) = (Lcs::default(), Union::default());
            lcs.reserve(12);
            union.reserve(12);
            let got = union.rouge_l_sum(&mut lcs, (&p, &p_ends), (&r, &r_ends));
            prop_assert_eq!(got, naive(&prediction, &reference));
            prop_assert!(union.left.iter().all(|&left| left == 0));
        }

        #[test]
        fn one_line_each_gives_rouge_l(p in prop::collection::vec(0u32..9, 0..150), r in prop::collection::vec(0u32..9, 0..150)) {
            let (mut lcs, mut union) = (Lcs::default(), Union::default());
            lcs.reserve(9);
            union.reserve(9);
            let sum = union.rouge_l_sum(&mut lcs, (&p, &[p.len()]), (&r, &[r.len()]));
            prop_assert_eq!(sum, rouge_l(&mut lcs, &p, &r));
        }
    }
}
