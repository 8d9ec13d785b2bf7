//! The loops over blocks of 32 x 32 sums.

use std::arch::x86_64::*;

use half::bf16;
use rayon::prelude::*;

use super::amx;
use super::pack::{Line, PANEL, Packed, STEP, TILE, turn};
use super::{Out, Term};
use crate::gemm::Mat;

/// Panels of the right factor that stay in the second-level cache while rows pass by: bytes.
const RESIDENT: usize = 768 * 1024;
/// Panels of the left factor in a task at most.
const MOST_PANELS: usize = 8;
/// Products a task computes at least: below this, handing work over costs more than it saves.
const GRAIN: usize = 4 * 1024 * 1024;

/// What multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// AMX.
    Tiles,
    /// AVX-512's products of pairs.
    Pairs,
}

impl Unit {
    /// The fastest one here.
    pub(super) fn best() -> Option<Self> {
        let vectors = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512bf16");
        vectors.then(|| if amx::is_allowed() { Self::Tiles } else { Self::Pairs })
    }
}

/// 32 rows of 32 sums.
#[repr(C, align(64))]
pub(super) struct Block(pub(super) [[f32; PANEL]; PANEL]);

/// Where a task writes; tasks write different elements.
#[derive(Clone, Copy)]
enum Target {
    Bf16(*mut bf16),
    F32(*mut f32),
}

// SAFETY: the pointer is used for elements that no other task touches, while the slice it comes of is borrowed.
unsafe impl Sync for Target {}
// SAFETY: as above.
unsafe impl Send for Target {}

/// All of a product but the task's own range.
struct Job<'a> {
    unit: Unit,
    left: Vec<Mat<'a, bf16>>,
    right: Vec<Packed>,
    /// Whether sums are those of the transposed product.
    turned: bool,
    bias: Option<&'a [bf16]>,
    target: Target,
    /// Rows and columns of the target.
    size: (usize, usize),
}

/// See [`super::product`]; the processor must have `unit`.
pub(super) fn product<'a>(
    unit: Unit,
    terms: &[Term<'a>],
    bias: Option<&[bf16]>,
    out: Out<'_>,
    parallel: bool,
) {
    let Some((a, b)) = terms.first() else { return };
    let (m, n) = (a.rows, b.cols);
    let fits = |(a, b): &Term<'a>| a.rows == m && b.cols == n && a.cols == b.rows && a.fits() && b.fits();
    assert!(terms.iter().all(fits), "factors of a product that do not fit");
    let (target, len) = match out {
        Out::Bf16(out) => (Target::Bf16(out.as_mut_ptr().cast()), out.len()),
        Out::F32(out) => (Target::F32(out.as_mut_ptr().cast()), out.len()),
    };
    assert!(len == m * n && bias.is_none_or(|b| b.len() == n), "a product's result that does not fit");
    if len == 0 {
        return;
    }
    let turned = is_turned(terms, (m, n));
    let work = |&(a, b): &Term<'a>| {
        let (left, right) = if turned { (b.t(), a.t()) } else { (a, b) };
        // SAFETY: `unit` says that the processor has AVX-512 with 16-bit integers.
        (left_of(left), unsafe { Packed::new(right, parallel) })
    };
    let (left, right): (Vec<_>, Vec<_>) = terms.iter().map(work).unzip();
    let left = left.iter().map(Copied::view).collect();
    let job = Job { unit, left, right, turned, bias, target, size: (m, n) };
    let (rows, columns) = if turned { (n, m) } else { (m, n) };
    let (lefts, rights) = (rows.div_ceil(PANEL), columns.div_ceil(PANEL));
    let steps: usize = job.right.iter().map(|r| r.steps).sum();
    let of_right = (RESIDENT / (steps * STEP * PANEL * 2).max(1)).clamp(1, rights);
    let least = GRAIN.div_ceil(of_right * PANEL * PANEL * steps.max(1) * STEP);
    let threads = if parallel { rayon::current_num_threads() } else { 1 };
    let of_left = lefts.div_ceil(4 * threads).min(MOST_PANELS).max(least).max(1);
    let (across, down) = (rights.div_ceil(of_right), lefts.div_ceil(of_left));
    let run = |task: usize| {
        let range = |i: usize, each: usize, all: usize| i * each..((i + 1) * each).min(all);
        let lefts = range(task % down, of_left, lefts);
        let rights = range(task / down, of_right, rights);
        // SAFETY: `unit` says that the processor has the features, and tasks have ranges of their own.
        unsafe { job.run(lefts, rights) };
    };
    if threads > 1 && across * down > 1 {
        (0..across * down).into_par_iter().with_max_len(1).for_each(run);
    } else {
        (0..across * down).for_each(run);
    }
}

