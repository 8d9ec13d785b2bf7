//! Blocks of bf16 rows on the processor's unit for products of bf16. Weights are rounded to bf16 before they meet the
//! values, as PyTorch's kernels do.

use candle_core::WithDType;
use half::bf16;
use std::cell::RefCell;

use super::forward::{KEYS, Partial, Task};
use super::{Rows, Visible};
use crate::bf16::{self as products, Out};
use crate::element::{Element, Real, same};
use crate::gemm::Mat;
use crate::simd::{exp, vectorised};

/// Sums kept apart, one register of them.
const LANES: usize = 16;

/// What a task's rows see; `None` for other element types and other processors.
pub(super) fn many_rows<T: Element>(
    task: Task,
    group: usize,
    visible: &Visible,
    scale: T::Acc,
    q: Rows<T>,
    k: Rows<T>,
    v: Rows<T>,
) -> Option<Partial<T::Acc>> {
    let (q, k, v) = (q.halves()?, k.halves()?, v.halves()?);
    if !products::is_supported() {
        return None;
    }
    let scale = scale.to_f64() as f32;
    let part = SCRATCH.with_borrow_mut(|scratch| blocks(scratch, task, group, visible, scale, q, k, v));
    Some(Partial { acc: same(part.acc).ok()?, top: same(part.top).ok()?, total: same(part.total).ok()? })
}

/// What a task computes with, kept by each thread for its next one.
#[derive(Default)]
struct Scratch {
    queries: Vec<bf16>,
    scores: Vec<f32>,
    weights: Vec<bf16>,
    sums: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The first `n` of a buffer, which grows where it is too small.
pub(super) fn room<T: Clone>(buffer: &mut Vec<T>, n: usize, zero: T) -> &mut [T] {
    if buffer.len() < n {
        buffer.resize(n, zero);
    }
    &mut buffer[..n]
}

#[expect(clippy::too_many_arguments, reason = "an attention and a place to compute it")]
fn blocks(
    scratch: &mut Scratch,
    task: Task,
    group: usize,
    visible: &Visible,
    scale: f32,
    q: Rows<bf16>,
    k: Rows<bf16>,
    v: Rows<bf16>,
) -> Partial<f32> {
    let Task { b, head, rows: (r0, r1), keys: (k0, k1) } = task;
    let (positions, d) = (r1 - r0, q.d);
    let rows = positions * group;
    let end = k1.min(visible.keys(b, r1 - 1));
    let mut part: Partial<f32> = Partial::new(rows, d);
    let Scratch { queries, scores, weights, sums } = scratch;
    queries.clear();
    for h in head * group..(head + 1) * group {
        for i in r0..r1 {
            queries.extend_from_slice(q.row(b, h, i));
        }
    }
    let sums = room(sums, rows * d, 0.0);
    for start in (k0..end).step_by(KEYS) {
        let n = KEYS.min(end - start);
        let (scores, weights) = (room(scores, rows * n, 0.0), room(weights, rows * n, bf16::ZERO));
        let keys = k.matrix(b, head, start, n).t();
        products::product(&[(Mat::new(queries, rows, d), keys)], None, Out::over(scores), false);
        vectorised(
            #[inline(always)]
            || {
                let both = scores.chunks_exact(n).zip(weights.chunks_exact_mut(n));
                for (r, (scores, weights)) in both.enumerate() {
                    let seen = visible.keys(b, r0 + r % positions).saturating_sub(start).min(n);
                    weights[seen..].fill(bf16::ZERO);
                    if seen == 0 {
                        continue;
                    }
                    let (scores, weights) = (&scores[..seen], &mut weights[..seen]);
                    let top = part.top[r].larger(highest(scores, scale));
                    let total = exponentials(scores, scale, top, weights);
                    let shrink = if part.top[r] == f32::NEG_INFINITY { 0.0 } else { exp(part.top[r] - top) };
                    part.total[r] = part.total[r] * shrink + total;
                    part.top[r] = top;
                    for acc in &mut part.acc[r * d..][..d] {
                        *acc *= shrink;
                    }
                }
            },
        );
        let values = v.matrix(b, head, start, n);
        let first = start == k0;
        let out = if first { &mut part.acc[..] } else { &mut *sums };
        products::product(&[(Mat::new(weights, rows, n), values)], None, Out::over(out), false);
        if !first {
            vectorised(
                #[inline(always)]
                || {
                    for (acc, sum) in part.acc.iter_mut().zip(&*sums) {
                        *acc += sum;
                    }
                },
            );
        }
    }
    part
}

/// The highest one of scores times `scale`.
#[inline(always)]
fn highest(scores: &[f32], scale: f32) -> f32 {
    let (chunks, rest) = scores.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for j in 0..LANES {
            lanes[j] = lanes[j].larger(chunk[j] * scale);
        }
    }
    for s in rest {
        lanes[0] = lanes[0].larger(s * scale);
    }
    lanes.iter().fold(f32::NEG_INFINITY, |top, s| top.larger(*s))
}

/// Writes `exp(score * scale - top)`, rounded; the sum of the exponentials.
#[inline(always)]
fn exponentials(scores: &[f32], scale: f32, top: f32, weights: &mut [bf16]) -> f32 {
    let ((chunks, rest), (places, last)) = (scores.as_chunks::<LANES>(), weights.as_chunks_mut::<LANES>());
    let mut lanes = [0f32; LANES];
    for (chunk, place) in chunks.iter().zip(places) {
        for j in 0..LANES {
            let e = exp(chunk[j] * scale - top);
            lanes[j] += e;
            place[j] = bf16::narrow(e);
        }
    }
    for (s, w) in rest.iter().zip(last) {
        let e = exp(s * scale - top);
        lanes[0] += e;
        *w = bf16::narrow(e);
    }
    lanes.iter().sum()
}
