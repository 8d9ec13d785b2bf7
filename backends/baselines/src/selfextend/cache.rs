//! Attention at two resolutions.

use candle_core::{D, Result, Tensor};
use e2llm_kernels::{Mask, attention_lse};
use e2llm_lm::{Heads, KvCache, Memory, PREFILL_BLOCK, Rope};

/// Keys and values of all positions, and, once some are far from others, the keys of the latest by themselves.
///
/// As long as all are near each other this is a plain memory. Then its keys are turned to their groups' positions, once, and those of the
/// latest stay beside them as they are. Near and far keys are attended to apart, by the same kernels as everywhere, and put together
/// by their sums of exponentials: no scores are held.
#[derive(Debug, Clone)]
pub(super) struct SelfExtendCache {
    group: usize,
    neighbours: usize,
    all: KvCache,
    /// Whether the keys of all are those of their groups.
    is_grouped: bool,
    /// Keys `[1, Hkv, room, d]` of the latest positions, by layer, each turned by its own position; `held` of them.
    near: Vec<Tensor>,
    held: usize,
    room: usize,
    turns: Option<Turns>,
}

/// cos and sin of a block of positions by their groups, which are the same in every layer.
#[derive(Debug, Clone)]
struct Turns {
    /// First position and how many.
    block: (usize, usize),
    queries: (Tensor, Tensor),
    keys: (Tensor, Tensor),
}

/// What some queries `[1, H, t, d]` see of some keys: the mean of the values and the logarithm of the weights' sum.
type Seen = (Tensor, Tensor);

impl SelfExtendCache {
    /// A memory for about `expected` positions, both numbers being at least 1.
    pub(super) fn new(group: usize, neighbours: usize, expected: usize) -> Self {
        // No position is one that the decoder never saw: angles are those of a text within its window.
        let all = KvCache::new(expected).with_angles_of(0);
        let (near, is_grouped) = (Vec::new(), false);
        Self { group, neighbours, all, is_grouped, near, held: 0, room: 0, turns: None }
    }

    /// Positions that stay near a later one.
    fn before(&self) -> usize {
        self.neighbours - 1
    }

    /// Makes ready for `t` positions, some of which are far from others.
    fn begin(&mut self, t: usize, rope: &Rope) -> Result<()> {
        if !self.is_grouped {
            self.is_grouped = true;
            self.part(rope)?;
        }
        if self.held + t <= self.room {
            return Ok(());
        }
        let stay = self.held.min(self.before());
        let room = (self.before() + self.neighbours).max(stay + t);
        for keys in &mut self.near {
            *keys = moved(keys, (self.held - stay, stay), room)?;
        }
        (self.held, self.room) = (stay, room);
        Ok(())
    }

    /// Keeps the keys of the latest positions read as they are, and turns those of all to their groups' positions.
    fn part(&mut self, rope: &Rope) -> Result<()> {
        let read = self.all.offset();
        let stay = read.min(self.before());
        let room = self.before() + self.neighbours;
        // From position i to that of its group.
        let by: Vec<u32> = (0..read).map(|i| (i - i / self.group) as u32).collect();
        let mut layer = 0;
        while let Some((k, _)) = self.all.layer(layer)?.filter(|_| read > 0) {
            self.near.push(moved(&k, (read - stay, stay), room)?);
            let (cos, sin) = rope.turns(0, read, 0)?;
            let index = Tensor::new(&by[..], cos.device())?;
            let (cos, back) = (cos.index_select(&index, 0)?, sin.index_select(&index, 0)?.neg()?);
            self.all.replace_keys(layer, &e2llm_kernels::rope(&k, &cos, &back)?)?;
            layer += 1;
        }
        (self.held, self.room) = (stay, room);
        Ok(())
    }

    /// The turns of the `t` positions from `offset` on.
    fn turns(&mut self, offset: usize, t: usize, rope: &Rope) -> Result<Turns> {
        if let Some(turns) = self.turns.as_ref().filter(|turns| turns.block == (offset, t)) {
            return Ok(turns.clone());
        }
        let of = |shift: usize| -> Result<(Tensor, Tensor)> {
            let positions: Vec<u32> = (offset..offset + t).map(|i| (i / self.group + shift) as u32).collect();
            let rows = positions.last().map_or(0, |p| *p as usize + 1);
            let (cos, sin) = rope.tables(0, rows, rows)?;
            let index = Tensor::new(positions, cos.device())?;
            Ok((cos.index_select(&index, 0)?, sin.index_select(&index, 0)?))
        };
        let queries = of(self.neighbours - self.neighbours / self.group)?;
        let turns = Turns { block: (offset, t), queries, keys: of(0)? };
        self.turns = Some(turns.clone());
        Ok(turns)
    }