/// Whether the transposed product is made. The left factor has dense rows or is copied, the right one is packed however it is.
fn is_turned(terms: &[Term<'_>], (m, n): (usize, usize)) -> bool {
    let (rows, columns) = (terms.iter().all(|(a, _)| a.col == 1), terms.iter().all(|(_, b)| b.row == 1));
    match (rows, columns) {
        // The factor with fewer rows is packed: it is read by all panels of the other.
        (true, true) => m < n,
        (true, false) => false,
        (false, true) => true,
        // The smaller one is copied.
        (false, false) => n < m,
    }
}

/// A left factor with dense rows, copied where it has none.
enum Copied<'a> {
    As(Mat<'a, bf16>),
    New(Vec<bf16>, usize, usize),
}

fn left_of(a: Mat<'_, bf16>) -> Copied<'_> {
    if a.col == 1 {
        return Copied::As(a);
    }
    let mut data = Vec::with_capacity(a.rows * a.cols);
    for i in 0..a.rows {
        data.extend((0..a.cols).map(|j| a.data[i * a.row + j * a.col]));
    }
    Copied::New(data, a.rows, a.cols)
}

impl Copied<'_> {
    fn view(&self) -> Mat<'_, bf16> {
        match self {
            Self::As(a) => *a,
            Self::New(data, rows, columns) => Mat::new(data, *rows, *columns),
        }
    }
}

/// 32 rows of a left factor, readable to the end of its steps.
struct Panel {
    at: *const u8,
    stride: usize,
}

impl Job<'_> {
    /// Computes the sums of some panels of the left factor with some of the right.
    ///
    /// # Safety
    /// The processor must have the unit and the features; no other task may write the same elements meanwhile.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn run(&self, lefts: std::ops::Range<usize>, rights: std::ops::Range<usize>) {
        let mut tiles = match self.unit {
            // SAFETY: the caller vouches for the unit.
            Unit::Tiles => Some(unsafe { amx::Tiles::configure() }),
            Unit::Pairs => None,
        };
        let mut copies: Vec<Vec<Line>> = vec![Vec::new(); self.left.len()];
        let mut sums = Block([[0.0; PANEL]; PANEL]);
        for left in lefts {
            let mut panels = Vec::with_capacity(self.left.len());
            for (a, copy) in self.left.iter().zip(&mut copies) {
                panels.push(panel(*a, left * PANEL, copy));
            }
            for right in rights.clone() {
                if let Some(tiles) = &mut tiles {
                    tiles.clear();
                    for (panel, b) in panels.iter().zip(&self.right).filter(|(_, b)| b.steps > 0) {
                        // SAFETY: a panel has rows and a packed one lines for all of its steps.
                        unsafe { tiles.add(panel.at, panel.stride, b.panel(right).as_ptr(), b.steps) };
                    }
                    tiles.store(&mut sums);
                } else {
                    sums.0 = [[0.0; PANEL]; PANEL];
                    for (panel, b) in panels.iter().zip(&self.right) {
                        // SAFETY: as above.
                        unsafe { pairs(panel, b.panel(right), &mut sums) };
                    }
                }
                // SAFETY: the caller vouches that these elements are this task's.
                unsafe { self.write(left * PANEL, right * PANEL, &mut sums) };
            }
        }
    }

    /// Writes the sums of a block whose first row and column in the product are given.
    ///
    /// # Safety
    /// As [`Job::run`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn write(&self, left: usize, right: usize, sums: &mut Block) {
        let (first, column) = if self.turned {
            transpose(sums);
            (right, left)
        } else {
            (left, right)
        };
        let (m, n) = self.size;
        let width = PANEL.min(n - column);
        let mask = |half: usize| (((1u64 << width) - 1) >> (TILE * half)) as __mmask16;
        let mut bias = [_mm512_setzero_ps(); 2];
        if let Some(b) = self.bias {
            let b = super::pack::load(&b[column..column + width]);
            bias = [widen(_mm512_castsi512_si256(b)), widen(_mm512_extracti64x4_epi64::<1>(b))];
        }
        for (i, row) in sums.0.iter().enumerate().take(m - first) {
            // SAFETY: a row is 32 floats, aligned to a line.
            let (low, high) =
                unsafe { (_mm512_load_ps(row.as_ptr()), _mm512_load_ps(row.as_ptr().add(TILE))) };
            let (low, high) = (_mm512_add_ps(low, bias[0]), _mm512_add_ps(high, bias[1]));
            let at = (first + i) * n + column;
            match self.target {
                // SAFETY: row and masked columns are inside the result, and the caller vouches that they are ours.
                Target::F32(out) => unsafe {
                    _mm512_mask_storeu_ps(out.add(at), mask(0), low);
                    _mm512_mask_storeu_ps(out.add(at + TILE.min(width)), mask(1), high);
                },
                // SAFETY: as above.
                Target::Bf16(out) => unsafe {
                    let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
                    let mask = ((1u64 << width) - 1) as __mmask32;
                    _mm512_mask_storeu_epi16(out.add(at).cast(), mask, both);
                },
            }
        }
    }
}

