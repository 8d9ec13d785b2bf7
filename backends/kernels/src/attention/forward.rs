//! Forward pass on the CPU: blocks of query rows against blocks of keys with a running softmax.

use rayon::prelude::*;

use super::{Rows, Size, Visible, narrow};
use crate::element::{Element, Real, widened, zeros};
use crate::gemm::{Mat, product};
use crate::host;
use crate::simd::{dot, max, sum, vectorised};

/// Query rows (over all heads of a group) per block; with [`KEYS`] the scores fit the second-level cache.
const ROWS: usize = 192;
/// Keys per block.
pub(super) const KEYS: usize = 256;
/// Up to this many rows, as when decoding, keys are multiplied in place instead of through a packed product.
const FEW_ROWS: usize = 8;
/// Keys per task when there are too few query rows to occupy all threads.
const SPLIT: usize = 512;

/// The state of the running softmax of a block of rows: unnormalised output, row maxima, and row sums.
pub(super) struct Partial<A> {
    pub(super) acc: Vec<A>,
    pub(super) top: Vec<A>,
    pub(super) total: Vec<A>,
}

impl<A: Real> Partial<A> {
    /// Of rows that have seen no key.
    pub(super) fn new(rows: usize, d: usize) -> Self {
        Self { acc: vec![A::ZERO; rows * d], top: vec![A::NEG_INFINITY; rows], total: vec![A::ZERO; rows] }
    }
}

/// One unit of parallel work.
#[derive(Clone, Copy)]
pub(super) struct Task {
    pub(super) b: usize,
    pub(super) head: usize,
    pub(super) rows: (usize, usize),
    pub(super) keys: (usize, usize),
}

/// Query positions per block.
pub(super) fn block_len(size: Size) -> usize {
    (ROWS / size.group()).clamp(1, size.tq.max(1))
}

/// Output `[B, Tq, H, d]` and, if it is to be kept, log-sum-exp `[B, H, Tq]` (plus infinity for a row without keys).
pub(super) fn run<T: Element>(
    size: Size,
    visible: &Visible,
    scale: T::Acc,
    [q, k, v]: [Rows<T>; 3],
    keep: bool,
) -> (Vec<T>, Option<Vec<T::Acc>>) {
    let Size { b, h, hkv, tq, d, .. } = size;
    let (group, len) = (size.group(), block_len(size));
    let blocks = tq.div_ceil(len);
    // The split depends on sizes only, so results do not depend on the number of threads.
    let longest = (0..b).map(|b| visible.keys(b, tq.saturating_sub(1))).max().unwrap_or(0);
    let splits = if b * hkv * blocks < 32 { longest.div_ceil(SPLIT).max(1) } else { 1 };
    let width = longest.div_ceil(splits).max(1);
    let mut tasks = Vec::with_capacity(b * hkv * blocks * splits);
    for b in 0..b {
        for head in 0..hkv {
            for block in 0..blocks {
                for split in 0..splits {
                    let rows = (block * len, (block * len + len).min(tq));
                    tasks.push(Task { b, head, rows, keys: (split * width, (split + 1) * width) });
                }
            }
        }
    }
    let partials: Vec<Partial<T::Acc>> = tasks
        .par_iter()
        .with_max_len(1)
        .map(|&task| {
            if (task.rows.1 - task.rows.0) * group <= FEW_ROWS {
                few_rows(task, group, visible, scale, q, k, v)
            } else if let Some(part) = narrow::many_rows(task, group, visible, scale, q, k, v) {
                part
            } else {
                many_rows(task, group, visible, scale, q, k, v)
            }
        })
        .collect();

    let place = |b: usize, i: usize, head: usize| {
        // First partial of a row and the row's index in it.
        let (block, kv) = (i / len, head / group);
        let first = ((b * hkv + kv) * blocks + block) * splits;
        let rows = (block * len + len).min(tq) - block * len;
        (first, (head % group) * rows + i - block * len)
    };
    let merge = |b: usize, i: usize, head: usize| {
        let (first, row) = place(b, i, head);
        let parts = &partials[first..first + splits];
        let top = parts.iter().fold(T::Acc::NEG_INFINITY, |m, p| m.larger(p.top[row]));
        let mut total = T::Acc::ZERO;
        for p in parts {
            total += p.total[row] * weight(p.top[row], top);
        }
        (parts, row, top, total)
    };
    let lse = keep.then(|| {
        let mut lse = vec![T::Acc::ZERO; b * h * tq];
        host::for_work(
            &mut lse,
            1,
            d,
            #[inline(always)]
            |first, rows| {
                for (i, lse) in rows.iter_mut().enumerate() {
                    let r = first + i;
                    let (_, _, top, total) = merge(r / tq / h, r % tq, r / tq % h);
                    *lse = if total == T::Acc::ZERO { T::Acc::INFINITY } else { top + total.ln() };
                }
            },
        );
        lse
    });
    let mut out = zeros::<T>(b * tq * h * d);
    host::for_rows(
        &mut out,
        d,
        #[inline(always)]
        |first, rows| {
            let mut sums = vec![T::Acc::ZERO; d];
            for (r, out) in rows.chunks_exact_mut(d).enumerate() {
                let (head, i, b) = ((first + r) % h, (first + r) / h % tq, (first + r) / h / tq);
                let (parts, row, top, total) = merge(b, i, head);
                if total == T::Acc::ZERO {
                    continue;
                }
                let inverse = T::Acc::ONE / total;
                if let [part] = parts {
                    for (out, acc) in out.iter_mut().zip(&part.acc[row * d..][..d]) {
                        *out = T::narrow(*acc * inverse);
                    }
                    continue;
                }
                sums.fill(T::Acc::ZERO);
                for p in parts {
                    let weight = weight(p.top[row], top) * inverse;
                    for (sum, acc) in sums.iter_mut().zip(&p.acc[row * d..][..d]) {
                        *sum += *acc * weight;
                    }
                }
                for (out, sum) in out.iter_mut().zip(&sums) {
                    *out = T::narrow(*sum);
                }
            }
        },
    );
    (out, lse)
}

