//! "rouge-l" of pltrdy's package `rouge` 1.0.1, which LongBench reports.
//!
//! It counts unique words: for every reference sentence the words of its longest common subsequences with all
//! predicted sentences, all thrown into one set. Repeating a word costs nothing.

use crate::lcs::Lcs;
use crate::score::Score;
use crate::tokenize::{Sentences, parts};

/// The longest path that the package can walk back, in cells.
///
/// It recurses once a cell, and Python's default limit is 1,000 calls. Measured with Python 3.11 and the calls of
/// LongBench's `eval.py` below it: 991 cells pass, 992 raise `RecursionError`, for which LongBench writes 0. (A path of
/// just 991 cells fails too if its last step compares an index above 256, which takes Python one more call.)
pub(crate) const PYTHON_CELLS: usize = 991;

/// Memory reused from call to call.
#[derive(Debug, Default)]
pub(crate) struct Pltrdy {
    /// By word: where it was seen, as bits. All zero between calls.
    seen: Vec<u8>,
}

const PREDICTED: u8 = 1;
const REFERENCE: u8 = 2;
const COMMON: u8 = 4;

impl Pltrdy {
    /// Prepares for words below `words`.
    pub(crate) fn reserve(&mut self, words: usize) {
        if self.seen.len() < words {
            self.seen.resize(words, 0);
        }
    }

    /// The score, and whether the package would have raised `RecursionError` instead.
    ///
    /// A text without sentences scores 0: the package raises `ValueError`, for which LongBench writes 0 too.
    pub(crate) fn rouge_l(
        &mut self,
        lcs: &mut Lcs,
        prediction: &Sentences,
        reference: &Sentences,
    ) -> (Score, bool) {
        let predicted = self.mark(&prediction.words, PREDICTED);
        let wanted = self.mark(&reference.words, REFERENCE);
        let (mut common, mut too_deep) = (0, false);
        // The package breaks ties as rouge_score does with the texts exchanged: rows are the prediction's words.
        for rows in parts(&prediction.words, &prediction.ends) {
            let mut on_match = |row: usize| {
                let seen = &mut self.seen[rows[row] as usize];
                common += usize::from(*seen & COMMON == 0);
                *seen |= COMMON;
            };
            let columns = parts(&reference.words, &reference.ends);
            // Only the full path has a length, and only a long sentence a long path.
            let short = |columns: &&[u32]| rows.len() + columns.len() < PYTHON_CELLS;
            lcs.union(rows, columns.clone().filter(short), &mut on_match);
            for columns in columns.filter(|columns| !short(columns)) {
                too_deep |= lcs.walk(rows, columns, &mut on_match) > PYTHON_CELLS;
            }
        }
        for &word in prediction.words.iter().chain(&reference.words) {
            self.seen[word as usize] = 0;
        }
        (Score::pltrdy(common, predicted, wanted), too_deep)
    }

    /// Marks `words` and returns how many different ones there are.
    fn mark(&mut self, words: &[u32], mark: u8) -> usize {
        let mut unique = 0;
        for &word in words {
            let seen = &mut self.seen[word as usize];
            unique += usize::from(*seen & mark == 0);
            *seen |= mark;
        }
        unique
    }
}
