//! Backward pass on the CPU: scores are recomputed block by block from the kept log-sum-exp.

use rayon::prelude::*;

use super::forward::{gather, matrix};
use super::{Rows, Size, Visible, narrow_backward};
use crate::element::{Element, Real, zeros};
use crate::gemm::{Mat, product};
use crate::host;
use crate::simd::{dot, vectorised};

/// Query rows (over all heads of a group) per block.
const ROWS: usize = 256;
/// Keys per block.
pub(super) const KEYS: usize = 256;
/// Parts a head's query blocks are dealt to when there are too few heads to occupy all threads; each part has its
/// own sums for the gradients of keys and values.
const PARTS: usize = 4;

/// What the forward pass read and wrote, and the gradient `g` of its output, all viewed as `[B, H, T, d]`.
pub(super) struct Inputs<'a, T: Element> {
    pub(super) q: Rows<'a, T>,
    pub(super) k: Rows<'a, T>,
    pub(super) v: Rows<'a, T>,
    pub(super) o: Rows<'a, T>,
    pub(super) g: Rows<'a, T>,
    pub(super) lse: &'a [T::Acc],
}

/// Gradients from one part of the query blocks of one key head.
pub(super) struct Part<A> {
    /// `[group * rows, d]` of each block.
    pub(super) dq: Vec<Vec<A>>,
    pub(super) dk: Vec<A>,
    pub(super) dv: Vec<A>,
}

/// Query positions per block.
pub(super) fn block_len(size: Size) -> usize {
    (ROWS / size.group()).clamp(1, size.tq.max(1))
}

/// Gradients of queries `[B, Tq, H, d]`, keys and values `[B, Tk, Hkv, d]`.
pub(super) fn run<T: Element>(
    size: Size,
    visible: &Visible,
    scale: T::Acc,
    inputs: Inputs<T>,
) -> (Vec<T>, Vec<T>, Vec<T>) {
    let Size { b, h, hkv, tq, tk, d } = size;
    let (group, len) = (size.group(), block_len(size));
    let blocks = tq.div_ceil(len);
    let parts = if b * hkv < 8 { PARTS.min(blocks).max(1) } else { 1 };
    let results: Vec<Part<T::Acc>> = (0..b * hkv * parts)
        .into_par_iter()
        .with_max_len(1)
        .map(|task| {
            let (head, part) = (task / parts, task % parts);
            let head = (head / hkv, head % hkv);
            // Dealt in turn, since later blocks see more keys under a causal mask.
            let starts = (part..blocks).step_by(parts).map(|block| block * len);
            match narrow_backward::one_part(size, visible, scale, &inputs, head, starts.clone()) {
                Some(part) => part,
                None => one_part(size, visible, scale, &inputs, head, starts),
            }
        })
        .collect();

    let mut dq = zeros::<T>(b * tq * h * d);
    host::for_rows(
        &mut dq,
        d,
        #[inline(always)]
        |first, rows| {
            for (r, out) in rows.chunks_exact_mut(d).enumerate() {
                let (b, i, head) = ((first + r) / h / tq, (first + r) / h % tq, (first + r) % h);
                let (block, kv) = (i / len, head / group);
                let part = &results[(b * hkv + kv) * parts + block % parts];
                let positions = len.min(tq - block * len);
                let row = head % group * positions + i - block * len;
                for (out, v) in out.iter_mut().zip(&part.dq[block / parts][row * d..]) {
                    *out = T::narrow(*v);
                }
            }
        },
    );
    let total = |which: fn(&Part<T::Acc>) -> &Vec<T::Acc>| -> Vec<T> {
        let mut out = zeros::<T>(b * tk * hkv * d);
        host::for_rows(
            &mut out,
            d,
            #[inline(always)]
            |first, rows| {
                for (r, out) in rows.chunks_exact_mut(d).enumerate() {
                    let (b, t, kv) = ((first + r) / hkv / tk, (first + r) / hkv % tk, (first + r) % hkv);
                    let parts = &results[(b * hkv + kv) * parts..][..parts];
                    if let [part] = parts {
                        for (out, v) in out.iter_mut().zip(&which(part)[t * d..][..d]) {
                            *out = T::narrow(*v);
                        }
                        continue;
                    }
                    for (c, out) in out.iter_mut().enumerate() {
                        let mut value = T::Acc::ZERO;
                        for part in parts {
                            value += which(part)[t * d + c];
                        }
                        *out = T::narrow(value);
                    }
                }
            },
        );
        out
    };
    let (dk, dv) = (total(|p| &p.dk), total(|p| &p.dv));
    (dq, dk, dv)
}

