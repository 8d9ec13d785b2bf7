//! Where new positions stand.

use super::NULL;
use crate::cache::RowLengths;

/// Where the positions of a pass stand.
#[derive(Clone, Copy, Debug)]
pub enum Positions<'a> {
    /// One sequence's next ones, behind as many as are remembered.
    Behind(usize),
    /// The same behind `offset` ones that begin at place `first` of the memory: none ahead of that is seen.
    Beyond {
        /// Where the first one seen stands.
        first: usize,
        /// Positions from there to the first new one.
        offset: usize,
    },
    /// The last of each row, whose lengths count it.
    Last(&'a RowLengths),
    /// The next ones of several sequences, one behind the other.
    Spans(&'a [Span]),
}

impl Positions<'_> {
    /// Where one sequence's positions stand that come `n` behind these; those of several sequences stay.
    #[must_use]
    pub fn after(self, n: usize) -> Self {
        match self {
            Self::Behind(offset) => Self::Behind(offset + n),
            Self::Beyond { first, offset } => Self::Beyond { first, offset: offset + n },
            several => several,
        }
    }
}

/// New positions of one of several sequences.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Which one it is in the memory.
    pub sequence: usize,
    /// Positions ahead of the new ones.
    pub offset: usize,
    /// New positions, at least one.
    pub positions: usize,
}

/// Where the new positions of some sequences stand, as the kernels need it.
#[derive(Clone, Copy)]
pub(in super::super) struct Standing {
    /// As many as the memory has, or at least as many.
    pub(in super::super) sequences: usize,
    /// Positions of the longest sequence at most, the new ones included.
    pub(in super::super) longest: usize,
    /// Places of the memory that are passed over: positions count from there.
    pub(in super::super) first: usize,
    /// Positions ahead of the new ones, if there are no lengths.
    pub(in super::super) offset: usize,
    /// Positions that each new one, the only one of its sequence, sees at most; 0: all.
    pub(in super::super) window: usize,
    /// Address of the sequences' lengths, or 0.
    pub(in super::super) lengths: u64,
}

impl Standing {
    /// `rows` new positions of one sequence behind `offset` others, the first of which stands at place `first`.
    pub(super) fn alone(first: usize, offset: usize, rows: usize) -> Self {
        Self { first, offset, ..Self::several(1, offset + rows) }
    }

    pub(in super::super) fn several(sequences: usize, longest: usize) -> Self {
        Self { sequences, longest, first: 0, offset: 0, window: 0, lengths: NULL }
    }
}
