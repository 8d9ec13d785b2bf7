//! The backward pass of bf16 rows on the processor's unit for products of bf16. Scores are made with a row for each key, so that
//! no product has to turn them. Weights and the gradients of scores are rounded to bf16 before they are multiplied.

use candle_core::WithDType;
use half::bf16;
use std::cell::RefCell;

use super::backward::{Inputs, KEYS, Part, block_len};
use super::narrow::room;
use super::{Rows, Size, Visible};
use crate::bf16::{self as products, Out};
use crate::element::{Element, floats, same};
use crate::gemm::Mat;
use crate::simd::{exp, sum2, vectorised};

/// The gradients from some blocks of query rows, which begin at `starts`; `None` for other element types and other processors.
pub(super) fn one_part<T: Element>(
    size: Size,
    visible: &Visible,
    scale: T::Acc,
    inputs: &Inputs<'_, T>,
    head: (usize, usize),
    starts: impl Iterator<Item = usize>,
) -> Option<Part<T::Acc>> {
    let &Inputs { q, k, v, o, g, lse } = inputs;
    let rows = [q.halves()?, k.halves()?, v.halves()?, o.halves()?, g.halves()?];
    let lse = floats(lse)?;
    if !products::is_supported() {
        return None;
    }
    let task = Task { size, visible, scale: scale.to_f64() as f32, rows, lse, head };
    let Part { dq, dk, dv } = SCRATCH.with_borrow_mut(|scratch| task.run(scratch, starts));
    let dq = dq.into_iter().map(|block| same(block).ok()).collect::<Option<_>>()?;
    Some(Part { dq, dk: same(dk).ok()?, dv: same(dv).ok()? })
}

/// What a task computes with, kept by each thread for its next one.
#[derive(Default)]
struct Scratch {
    queries: Vec<bf16>,
    gradients: Vec<bf16>,
    /// Of each query row: logarithm of its sum, what its gradient and result have in common, and how many keys it sees.
    lse: Vec<f32>,
    delta: Vec<f32>,
    seen: Vec<u32>,
    scores: Vec<f32>,
    changes: Vec<f32>,
    weights: Vec<bf16>,
    slopes: Vec<bf16>,
    sums: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// One key head of one batch row.
struct Task<'a> {
    size: Size,
    visible: &'a Visible,
    scale: f32,
    /// Queries, keys, values, results and their gradients.
    rows: [Rows<'a, bf16>; 5],
    lse: &'a [f32],
    head: (usize, usize),
}

impl Task<'_> {
    fn run(&self, scratch: &mut Scratch, starts: impl Iterator<Item = usize>) -> Part<f32> {
        let Size { tq, tk, d, .. } = self.size;
        let len = block_len(self.size);
        let mut part = Part { dq: Vec::new(), dk: vec![0.0; tk * d], dv: vec![0.0; tk * d] };
        for start in starts {
            let range = start..(start + len).min(tq);
            let end = self.visible.keys(self.head.0, range.end - 1);
            self.collect(scratch, range.clone());
            let mut dq = vec![0.0; range.len() * self.size.group() * d];
            for first in (0..end).step_by(KEYS) {
                self.keys(scratch, first..end.min(first + KEYS), &mut dq, &mut part);
            }
            part.dq.push(dq);
        }
        for v in part.dq.iter_mut().flatten().chain(&mut part.dk) {
            *v *= self.scale;
        }
        part
    }

    /// Gathers a block of query rows of all heads of the group.
    fn collect(&self, scratch: &mut Scratch, range: std::ops::Range<usize>) {
        let Size { h, tq, d, .. } = self.size;
        let ((b, kv), group) = (self.head, self.size.group());
        let [q, _, _, o, g] = self.rows;
        let Scratch { queries, gradients, lse, delta, seen, .. } = scratch;
        queries.clear();
        gradients.clear();
        lse.clear();
        delta.clear();
        seen.clear();
        vectorised(
            #[inline(always)]
            || {
                for head in kv * group..(kv + 1) * group {
                    for i in range.clone() {
                        let row = g.row(b, head, i);
                        queries.extend_from_slice(q.row(b, head, i));
                        gradients.extend_from_slice(row);
                        delta.push(sum2(
                            &row[..d],
                            &o.row(b, head, i)[..d],
                            #[inline(always)]
                            |g, o| g.widen() * o.widen(),
                        ));
                        lse.push(self.lse[(b * h + head) * tq + i]);
                        seen.push(self.visible.keys(b, i) as u32);
                    }
                }
            },
        );
    }

    /// Adds what the collected rows have to do with some keys.
    fn keys(
        &self,
        scratch: &mut Scratch,
        keys: std::ops::Range<usize>,
        dq: &mut [f32],
        part: &mut Part<f32>,
    ) {
        let ((b, kv), d, (first, n)) = (self.head, self.size.d, (keys.start, keys.len()));
        let Scratch { queries, gradients, lse, delta, seen, scores, changes, weights, slopes, sums } =
            scratch;
        let rows = lse.len();
        let (k, v) = (self.rows[1].matrix(b, kv, first, n), self.rows[2].matrix(b, kv, first, n));
        let (q, g) = (Mat::new(queries, rows, d), Mat::new(gradients, rows, d));
        let (scores, changes) = (room(scores, n * rows, 0.0), room(changes, n * rows, 0.0));
        products::product(&[(k, q.t())], None, Out::over(scores), false);
        products::product(&[(v, g.t())], None, Out::over(changes), false);
        let (weights, slopes) = (room(weights, n * rows, bf16::ZERO), room(slopes, n * rows, bf16::ZERO));
        vectorised(
            #[inline(always)]
            || {
                let of_scores = scores.chunks_exact(rows).zip(changes.chunks_exact(rows));
                let places = weights.chunks_exact_mut(rows).zip(slopes.chunks_exact_mut(rows));
                for (j, ((s, c), (w, ds))) in of_scores.zip(places).enumerate() {
                    let key = (first + j) as u32;
                    let (s, c, lse, delta, seen) =
                        (&s[..rows], &c[..rows], &lse[..rows], &delta[..rows], &seen[..rows]);
                    let (w, ds) = (&mut w[..rows], &mut ds[..rows]);
                    for r in 0..rows {
                        let p = exp(s[r] * self.scale - lse[r]);
                        let slope = p * (c[r] - delta[r]);
                        w[r] = bf16::narrow(if key < seen[r] { p } else { 0.0 });
                        ds[r] = bf16::narrow(if key < seen[r] { slope } else { 0.0 });
                    }
                }
            },
        );
        let (weights, slopes) = (Mat::new(weights, n, rows), Mat::new(slopes, n, rows));
        let mut add = |term, to: &mut [f32]| {
            let sums = room(sums, to.len(), 0.0);
            products::product(&[term], None, Out::over(sums), false);
            for (to, sum) in to.iter_mut().zip(sums) {
                *to += *sum;
            }
        };
        add((weights, g), &mut part.dv[first * d..][..n * d]);
        add((slopes, q), &mut part.dk[first * d..][..n * d]);
        add((slopes.t(), k), dq);
    }
}