fn one_part<T: Element>(
    size: Size,
    visible: &Visible,
    scale: T::Acc,
    inputs: &Inputs<T>,
    (b, head): (usize, usize),
    starts: impl Iterator<Item = usize>,
) -> Part<T::Acc> {
    let Size { h, tq, tk, d, .. } = size;
    let (group, len) = (size.group(), block_len(size));
    let heads = head * group..(head + 1) * group;
    let zeros = zeros::<T::Acc>;
    let mut result = Part { dq: Vec::new(), dk: zeros(tk * d), dv: zeros(tk * d) };
    let most = len * group;
    let (mut qs, mut gs, mut os) = (zeros(most * d), zeros(most * d), zeros(most * d));
    let (mut p, mut ds) = (zeros(most * KEYS), zeros(most * KEYS));
    let mut delta = zeros(most);
    let (mut key_buffer, mut value_buffer) = (Vec::new(), Vec::new());
    for start in starts {
        let range = start..(start + len).min(tq);
        let (positions, end) = (range.len(), visible.keys(b, range.end - 1));
        let rows = positions * group;
        vectorised(
            #[inline(always)]
            || {
                gather(inputs.q, b, heads.clone(), range.clone(), scale, &mut qs[..rows * d]);
                gather(inputs.g, b, heads.clone(), range.clone(), T::Acc::ONE, &mut gs[..rows * d]);
                gather(inputs.o, b, heads.clone(), range.clone(), T::Acc::ONE, &mut os[..rows * d]);
                for (r, delta) in delta[..rows].iter_mut().enumerate() {
                    let (g, o) = (&gs[r * d..][..d], &os[r * d..][..d]);
                    *delta = dot(g, o);
                }
            },
        );
        let mut dq = zeros(rows * d);
        let (q, g) = (Mat::new(&qs, rows, d), Mat::new(&gs, rows, d));
        for first in (0..end).step_by(KEYS) {
            let n = KEYS.min(end - first);
            let k = matrix(inputs.k, b, head, first..first + n, &mut key_buffer);
            let v = matrix(inputs.v, b, head, first..first + n, &mut value_buffer);
            product(q, k.t(), &mut p, n, false, false);
            product(g, v.t(), &mut ds, n, false, false);
            vectorised(
                #[inline(always)]
                || {
                    for (r, (p, ds)) in
                        p.chunks_exact_mut(n).zip(ds.chunks_exact_mut(n)).take(rows).enumerate()
                    {
                        let i = start + r % positions;
                        let seen = visible.keys(b, i).saturating_sub(first).min(n);
                        let lse = inputs.lse[(b * h + heads.start + r / positions) * tq + i];
                        // A check of bounds within the loop would keep it from being vectorised.
                        let delta = delta[r];
                        for (p, ds) in p[..seen].iter_mut().zip(&mut ds[..seen]) {
                            *p = (*p - lse).exp();
                            *ds = *p * (*ds - delta);
                        }
                        p[seen..].fill(T::Acc::ZERO);
                        ds[seen..].fill(T::Acc::ZERO);
                    }
                },
            );
            let (p, ds) = (Mat::new(&p, rows, n), Mat::new(&ds, rows, n));
            product(p.t(), g, &mut result.dv[first * d..], d, true, false);
            product(ds.t(), q, &mut result.dk[first * d..], d, true, false);
            product(ds, k, &mut dq, d, true, false);
        }
        for dq in &mut dq {
            *dq *= scale;
        }
        result.dq.push(dq);
    }
    result
}
