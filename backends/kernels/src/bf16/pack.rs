//! The right factor of a product in the order in which matrix units read it.
//!
//! 32 columns make a panel, 32 rows a step. A step of a panel is two tiles of 16 columns; line `p` of a tile holds rows
//! `2 p` and `2 p + 1` of each of its columns side by side. What the matrix lacks is 0.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use half::bf16;
use rayon::prelude::*;

use crate::gemm::Mat;

/// Columns of a panel.
pub(super) const PANEL: usize = 32;
/// Rows of a step.
pub(super) const STEP: usize = 32;
/// Lines of a tile, and its columns.
pub(super) const TILE: usize = 16;
/// Lines that a task packs at least.
const GRAIN: usize = 4096;

/// 32 numbers, in one line of the cache.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [bf16; STEP]);

impl Line {
    pub(super) const ZERO: Self = Self([bf16::ZERO; STEP]);
}

/// A packed right factor.
pub(super) struct Packed {
    lines: Vec<Line>,
    /// Of each panel.
    pub(super) steps: usize,
}

impl Packed {
    /// Packs a factor whose rows or columns are dense.
    ///
    /// # Safety
    /// The processor must have the features that [`tile`] is compiled for.
    pub(super) unsafe fn new(b: Mat<'_, bf16>, parallel: bool) -> Self {
        let (panels, steps) = (b.cols.div_ceil(PANEL), b.rows.div_ceil(STEP));
        let each = steps * 2 * TILE;
        let count = panels * each;
        let mut packed = Vec::with_capacity(count);
        let lines = &mut packed.spare_capacity_mut()[..count];
        let pack = |(panel, lines): (usize, &mut [MaybeUninit<Line>])| {
            for (i, lines) in lines.as_chunks_mut::<TILE>().0.iter_mut().enumerate() {
                let (row, column) = (i / 2 * STEP, panel * PANEL + i % 2 * TILE);
                // SAFETY: the caller vouches for the processor.
                unsafe { tile(b, row, column, lines) };
            }
        };
        if parallel && lines.len() >= 2 * GRAIN {
            let least = GRAIN.div_ceil(each.max(1));
            lines.par_chunks_mut(each).with_min_len(least).enumerate().for_each(pack);
        } else {
            lines.chunks_mut(each.max(1)).enumerate().for_each(pack);
        }
        // SAFETY: chunks of `each` lines are all of them, and `tile` writes every line of the tiles that a chunk consists of.
        unsafe { packed.set_len(count) };
        Self { lines: packed, steps }
    }

    /// The lines of a panel.
    pub(super) fn panel(&self, panel: usize) -> &[Line] {
        let each = self.steps * 2 * TILE;
        &self.lines[panel * each..(panel + 1) * each]
    }
}

/// Packs 32 rows of 16 columns; writes all lines.
#[target_feature(enable = "avx512f,avx512bw")]
fn tile(b: Mat<'_, bf16>, row: usize, column: usize, lines: &mut [MaybeUninit<Line>; TILE]) {
    let rows = b.rows.saturating_sub(row).min(STEP);
    let columns = b.cols.saturating_sub(column).min(TILE);
    let mut registers = [_mm512_setzero_si512(); TILE];
    if rows == 0 || columns == 0 {
        // Beyond the matrix there are zeros.
    } else if b.row == 1 {
        // Columns are dense: they are read as rows of pairs and turned.
        for (j, register) in registers.iter_mut().enumerate().take(columns) {
            *register = load(&b.data[(column + j) * b.col + row..][..rows]);
        }
        turn(&mut registers);
    } else {
        assert_eq!(b.col, 1, "a factor with neither rows nor columns dense");
        let even = _mm512_set_epi16(
            47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3,
            34, 2, 33, 1, 32, 0,
        );
        for (p, register) in registers.iter_mut().enumerate().take(rows.div_ceil(2)) {
            let part = |i: usize| match i < rows {
                true => load(&b.data[(row + i) * b.row + column..][..columns]),
                false => _mm512_setzero_si512(),
            };
            *register = _mm512_permutex2var_epi16(part(2 * p), even, part(2 * p + 1));
        }
    }
    for (line, register) in lines.iter_mut().zip(registers) {
        // SAFETY: a line is 64 bytes and aligned to as many.
        unsafe { _mm512_store_si512(line.as_mut_ptr().cast(), register) };
    }
}

/// Up to 32 numbers, and zeros behind them.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn load(from: &[bf16]) -> __m512i {
    let mask = u32::MAX >> (32 - from.len().clamp(1, 32));
    // SAFETY: elements that the mask leaves out are not touched, and there are no more in it than in the slice, which
    // is never empty here.
    unsafe { _mm512_maskz_loadu_epi16(mask, from.as_ptr().cast()) }
}

/// Transposes 16 rows of 16 words.
#[target_feature(enable = "avx512f")]
pub(super) fn turn(r: &mut [__m512i; TILE]) {
    // Four rows at a time: lane `l` of `t[4 i + c]` is column `4 l + c` of rows `4 i` to `4 i + 3`.
    let mut t = [_mm512_setzero_si512(); TILE];
    for i in 0..4 {
        let (a, b) =
            (_mm512_unpacklo_epi32(r[4 * i], r[4 * i + 1]), _mm512_unpackhi_epi32(r[4 * i], r[4 * i + 1]));
        let (c, d) = (
            _mm512_unpacklo_epi32(r[4 * i + 2], r[4 * i + 3]),
            _mm512_unpackhi_epi32(r[4 * i + 2], r[4 * i + 3]),
        );
        t[4 * i] = _mm512_unpacklo_epi64(a, c);
        t[4 * i + 1] = _mm512_unpackhi_epi64(a, c);
        t[4 * i + 2] = _mm512_unpacklo_epi64(b, d);
        t[4 * i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    // Then lanes, as a matrix of 4 x 4 for each `c`.
    for c in 0..4 {
        let [t0, t1, t2, t3] = [t[c], t[4 + c], t[8 + c], t[12 + c]];
        let (even0, even1) = (_mm512_shuffle_i32x4::<0x88>(t0, t1), _mm512_shuffle_i32x4::<0x88>(t2, t3));
        let (odd0, odd1) = (_mm512_shuffle_i32x4::<0xdd>(t0, t1), _mm512_shuffle_i32x4::<0xdd>(t2, t3));
        r[c] = _mm512_shuffle_i32x4::<0x88>(even0, even1);
        r[8 + c] = _mm512_shuffle_i32x4::<0xdd>(even0, even1);
        r[4 + c] = _mm512_shuffle_i32x4::<0x88>(odd0, odd1);
        r[12 + c] = _mm512_shuffle_i32x4::<0xdd>(odd0, odd1);
    }
}