/// What a part with the highest score `top` counts among parts whose highest one is `highest`.
#[inline(always)]
fn weight<A: Real>(top: A, highest: A) -> A {
    if top == A::NEG_INFINITY { A::ZERO } else { (top - highest).exp() }
}

/// Copies a block of rows of all heads of a group, widened and multiplied by `scale`, to `[group * rows, d]`.
#[inline(always)]
pub(super) fn gather<T: Element>(
    x: Rows<T>,
    b: usize,
    heads: std::ops::Range<usize>,
    rows: std::ops::Range<usize>,
    scale: T::Acc,
    out: &mut [T::Acc],
) {
    let positions = heads.flat_map(|h| rows.clone().map(move |i| (h, i)));
    for ((h, i), out) in positions.zip(out.chunks_exact_mut(x.d)) {
        for (out, x) in out.iter_mut().zip(x.row(b, h, i)) {
            *out = x.widen() * scale;
        }
    }
}

/// Every key and value row is read once, in place.
fn few_rows<T: Element>(
    task: Task,
    group: usize,
    visible: &Visible,
    scale: T::Acc,
    q: Rows<T>,
    k: Rows<T>,
    v: Rows<T>,
) -> Partial<T::Acc> {
    let Task { b, head, rows: (r0, r1), keys: (k0, k1) } = task;
    let (rows, d) = ((r1 - r0) * group, q.d);
    let end = k1.min(visible.keys(b, r1 - 1));
    let count = end.saturating_sub(k0);
    let mut part: Partial<T::Acc> = Partial::new(rows, d);
    if count == 0 {
        return part;
    }
    let mut scores = vec![T::Acc::ZERO; rows * count];
    let mut qs = vec![T::Acc::ZERO; rows * d];
    vectorised(
        #[inline(always)]
        || {
            gather(q, b, head * group..(head + 1) * group, r0..r1, scale, &mut qs);
            for j in 0..count {
                let key = k.row(b, head, k0 + j);
                for (r, q) in qs.chunks_exact(d).enumerate() {
                    scores[r * count + j] = dot(q, key);
                }
            }
            for (r, scores) in scores.chunks_exact_mut(count).enumerate() {
                let seen = visible.keys(b, r0 + r % (r1 - r0)).saturating_sub(k0).min(count);
                let (row, rest) = scores.split_at_mut(seen);
                rest.fill(T::Acc::ZERO);
                let top = max(row);
                for s in row.iter_mut() {
                    *s = (*s - top).exp();
                }
                part.top[r] = top;
                part.total[r] = sum(
                    &*row,
                    #[inline(always)]
                    |p| p,
                );
            }
            for j in 0..count {
                let value = v.row(b, head, k0 + j);
                for (r, acc) in part.acc.chunks_exact_mut(d).enumerate() {
                    let p = scores[r * count + j];
                    for (acc, v) in acc.iter_mut().zip(value) {
                        *acc += p * v.widen();
                    }
                }
            }
        },
    );
    part
}