    /// All near keys of a layer, the new ones `k` included.
    fn remember(&mut self, layer: usize, k: &Tensor) -> Result<Tensor> {
        let (b, heads, t, d) = k.dims4()?;
        if self.near.len() <= layer {
            self.near.push(Tensor::zeros((b, heads, self.room, d), k.dtype(), k.device())?);
        }
        let keys = &self.near[layer];
        keys.slice_set(&k.contiguous()?, 2, self.held)?;
        keys.narrow(2, 0, self.held + t)
    }

    /// What the near keys give `t` queries that all have `near - 1` neighbours before them: the last of `near - 1 + t`
    /// keys are those of the queries themselves.
    fn neighbourhood(q: &Tensor, k: &Tensor, v: &Tensor, near: usize, scale: f64) -> Result<Seen> {
        let t = q.dims4()?.2;
        if t == 1 {
            return attention_lse(q, k, v, Mask::None, scale);
        }
        // The first t keys are seen by query i from the i-th on: read backwards, up to itself.
        let reverse: Vec<u32> = (0..t as u32).rev().collect();
        let reverse = Tensor::new(reverse, q.device())?;
        let backwards = |x: &Tensor| x.contiguous()?.index_select(&reverse, 2);
        let (qr, kr, vr) = (backwards(q)?, backwards(&k.narrow(2, 0, t)?)?, backwards(&v.narrow(2, 0, t)?)?);
        let (o, sums) = attention_lse(&qr, &kr, &vr, Mask::Causal { offset: 0 }, scale)?;
        let leaving = (backwards(&o)?, backwards(&sums)?);
        // The others up to the query itself.
        let rest = |x: &Tensor| x.narrow(2, t, near - 1);
        let mask = Mask::Causal { offset: near - 1 - t };
        let staying = attention_lse(q, &rest(k)?, &rest(v)?, mask, scale)?;
        let top = leaving.1.maximum(&staying.1)?;
        let part = |sums: &Tensor| (sums - &top)?.exp();
        let sums = (&top + (part(&leaving.1)? + part(&staying.1)?)?.log()?)?;
        Ok((mixed(&leaving, &staying)?, sums))
    }
}

/// A tensor with room for `room` positions, whose first are the `n` from `from` on of `x` `[1, Hkv, .., d]`.
fn moved(x: &Tensor, (from, n): (usize, usize), room: usize) -> Result<Tensor> {
    let (b, heads, _, d) = x.dims4()?;
    let new = Tensor::zeros((b, heads, room, d), x.dtype(), x.device())?;
    if n > 0 {
        new.slice_set(&x.narrow(2, from, n)?.contiguous()?, 2, 0)?;
    }
    Ok(new)
}

/// What queries see of two disjoint sets of keys together.
fn mixed((a, a_sums): &Seen, (b, b_sums): &Seen) -> Result<Tensor> {
    let (kept, dtype) = (a.dtype(), a_sums.dtype());
    let part = candle_nn::ops::sigmoid(&(a_sums - b_sums)?)?.unsqueeze(D::Minus1)?;
    let (a, b) = (a.to_dtype(dtype)?, b.to_dtype(dtype)?);
    (&b + (a - &b)?.broadcast_mul(&part)?)?.to_dtype(kept)
}

impl Memory for SelfExtendCache {
    fn offset(&self) -> usize {
        self.all.offset()
    }

    /// Up to the first position that is far from another one; then as many as have the same neighbours but for themselves.
    fn block(&self) -> usize {
        let left = self.neighbours.saturating_sub(self.offset());
        let most = if self.is_grouped || left == 0 { self.before() } else { left };
        most.max(1)
    }

    fn behind(&mut self) -> Option<&mut KvCache> {
        (!self.is_grouped && self.offset() < self.neighbours).then_some(&mut self.all)
    }

