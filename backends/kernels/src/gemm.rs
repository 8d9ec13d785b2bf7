//! A safe face for the matrix product routine that candle uses as well.

use gemm::Parallelism;
use std::mem::MaybeUninit;

use crate::element::Real;

/// A matrix inside a slice: element `(i, j)` is at `i * row + j * col`.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a, A> {
    pub(crate) data: &'a [A],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row: usize,
    pub(crate) col: usize,
}

impl<'a, A> Mat<'a, A> {
    /// A row-major matrix whose rows are `stride` elements apart.
    pub(crate) fn strided(data: &'a [A], rows: usize, cols: usize, stride: usize) -> Self {
        Self { data, rows, cols, row: stride, col: 1 }
    }

    /// A row-major matrix without gaps.
    pub(crate) fn new(data: &'a [A], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// The transposed view.
    pub(crate) fn t(self) -> Self {
        Self { data: self.data, rows: self.cols, cols: self.rows, row: self.col, col: self.row }
    }

    pub(crate) fn fits(&self) -> bool {
        self.rows == 0
            || self.cols == 0
            || (self.rows - 1) * self.row + (self.cols - 1) * self.col < self.data.len()
    }
}

/// `a * b`, whose inner size must not be 0, on all threads: writes every element of `out`, row-major without gaps.
pub(crate) fn first_product<A: Real>(a: Mat<'_, A>, b: Mat<'_, A>, out: &mut [MaybeUninit<A>]) {
    assert!(a.cols > 0 && out.len() == a.rows * b.cols, "a product that does not write its result");
    // SAFETY: the elements are those of `out`, which are written only.
    unsafe { multiply(a, b, (out.as_mut_ptr().cast(), out.len()), b.cols, false, true) };
}

/// `out = a * b`, or `out += a * b` if `add`; `out` is row-major with rows `stride` elements apart.
///
/// Uses all threads if `parallel`; tasks that already run in parallel pass `false`.
pub(crate) fn product<A: Real>(
    a: Mat<'_, A>,
    b: Mat<'_, A>,
    out: &mut [A],
    stride: usize,
    add: bool,
    parallel: bool,
) {
    // SAFETY: the elements are those of `out`, which is borrowed mutably, so they overlap neither input.
    unsafe { multiply(a, b, (out.as_mut_ptr(), out.len()), stride, add, parallel) };
}

/// See [`product`].
///
/// # Safety
/// There must be that many elements to write, which no one else reads or writes meanwhile, and to read if `add`.
unsafe fn multiply<A: Real>(
    a: Mat<'_, A>,
    b: Mat<'_, A>,
    (out, len): (*mut A, usize),
    stride: usize,
    add: bool,
    parallel: bool,
) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    assert_eq!(k, b.rows, "inner sizes of a matrix product differ");
    if m == 0 || n == 0 {
        return;
    }
    assert!(a.fits() && b.fits() && stride >= n && (m - 1) * stride + n <= len, "matrix out of bounds");
    let threads = if parallel { rayon::current_num_threads() } else { 1 };
    let parallelism = if threads > 1 { Parallelism::Rayon(threads) } else { Parallelism::None };
    let alpha = if add { A::ONE } else { A::ZERO };
    // SAFETY: the assertions above keep every element the routine reads or writes inside its slice, and the caller vouches
    // for `out`.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out,
            1,
            stride as isize,
            add,
            a.data.as_ptr(),
            a.col as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.col as isize,
            b.row as isize,
            alpha,
            A::ONE,
            false,
            false,
            false,
            parallelism,
        );
    }
}
