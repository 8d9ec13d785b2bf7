//! Products of rows with weights on the CPU, for every element type.
//!
//! float32 and float64 go through the `gemm` crate, bf16 through the processor's own unit for it or, where it has
//! none, through float32, panel by panel, so that what is widened stays in the cache.

use crate::bf16::{self, Out};
use crate::element::{Element, Real, floats_mut, halves, same, widened, written, zeros};
use crate::gemm::{Mat, first_product, product};
use crate::host;
use crate::simd::dot;
use std::mem::MaybeUninit;

/// Rows of input up to which each weight is read once and multiplied directly: packing it for a blocked product
/// would cost more than the product.
const FEW_ROWS: usize = 4;
/// Output columns that are widened at a time for element types without a matrix product of their own.
const PANEL: usize = 256;

/// Rows `[m, inner]` and the matrix that they are multiplied with.
#[derive(Clone, Copy)]
pub(crate) struct Term<'a, T> {
    rows: &'a [T],
    weight: &'a [T],
    inner: usize,
}

impl<'a, T> Term<'a, T> {
    pub(crate) fn new(rows: &'a [T], weight: &'a [T], inner: usize) -> Self {
        Self { rows, weight, inner }
    }

    fn count(&self) -> usize {
        self.rows.len().checked_div(self.inner).unwrap_or(0)
    }
}

