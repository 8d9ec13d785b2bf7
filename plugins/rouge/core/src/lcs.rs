//! Longest common subsequences by bit-parallel dynamic programming.
//!
//! Let `t[i][j]` be the length for the first `i` rows (words of one text) and the first `j` columns (words of the
//! other). Down a column, `t` grows by 0 or 1 a row; 64 of these steps are one integer, a clear bit meaning that it
//! grows. A column follows from the one before by an addition and a few bit operations, and a block of 64 rows passes
//! nothing to the block below it but one carry a column (Crochemore et al. 2001; Hyyro 2004). Going block by block,
//! the length of `m` and `n` words takes `m n / 64` steps and `n` bytes.
//!
//! Which words are common depends on how ties are broken. The reference implementations walk back from the corner of
//! the full table; [`Lcs::walk`] takes the same path. It restores the columns of one block at a time from stored
//! carries, so it holds at most `(72 + m / 4096) n` bytes: linear for any text there is, where the table takes
//! `m n` cells.

/// Rows of a block.
const BLOCK: usize = 64;

/// Blocks whose carries are held at once.
const STRIP: usize = 64;

/// Memory reused from call to call. Words must be below the count given to [`Lcs::reserve`].
#[derive(Debug, Default)]
pub(crate) struct Lcs {
    /// By word: the rows of the current block that hold it. All zero between calls.
    rows_of: Vec<u64>,
    /// Carries between blocks, by column.
    carries: Vec<u8>,
    /// State of the current block after each column.
    columns: Vec<u64>,
    /// Rows of the current block that match each column.
    matches: Vec<u64>,
    /// Carries into every `STRIP`th block, and into every block of the current strip.
    checkpoints: Vec<u8>,
    strip: Vec<u8>,
}

impl Lcs {
    /// Prepares for words below `words`.
    pub(crate) fn reserve(&mut self, words: usize) {
        if self.rows_of.len() < words {
            self.rows_of.resize(words, 0);
        }
    }

    /// The length of a longest common subsequence.
    pub(crate) fn length(&mut self, rows: &[u32], columns: &[u32]) -> usize {
        self.carries.clear();
        self.carries.resize(columns.len(), 0);
        let mut length = 0;
        for block in rows.chunks(BLOCK) {
            load(&mut self.rows_of, block);
            length += pass(&self.rows_of, columns, &mut self.carries).count_zeros() as usize;
            unload(&mut self.rows_of, block);
        }
        length
    }

    /// Calls `on_match` with each row of the common subsequence that the reference implementations find: from the
    /// end, a match is taken; else the path goes to the previous column if that loses nothing and the previous row
    /// would, otherwise to the previous row.
    ///
    /// Returns the length of the path: how many cells it visits.
    pub(crate) fn walk(&mut self, rows: &[u32], columns: &[u32], mut on_match: impl FnMut(usize)) -> usize {
        let n = columns.len();
        let blocks = rows.len().div_ceil(BLOCK);
        self.checkpoint(rows, columns);
        let (mut i, mut j, mut matched) = (rows.len(), n, 0);
        for first in (0..blocks).step_by(STRIP).rev() {
            let strip = first..blocks.min(first + STRIP);
            self.fill_strip(&rows[first * BLOCK..], &columns[..j], first / STRIP, n, strip.len());
            let width = j;
            for block in strip.rev() {
                let base = block * BLOCK;
                load(&mut self.rows_of, &rows[base..i]);
                self.restore(&columns[..j], (block - first) * width);
                unload(&mut self.rows_of, &rows[base..i]);
                (i, j) = self.walk_block(base, i, j, |row| {
                    matched += 1;
                    on_match(row);
                });
                if j == 0 {
                    return rows.len() - i + n - matched + 1;
                }
            }
        }
        rows.len() - i + (n - j) - matched + 1
    }