/// Rows `range` of one head as a matrix: in place if no widening is needed, else copied to `buffer`.
pub(super) fn matrix<'a, T: Element>(
    x: Rows<'a, T>,
    b: usize,
    head: usize,
    range: std::ops::Range<usize>,
    buffer: &'a mut Vec<T::Acc>,
) -> Mat<'a, T::Acc> {
    let n = range.len();
    if let Some(data) = widened(x.data) {
        let first = b * x.stride[0] + head * x.stride[1] + range.start * x.stride[2];
        return Mat::strided(&data[first..], n, x.d, x.stride[2]);
    }
    buffer.resize(n * x.d, T::Acc::ZERO);
    vectorised(
        #[inline(always)]
        || gather(x, b, head..head + 1, range, T::Acc::ONE, buffer),
    );
    Mat::new(buffer, n, x.d)
}

/// Both products go through the blocked matrix routine, one block of keys at a time.
fn many_rows<T: Element>(
    task: Task,
    group: usize,
    visible: &Visible,
    scale: T::Acc,
    q: Rows<T>,
    k: Rows<T>,
    v: Rows<T>,
) -> Partial<T::Acc> {
    let Task { b, head, rows: (r0, r1), keys: (k0, k1) } = task;
    let (rows, d) = ((r1 - r0) * group, q.d);
    let end = k1.min(visible.keys(b, r1 - 1));
    let mut part: Partial<T::Acc> = Partial::new(rows, d);
    let mut qs = vec![T::Acc::ZERO; rows * d];
    vectorised(
        #[inline(always)]
        || gather(q, b, head * group..(head + 1) * group, r0..r1, scale, &mut qs),
    );
    let mut scores = vec![T::Acc::ZERO; rows * KEYS];
    let mut buffer = Vec::new();
    for start in (k0..end).step_by(KEYS) {
        let range = start..end.min(start + KEYS);
        let n = range.len();
        let keys = matrix(k, b, head, range.clone(), &mut buffer);
        product(Mat::new(&qs, rows, d), keys.t(), &mut scores, n, false, false);
        vectorised(
            #[inline(always)]
            || {
                for (r, row) in scores.chunks_exact_mut(n).take(rows).enumerate() {
                    let seen = visible.keys(b, r0 + r % (r1 - r0)).saturating_sub(start).min(n);
                    let (row, rest) = row.split_at_mut(seen);
                    rest.fill(T::Acc::ZERO);
                    if seen == 0 {
                        continue;
                    }
                    let top = part.top[r].larger(max(row));
                    for s in row.iter_mut() {
                        *s = (*s - top).exp();
                    }
                    let total = sum(
                        &*row,
                        #[inline(always)]
                        |p| p,
                    );
                    if part.top[r] == T::Acc::NEG_INFINITY {
                        part.total[r] = total;
                    } else {
                        let shrink = (part.top[r] - top).exp();
                        part.total[r] = part.total[r] * shrink + total;
                        for acc in &mut part.acc[r * d..][..d] {
                            *acc *= shrink;
                        }
                    }
                    part.top[r] = top;
                }
            },
        );
        let values = matrix(v, b, head, range, &mut buffer);
        product(Mat::new(&scores, rows, n), values, &mut part.acc, d, true, false);
    }
    part
}