/// `x1 w1^T + x2 w2^T + .. + bias` for weights `[n, inner]`: `[m, n]`.
pub(crate) fn rows_times_columns<T: Element>(terms: &[Term<'_, T>], bias: Option<&[T]>, n: usize) -> Vec<T> {
    let m = terms.first().map_or(0, Term::count);
    if m > FEW_ROWS
        && let Some(y) = half_product(terms, bias, |w, inner| Mat::new(w, n, inner).t(), (m, n))
    {
        return y;
    }
    if m > FEW_ROWS
        && let Some(y) = wide_product(terms, bias, |w, inner| Mat::new(w, n, inner).t(), (m, n))
    {
        return y;
    }
    let mut y = zeros::<T>(m * n);
    if m == 0 || n == 0 {
        return y;
    }
    if m <= FEW_ROWS {
        few_rows(terms, bias, n, &mut y);
    } else {
        panels(terms, bias, n, &mut y);
    }
    y
}

/// `x1 w1 + x2 w2 + ..` for weights `[inner, k]`: `[m, k]`. Sums are rounded once.
pub(crate) fn rows_times_rows<T: Element>(terms: &[Term<'_, T>], k: usize) -> Vec<T> {
    let m = terms.first().map_or(0, Term::count);
    if let Some(out) = half_product(terms, None, |w, inner| Mat::new(w, inner, k), (m, k)) {
        return out;
    }
    if let Some(out) = wide_product(terms, None, |w, inner| Mat::new(w, inner, k), (m, k)) {
        return out;
    }
    let mut wide = vec![T::Acc::ZERO; m * k];
    for t in terms {
        let x = widen_all(t.rows);
        for first in (0..t.inner).step_by(PANEL) {
            let rows = PANEL.min(t.inner - first);
            let w = widen_all(&t.weight[first * k..(first + rows) * k]);
            let part = Mat::strided(&x[first..], m, rows, t.inner);
            product(part, Mat::new(&w, rows, k), &mut wide, k, true, true);
        }
    }
    narrow_all(wide)
}

/// `a^T b` of rows `a` (`[m, r]`) and `b` (`[m, c]`): `[r, c]`, sums as they are.
pub(crate) fn columns_times_rows<T: Element>(a: &[T], b: &[T], r: usize, c: usize) -> Vec<T::Acc> {
    let m = a.len().checked_div(r).unwrap_or(0);
    let mut out = vec![T::Acc::ZERO; r * c];
    if let (Some(a), Some(b)) = (halves(a), halves(b))
        && let Some(out) = floats_mut(&mut out)
        && bf16::product(&[(Mat::new(a, m, r).t(), Mat::new(b, m, c))], None, Out::over(out), true)
    {
        // Written.
    } else if let (Some(a), Some(b)) = (widened(a), widened(b)) {
        product(Mat::new(a, m, r).t(), Mat::new(b, m, c), &mut out, c, false, true);
    } else {
        let (a, b) = (widen_all(a), widen_all(b));
        product(Mat::new(&a, m, r).t(), Mat::new(&b, m, c), &mut out, c, false, true);
    }
    out
}

/// The product `[m, n]` of elements that are their own sums; nothing for others.
fn wide_product<'a, T: Element>(
    terms: &[Term<'a, T>],
    bias: Option<&[T]>,
    weight: impl Fn(&'a [T::Acc], usize) -> Mat<'a, T::Acc>,
    (m, n): (usize, usize),
) -> Option<Vec<T>> {
    let factors = terms.iter().filter(|t| t.inner > 0).map(|t| {
        let (x, w) = (widened(t.rows)?, widened(t.weight)?);
        Some((Mat::new(x, m, t.inner), weight(w, t.inner)))
    });
    let factors = factors.collect::<Option<Vec<_>>>()?;
    let bias = match bias {
        Some(bias) => Some(widened(bias)?),
        None => None,
    };
    let (mut sums, rest) = match (bias, &factors[..]) {
        // SAFETY: rows are written as a whole.
        (Some(bias), all) if n > 0 => (unsafe { written(m * n, |out| repeat(bias, out)) }, all),
        // SAFETY: a product with an inner size above 0 writes every element.
        (None, [(x, w), rest @ ..]) => (unsafe { written(m * n, |out| first_product(*x, *w, out)) }, rest),
        (_, all) => (vec![T::Acc::ZERO; m * n], all),
    };
    for (x, w) in rest {
        product(*x, *w, &mut sums, n, true, true);
    }
    same(sums).ok()
}

/// Writes a row again and again; what is written to consists of such rows.
fn repeat<A: Real>(row: &[A], out: &mut [MaybeUninit<A>]) {
    assert!(out.len().is_multiple_of(row.len()), "rows of another length");
    host::for_rows(
        out,
        row.len(),
        #[inline(always)]
        |_, rows| {
            for out in rows.chunks_exact_mut(row.len()) {
                for (out, v) in out.iter_mut().zip(row) {
                    out.write(*v);
                }
            }
        },
    );
}

/// The product `[m, n]` on the processor's unit for bf16; nothing for other elements and other processors.
fn half_product<'a, T: Element>(
    terms: &[Term<'a, T>],
    bias: Option<&[T]>,
    weight: impl Fn(&'a [half::bf16], usize) -> Mat<'a, half::bf16>,
    (m, n): (usize, usize),
) -> Option<Vec<T>> {
    let factors = terms.iter().filter_map(|t| {
        let (x, w) = (halves(t.rows)?, halves(t.weight)?);
        Some((Mat::new(x, m, t.inner), weight(w, t.inner)))
    });
    let factors: Vec<_> = factors.collect();
    rounded(&factors, bias.and_then(halves), (m, n))
}

/// A product of bf16 of such a size, where the processor has a unit for it and `T` is that type.
fn rounded<T: Element>(
    factors: &[bf16::Term<'_>],
    bias: Option<&[half::bf16]>,
    (m, n): (usize, usize),
) -> Option<Vec<T>> {
    if factors.is_empty() || !bf16::is_supported() {
        return None;
    }
    // SAFETY: a product that was made of some term has written every element.
    let out = unsafe {
        written(m * n, |out| {
            assert!(bf16::product(factors, bias, Out::Bf16(out), true), "the unit for bf16 has gone");
        })
    };
    same(out).ok()
}

/// Reads every weight once and multiplies it with all rows.
fn few_rows<T: Element>(terms: &[Term<'_, T>], bias: Option<&[T]>, n: usize, y: &mut [T]) {
    let m = y.len() / n;
    let wide: Vec<Vec<T::Acc>> = terms.iter().map(|t| t.rows.iter().map(|v| v.widen()).collect()).collect();
    let cost: usize = terms.iter().map(|t| t.inner * m).sum();
    let mut columns = zeros::<T>(n * m);
    host::for_work(
        &mut columns,
        m,
        cost,
        #[inline(always)]
        |first, out| {
            for (j, out) in out.chunks_exact_mut(m).enumerate() {
                let b = bias.map_or(T::Acc::ZERO, |b| b[first + j].widen());
                for (i, out) in out.iter_mut().enumerate() {
                    let mut sum = b;
                    for (t, x) in terms.iter().zip(&wide) {
                        let row = &t.weight[(first + j) * t.inner..][..t.inner];
                        sum += dot(&x[i * t.inner..][..t.inner], row);
                    }
                    *out = T::narrow(sum);
                }
            }
        },
    );
    for (j, column) in columns.chunks_exact(m).enumerate() {
        for (i, v) in column.iter().enumerate() {
            y[i * n + j] = *v;
        }
    }
}

/// Product by panels of weight rows, widened into a buffer that stays in the cache.
fn panels<T: Element>(terms: &[Term<'_, T>], bias: Option<&[T]>, n: usize, y: &mut [T]) {
    let m = y.len() / n;
    let mut wide_y = vec![T::Acc::ZERO; m * n];
    for (i, t) in terms.iter().enumerate() {
        let x = widen_all(t.rows);
        for first in (0..n).step_by(PANEL) {
            let cols = PANEL.min(n - first);
            let w = widen_all(&t.weight[first * t.inner..(first + cols) * t.inner]);
            let (x, w) = (Mat::new(&x, m, t.inner), Mat::new(&w, cols, t.inner).t());
            product(x, w, &mut wide_y[first..], n, i > 0, true);
        }
    }
    host::for_rows(
        y,
        n,
        #[inline(always)]
        |first, rows| {
            for (row, wide) in rows.chunks_exact_mut(n).zip(wide_y[first * n..].chunks_exact(n)) {
                match bias {
                    Some(bias) => {
                        for ((y, v), b) in row.iter_mut().zip(wide).zip(bias) {
                            *y = T::narrow(*v + b.widen());
                        }
                    }
                    None => {
                        for (y, v) in row.iter_mut().zip(wide) {
                            *y = T::narrow(*v);
                        }
                    }
                }
            }
        },
    );
}

fn widen_all<T: Element>(data: &[T]) -> Vec<T::Acc> {
    let mut out = vec![T::Acc::ZERO; data.len()];
    host::for_rows(
        &mut out,
        1,
        #[inline(always)]
        |first, out| {
            for (o, v) in out.iter_mut().zip(&data[first..]) {
                *o = v.widen();
            }
        },
    );
    out
}

/// Sums rounded to the elements' type.
pub(crate) fn narrow_all<T: Element>(data: Vec<T::Acc>) -> Vec<T> {
    let data = match same(data) {
        Ok(narrow) => return narrow,
        Err(wide) => wide,
    };
    let mut out = zeros::<T>(data.len());
    host::for_rows(
        &mut out,
        1,
        #[inline(always)]
        |first, out| {
            for (o, v) in out.iter_mut().zip(&data[first..]) {
                *o = T::narrow(*v);
            }
        },
    );
    out
}