    /// Calls `on_match` with each row that is in the common subsequence of `rows` and one of `candidates`, as
    /// [`walk`](Self::walk) finds them; rows may come more than once.
    pub(crate) fn union<'a>(
        &mut self,
        rows: &[u32],
        candidates: impl Iterator<Item = &'a [u32]>,
        mut on_match: impl FnMut(usize),
    ) {
        if rows.len() > BLOCK {
            for candidate in candidates {
                self.walk(rows, candidate, &mut on_match);
            }
            return;
        }
        load(&mut self.rows_of, rows);
        for candidate in candidates {
            let kept = self.restore_matching(candidate);
            self.walk_block(0, rows.len(), kept, &mut on_match);
        }
        unload(&mut self.rows_of, rows);
    }

    /// Stores the carries into every strip but the first, whose are zero.
    fn checkpoint(&mut self, rows: &[u32], columns: &[u32]) {
        self.checkpoints.clear();
        self.carries.clear();
        self.carries.resize(columns.len(), 0);
        let last = rows.len().saturating_sub(1) / (BLOCK * STRIP) * (BLOCK * STRIP);
        for strip in rows[..last].chunks(BLOCK * STRIP) {
            for block in strip.chunks(BLOCK) {
                load(&mut self.rows_of, block);
                pass(&self.rows_of, columns, &mut self.carries);
                unload(&mut self.rows_of, block);
            }
            self.checkpoints.extend_from_slice(&self.carries);
        }
    }

    /// Stores the carries into each of a strip's `blocks`, for the columns that the walk can still reach. `n` is the
    /// number of all columns, `rows` begins with the strip.
    fn fill_strip(&mut self, rows: &[u32], columns: &[u32], strip: usize, n: usize, blocks: usize) {
        let width = columns.len();
        self.carries.clear();
        match strip.checked_sub(1) {
            None => self.carries.resize(width, 0),
            Some(before) => self.carries.extend_from_slice(&self.checkpoints[before * n..][..width]),
        }
        self.strip.clear();
        self.strip.extend_from_slice(&self.carries);
        for block in rows.chunks(BLOCK).take(blocks - 1) {
            load(&mut self.rows_of, block);
            pass(&self.rows_of, columns, &mut self.carries);
            unload(&mut self.rows_of, block);
            self.strip.extend_from_slice(&self.carries);
        }
    }

    /// Computes the loaded block's state after each column; its carries are in the strip from `carries` on.
    fn restore(&mut self, columns: &[u32], carries: usize) {
        self.columns.clear();
        self.matches.clear();
        let mut state = u64::MAX;
        for (&word, &carry) in columns.iter().zip(&self.strip[carries..]) {
            let matches = self.rows_of[word as usize];
            state = step(state, matches, carry).0;
            self.columns.push(state);
            self.matches.push(matches);
        }
    }

    /// Like [`restore`](Self::restore) for a first block, but columns that match no row are kept only once in a run:
    /// they all have the same state, and the walk passes all of them as it passes one. Returns how many are kept.
    fn restore_matching(&mut self, columns: &[u32]) -> usize {
        if self.matches.len() < columns.len() {
            self.matches.resize(columns.len(), 0);
        }
        let (mut before, mut kept) = (0, 0);
        for &word in columns {
            let matches = self.rows_of[word as usize];
            self.matches[kept] = matches;
            kept += usize::from(matches | before != 0);
            before = matches;
        }
        let mut state = u64::MAX;
        self.columns.clear();
        self.columns.extend(self.matches[..kept].iter().map(|&matches| {
            state = step(state, matches, 0).0;
            state
        }));
        kept
    }

    /// Walks from row `i` and column `j` to the end of the block that begins at row `base`, or to column 0.
    fn walk_block(&self, base: usize, i: usize, j: usize, mut on_match: impl FnMut(usize)) -> (usize, usize) {
        let (mut below, mut column) = (i - base, j);
        while below > 0 && column > 0 {
            let matches = self.matches[column - 1];
            // The path goes up to the first row that matches, or whose loss would cost: there it leaves the column.
            let stops = (matches | !self.columns[column - 1]) & (u64::MAX >> (BLOCK - below));
            if stops == 0 {
                below = 0;
                break;
            }
            let row = stops.ilog2() as usize;
            if matches >> row & 1 == 1 {
                on_match(base + row);
                below = row;
            } else {
                below = row + 1;
            }
            column -= 1;
        }
        (base + below, column)
    }
}

/// One column of one block: its state after the column, and the carry into the next block.
#[inline]
fn step(state: u64, matches: u64, carry: u8) -> (u64, u8) {
    let (sum, over) = state.overflowing_add(state & matches);
    let (sum, again) = sum.overflowing_add(u64::from(carry));
    (sum | (state & !matches), u8::from(over | again))
}

