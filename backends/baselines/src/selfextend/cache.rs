//! Attention at two resolutions.

use candle_core::{D, Result, Tensor};
use e2llm_kernels::{Mask, attention_lse};
use e2llm_lm::{Heads, KvCache, Memory, PREFILL_BLOCK, Rope};

/// Keys, turned by their group's position, and values of all positions, beside the keys of the latest as they are.
///
/// Near and far keys are attended to apart, by the same kernels as everywhere, and put together by their sums of
/// exponentials: no scores are held.
#[derive(Debug, Clone)]
pub(super) struct SelfExtendCache {
    group: usize,
    neighbours: usize,
    far: KvCache,
    /// Keys `[1, Hkv, n, d]`, not rotated, of the last positions, `neighbours - 1` at most, by layer.
    near: Vec<Tensor>,
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
        Self { group, neighbours, far: KvCache::new(expected), near: Vec::new(), turns: None }
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

    /// All near keys of a layer, the new ones `k` included; the last ones stay.
    fn remember(&mut self, layer: usize, k: &Tensor) -> Result<Tensor> {
        let k = k.contiguous()?;
        if self.neighbours == 1 {
            return Ok(k);
        }
        let all = match self.near.get(layer) {
            Some(before) => Tensor::cat(&[before, &k], 2)?,
            None => k,
        };
        let n = all.dims4()?.2;
        let stay = n.min(self.neighbours - 1);
        let last = all.narrow(2, n - stay, stay)?.contiguous()?;
        match self.near.get_mut(layer) {
            Some(slot) => *slot = last,
            None => self.near.push(last),
        }
        Ok(all)
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

/// What queries see of two disjoint sets of keys together.
fn mixed((a, a_sums): &Seen, (b, b_sums): &Seen) -> Result<Tensor> {
    let (kept, dtype) = (a.dtype(), a_sums.dtype());
    let part = candle_nn::ops::sigmoid(&(a_sums - b_sums)?)?.unsqueeze(D::Minus1)?;
    let (a, b) = (a.to_dtype(dtype)?, b.to_dtype(dtype)?);
    (&b + (a - &b)?.broadcast_mul(&part)?)?.to_dtype(kept)
}

impl Memory for SelfExtendCache {
    fn offset(&self) -> usize {
        self.far.offset()
    }

    fn block(&self) -> usize {
        (self.neighbours - 1).clamp(1, PREFILL_BLOCK)
    }

    fn attend(&mut self, layer: usize, heads: &Heads, rope: &Rope) -> Result<Tensor> {
        let (t, offset, near, scale) =
            (heads.positions()?, self.far.offset(), self.neighbours, heads.scale()?);
        let turns = self.turns(offset, t, rope)?;
        let far_k = e2llm_kernels::rope(&heads.k, &turns.keys.0, &turns.keys.1)?;
        let (far_k, v) = self.far.append(layer, &far_k, &heads.v)?;
        let near_k = self.remember(layer, &heads.k)?;
        // Only differences of positions count: those of near keys start at 0.
        let n = near_k.dims4()?.2;
        let first = offset + t - n;
        let (cos, sin) = rope.tables(0, n, n)?;
        let near_k = e2llm_kernels::rope(&near_k, &cos, &sin)?;
        let rows = |x: &Tensor| x.narrow(0, offset - first, t);
        let near_q = e2llm_kernels::rope(&heads.q, &rows(&cos)?, &rows(&sin)?)?;
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
            let n = left.min(self.block());
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
        self.far.advance(t);
    }

    fn fork(&self) -> Result<Box<dyn Memory>> {
        Ok(Box::new(self.clone()))
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