/// 16 numbers in float32.
#[target_feature(enable = "avx512f")]
fn widen(x: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(x)))
}

/// The panel of a left factor that begins with row `first`: in place where all of it is there, else in `copy`, filled
/// up with zeros.
#[target_feature(enable = "avx512f,avx512bw")]
fn panel(a: Mat<'_, bf16>, first: usize, copy: &mut Vec<Line>) -> Panel {
    if first + PANEL <= a.rows && a.cols.is_multiple_of(STEP) {
        return Panel { at: a.data[first * a.row..].as_ptr().cast(), stride: a.row * size_of::<bf16>() };
    }
    let steps = a.cols.div_ceil(STEP);
    copy.clear();
    copy.resize(PANEL * steps, Line::ZERO);
    for (i, lines) in copy.chunks_exact_mut(steps.max(1)).enumerate().take(a.rows - first) {
        let row = &a.data[(first + i) * a.row..][..a.cols];
        for (line, part) in lines.iter_mut().zip(row.chunks(STEP)) {
            line.0[..part.len()].copy_from_slice(part);
        }
    }
    Panel { at: copy.as_ptr().cast(), stride: steps * size_of::<Line>() }
}

/// Adds the product of a panel and packed lines to the sums, in pairs.
///
/// # Safety
/// The panel must be readable for as many steps as the lines have.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn pairs(panel: &Panel, lines: &[Line], sums: &mut Block) {
    const ROWS: usize = 8;
    for first in (0..PANEL).step_by(ROWS) {
        let mut low = [_mm512_setzero_ps(); ROWS];
        let mut high = low;
        for (step, lines) in lines.as_chunks::<{ 2 * TILE }>().0.iter().enumerate() {
            for p in 0..TILE {
                let line = |i: usize| {
                    // SAFETY: a line is 64 bytes and aligned to as many.
                    unsafe {
                        let line = _mm512_load_si512(lines[i].0.as_ptr().cast());
                        std::mem::transmute::<__m512i, __m512bh>(line)
                    }
                };
                let (b0, b1) = (line(p), line(TILE + p));
                for r in 0..ROWS {
                    let at = (first + r) * panel.stride + (step * TILE + p) * size_of::<u32>();
                    // SAFETY: the caller vouches for the panel.
                    let word = unsafe { panel.at.add(at).cast::<i32>().read_unaligned() };
                    // SAFETY: both are 512 bits.
                    let a = unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(word)) };
                    low[r] = _mm512_dpbf16_ps(low[r], a, b0);
                    high[r] = _mm512_dpbf16_ps(high[r], a, b1);
                }
            }
        }
        for (r, row) in sums.0[first..first + ROWS].iter_mut().enumerate() {
            // SAFETY: a row is 32 floats, aligned to a line.
            unsafe {
                _mm512_store_ps(row.as_mut_ptr(), _mm512_add_ps(_mm512_load_ps(row.as_ptr()), low[r]));
                let second = row.as_mut_ptr().add(TILE);
                _mm512_store_ps(second, _mm512_add_ps(_mm512_load_ps(second), high[r]));
            }
        }
    }
}

/// Transposes a block.
#[target_feature(enable = "avx512f")]
fn transpose(block: &mut Block) {
    let quarter = |block: &Block, row: usize, column: usize| {
        let mut registers = [_mm512_setzero_si512(); TILE];
        for (i, register) in registers.iter_mut().enumerate() {
            // SAFETY: 16 floats of the row are there, aligned to a line.
            *register = unsafe { _mm512_load_si512(block.0[row + i][column..column + TILE].as_ptr().cast()) };
        }
        turn(&mut registers);
        registers
    };
    let put = |block: &mut Block, row: usize, column: usize, registers: [__m512i; TILE]| {
        for (i, register) in registers.into_iter().enumerate() {
            // SAFETY: as above.
            unsafe {
                _mm512_store_si512(block.0[row + i][column..column + TILE].as_mut_ptr().cast(), register);
            }
        }
    };
    for corner in [0, TILE] {
        let turned = quarter(block, corner, corner);
        put(block, corner, corner, turned);
    }
    let (upper, lower) = (quarter(block, 0, TILE), quarter(block, TILE, 0));
    put(block, TILE, 0, upper);
    put(block, 0, TILE, lower);
}