/// Takes the loaded block through all columns, replacing the carries into it by those out of it.
fn pass(rows_of: &[u64], columns: &[u32], carries: &mut [u8]) -> u64 {
    let mut state = u64::MAX;
    for (&word, carry) in columns.iter().zip(carries) {
        (state, *carry) = step(state, rows_of[word as usize], *carry);
    }
    state
}

fn load(rows_of: &mut [u64], block: &[u32]) {
    for (row, &word) in block.iter().enumerate() {
        rows_of[word as usize] |= 1 << row;
    }
}

fn unload(rows_of: &mut [u64], block: &[u32]) {
    for &word in block {
        rows_of[word as usize] = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table(rows: &[u32], columns: &[u32]) -> Vec<Vec<usize>> {
        let mut t = vec![vec![0; columns.len() + 1]; rows.len() + 1];
        for i in 1..=rows.len() {
            for j in 1..=columns.len() {
                t[i][j] = if rows[i - 1] == columns[j - 1] {
                    t[i - 1][j - 1] + 1
                } else {
                    t[i - 1][j].max(t[i][j - 1])
                };
            }
        }
        t
    }

    /// The path of the reference implementations on the full table: matched rows from the end, cells visited.
    fn naive_walk(rows: &[u32], columns: &[u32]) -> (Vec<usize>, usize) {
        let t = table(rows, columns);
        let (mut i, mut j, mut found, mut cells) = (rows.len(), columns.len(), Vec::new(), 1);
        while i > 0 && j > 0 {
            if rows[i - 1] == columns[j - 1] {
                found.push(i - 1);
                (i, j) = (i - 1, j - 1);
            } else if t[i][j - 1] > t[i - 1][j] {
                j -= 1;
            } else {
                i -= 1;
            }
            cells += 1;
        }
        (found, cells)
    }

    fn lcs() -> Lcs {
        let mut lcs = Lcs::default();
        lcs.reserve(64);
        lcs
    }

    fn check(rows: &[u32], columns: &[u32]) {
        let mut lcs = lcs();
        let mut found = Vec::new();
        let cells = lcs.walk(rows, columns, |row| found.push(row));
        let (expected, expected_cells) = naive_walk(rows, columns);
        assert_eq!(found, expected);
        assert_eq!(cells, expected_cells);
        assert_eq!(lcs.length(rows, columns), found.len());
        assert!(lcs.rows_of.iter().all(|&bits| bits == 0));
    }

    fn words(most: usize) -> impl Strategy<Value = Vec<u32>> {
        (1u32..40).prop_flat_map(move |kinds| prop::collection::vec(0..kinds, 0..most))
    }

    proptest! {
        #[test]
        fn the_walk_is_that_on_the_full_table(rows in words(300), columns in words(300)) {
            check(&rows, &columns);
        }

        #[test]
        fn length_is_that_of_the_full_table_and_symmetric(rows in words(300), columns in words(300)) {
            let mut lcs = lcs();
            let length = lcs.length(&rows, &columns);
            prop_assert_eq!(length, table(&rows, &columns)[rows.len()][columns.len()]);
            prop_assert_eq!(length, lcs.length(&columns, &rows));
        }

        #[test]
        fn the_union_is_that_of_single_walks(
            rows in words(90), candidates in prop::collection::vec(words(60), 0..6),
        ) {
            let mut found = vec![false; rows.len()];
            lcs().union(&rows, candidates.iter().map(Vec::as_slice), |row| found[row] = true);
            let mut expected = vec![false; rows.len()];
            for candidate in &candidates {
                naive_walk(&rows, candidate).0.into_iter().for_each(|row| expected[row] = true);
            }
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn texts_of_several_strips_are_walked_alike() {
        // A linear congruential generator: 9,000 rows are three strips.
        let mut state = 7u32;
        let mut next = |kinds: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) % kinds
        };
        let rows: Vec<u32> = (0..9_000).map(|_| next(50)).collect();
        let columns: Vec<u32> = (0..700).map(|_| next(50)).collect();
        check(&rows, &columns);
        check(&columns, &rows);
        check(&rows[..8_192], &columns);
        check(&rows, &rows[4_000..4_900]);
    }
}