    fn attend(&mut self, layer: usize, heads: &Heads, rope: &Rope) -> Result<Tensor> {
        let (t, offset, near, scale) = (heads.positions()?, self.offset(), self.neighbours, heads.scale()?);
        if !self.is_grouped && offset + t <= near {
            return self.all.attend(layer, heads, rope);
        }
        if layer == 0 {
            self.begin(t, rope)?;
        }
        let turns = self.turns(offset, t, rope)?;
        let far_k = e2llm_kernels::rope(&heads.k, &turns.keys.0, &turns.keys.1)?;
        let (far_k, v) = self.all.append(layer, &far_k, &heads.v)?;
        let (cos, sin) = rope.places(offset, t, 0)?;
        let near_k = self.remember(layer, &e2llm_kernels::rope(&heads.k, &cos, &sin)?)?;
        let first = offset - self.held;
        let near_q = e2llm_kernels::rope(&heads.q, &cos, &sin)?;
        let far_q = e2llm_kernels::rope(&heads.q, &turns.queries.0, &turns.queries.1)?;
        let mut parts = Vec::new();
        let mut start = offset;
        while start < offset + t {
            let left = offset + t - start;
            if start < near {
                // Nothing is far from these yet.
                let n = left.min(near - start);
                let seen = |x: &Tensor, first: usize| x.narrow(2, 0, start + n - first);
                let q = near_q.narrow(2, start - offset, n)?;
                let mask = Mask::Causal { offset: start };
                parts.push(e2llm_kernels::attention(&q, &seen(&near_k, first)?, &seen(&v, 0)?, mask, scale)?);
                start += n;
                continue;
            }
            let n = left.min(self.before().clamp(1, PREFILL_BLOCK));
            let of = |x: &Tensor| x.narrow(2, start - offset, n);
            let from = start + 1 - near;
            let (k, near_v) =
                (near_k.narrow(2, from - first, near - 1 + n)?, v.narrow(2, from, near - 1 + n)?);
            let close = Self::neighbourhood(&of(&near_q)?, &k, &near_v, near, scale)?;
            let before = |x: &Tensor| x.narrow(2, 0, from + n - 1);
            let mask = Mask::Causal { offset: from - 1 };
            let distant = attention_lse(&of(&far_q)?, &before(&far_k)?, &before(&v)?, mask, scale)?;
            parts.push(mixed(&close, &distant)?);
            start += n;
        }
        if parts.len() == 1 { Ok(parts.remove(0)) } else { Tensor::cat(&parts, 2) }
    }

    fn advance(&mut self, t: usize) {
        self.all.advance(t);
        if self.is_grouped {
            self.held += t;
        }
    }

    fn fork(&self) -> Result<Box<dyn Memory>> {
        // What is near is written behind what is held, but moves; and what all are turned by may change.
        let all = if self.is_grouped { self.all.clone() } else { self.all.copied()? };
        let near = self.near.iter().map(Tensor::copy).collect::<Result<_>>()?;
        Ok(Box::new(Self { all, near, ..self.clone() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use e2llm_lm::RopeScaling;

    const D: usize = 4;

    /// `x` turned by `position`, by the definition.
    fn turned(x: &[f64], position: f64) -> Vec<f64> {
        let half = D / 2;
        let mut out = vec![0.0; D];
        for i in 0..half {
            let (sin, cos) = (position * 100f64.powf(-2.0 * i as f64 / D as f64)).sin_cos();
            out[i] = x[i] * cos - x[i + half] * sin;
            out[i + half] = x[i + half] * cos + x[i] * sin;
        }
        out
    }

    #[test]
    fn distances_are_those_of_the_paper() {
        for near in [7, 1, 2, 23, 40] {
            distances_with(near);
        }
    }

    fn distances_with(near: usize) {
        let (n, group) = (23, 3);
        let value = |i: usize, s: usize| ((i * 37 + s * 101) as f64 * 0.713).sin();
        let rows = |s: usize, heads: usize| -> Vec<f64> { (0..heads * n * D).map(|i| value(i, s)).collect() };
        let (q, k, v) = (rows(1, 2), rows(2, 1), rows(3, 1));
        let row = |x: &[f64], head: usize, i: usize| x[(head * n + i) * D..][..D].to_vec();
        let rope = Rope::new(100.0, D, RopeScaling::None, DType::F64, &Device::Cpu).unwrap();
        for step in [1, 5, 6, 23] {
            let mut memory = SelfExtendCache::new(group, near, 0);
            let mut start = 0;
            while start < n {
                let t = step.min(n - start);
                let part = |x: &[f64], heads: usize| {
                    let all = Tensor::from_slice(x, (1, heads, n, D), &Device::Cpu).unwrap();
                    all.narrow(2, start, t).unwrap()
                };
                let heads = Heads { q: part(&q, 2), k: part(&k, 1), v: part(&v, 1) };
                let got = memory.attend(0, &heads, &rope).unwrap();
                memory.advance(t);
                for (head, i) in [0, 1].into_iter().flat_map(|h| (start..start + t).map(move |i| (h, i))) {
                    let score = |j: usize| {
                        let distance =
                            if i - j < near { i - j } else { i / group - j / group + near - near / group };
                        let q = turned(&row(&q, head, i), distance as f64);
                        q.iter().zip(row(&k, 0, j)).map(|(a, b)| a * b).sum::<f64>() / (D as f64).sqrt()
                    };
                    let weights: Vec<f64> = (0..=i).map(|j| score(j).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    for c in 0..D {
                        let want: f64 = (0..=i).map(|j| weights[j] / total * row(&v, 0, j)[c]).sum();
                        let got = got.get(0).unwrap().get(head).unwrap().get(i - start).unwrap();
                        let got: f64 = got.get(c).unwrap().to_scalar().unwrap();
                        assert!((got - want).abs() < 1e-9, "{head} {i} {c}: {got} {want}");
                    }
                }
                start += t;
            }
        }
    }
}
