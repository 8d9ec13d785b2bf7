//! Attention at two resolutions.

use candle_core::{D, DType, Result, Tensor};
use e2llm_kernels::Mask;
use e2llm_lm::{Heads, KvCache, Memory, Rope};

/// Keys, not rotated, and values of all positions; see the module.
#[derive(Debug, Clone)]
pub(super) struct SelfExtendCache {
    group: usize,
    neighbours: usize,
    cache: KvCache,
}

impl SelfExtendCache {
    /// A memory for about `expected` positions, both numbers being at least 1.
    pub(super) fn new(group: usize, neighbours: usize, expected: usize) -> Self {
        Self { group, neighbours, cache: KvCache::new(expected) }
    }

    /// `x` turned by the angles of the given positions.
    fn turned(x: &Tensor, positions: &[u32], rope: &Rope) -> Result<Tensor> {
        let rows = positions.iter().max().map_or(0, |p| *p as usize + 1);
        let (cos, sin) = rope.tables(0, rows, rows)?;
        let index = Tensor::new(positions, x.device())?;
        e2llm_kernels::rope(x, &cos.index_select(&index, 0)?, &sin.index_select(&index, 0)?)
    }
}

/// Products `[Hkv, H / Hkv, T, n]` of queries `[1, H, T, d]` and keys `[1, Hkv, n, d]`.
fn products(q: &Tensor, k: &Tensor, dtype: DType) -> Result<Tensor> {
    let ((_, h, t, d), (_, hkv, n, _)) = (q.dims4()?, k.dims4()?);
    let q = q.to_dtype(dtype)?.contiguous()?.reshape((hkv, h / hkv * t, d))?;
    let k = k.squeeze(0)?.to_dtype(dtype)?.transpose(1, 2)?.contiguous()?;
    q.matmul(&k)?.reshape((hkv, h / hkv, t, n))
}

impl Memory for SelfExtendCache {
    fn offset(&self) -> usize {
        self.cache.offset()
    }

    /// Scores are held for a block against everything before it.
    fn block(&self) -> usize {
        64
    }

    fn attend(&mut self, layer: usize, heads: &Heads, rope: &Rope) -> Result<Tensor> {
        let ((_, h, t, d), offset) = (heads.q.dims4()?, self.cache.offset());
        let (k, v) = self.cache.append(layer, &heads.k, &heads.v)?;
        let (n, near) = (offset + t, self.neighbours);
        let dtype = if k.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        if n <= near {
            // nothing is far from anything yet
            let (cos, sin) = rope.tables(0, n, n)?;
            let q = e2llm_kernels::rope(&heads.q, &cos.narrow(0, offset, t)?, &sin.narrow(0, offset, t)?)?;
            let k = e2llm_kernels::rope(&k, &cos, &sin)?;
            return e2llm_kernels::attention(&q, &k, &v, Mask::Causal { offset }, heads.scale()?);
        }

        let shift = near - near / self.group;
        let far = |i: usize| (i / self.group) as u32;
        let coarse_q: Vec<u32> = (offset..n).map(|i| far(i) + shift as u32).collect();
        let coarse_k: Vec<u32> = (0..n).map(far).collect();
        let coarse =
            products(&Self::turned(&heads.q, &coarse_q, rope)?, &Self::turned(&k, &coarse_k, rope)?, dtype)?;

        // Keys from `from` on are near to some query of the block. Only differences of positions count, so they
        // start at 0 here.
        let from = (offset + 1).saturating_sub(near);
        let fine_q: Vec<u32> = (offset - from..n - from).map(|i| i as u32).collect();
        let fine_k: Vec<u32> = (0..n - from).map(|i| i as u32).collect();
        let fine = products(
            &Self::turned(&heads.q, &fine_q, rope)?,
            &Self::turned(&k.narrow(2, from, n - from)?, &fine_k, rope)?,
            dtype,
        )?;
        let pairs = || (offset..n).flat_map(|i| (from..n).map(move |j| (i, j)));
        let is_near: Vec<f32> = pairs().map(|(i, j)| f32::from(u8::from(j + near > i))).collect();
        let later: Vec<f32> = pairs().map(|(i, j)| if j > i { f32::NEG_INFINITY } else { 0.0 }).collect();
        let mask =
            |values: Vec<f32>| Tensor::from_vec(values, (1, 1, t, n - from), k.device())?.to_dtype(dtype);
        let is_near = mask(is_near)?;
        let mixed = (fine.broadcast_mul(&is_near)?
            + coarse.narrow(3, from, n - from)?.broadcast_mul(&(1.0 - &is_near)?)?)?
        .broadcast_add(&mask(later)?)?;

        let scores = if from == 0 { mixed } else { Tensor::cat(&[&coarse.narrow(3, 0, from)?, &mixed], 3)? };
        let scores = (scores * heads.scale()?)?;
        let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
        let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
        let hkv = k.dims4()?.1;
        let v = v.squeeze(0)?.to_dtype(dtype)?.contiguous()?;
        let o = weights.reshape((hkv, h / hkv * t, n))?.matmul(&v)?;
        o.reshape((1, h, t, d))?.to_dtype(heads.q.dtype())
    }

    fn advance(&mut self, t: usize) {
        self.cache.advance(t);
    }

    fn fork(&self) -> Result<Box<dyn Memory>> {
        Ok(Box::new(self.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
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
        let (n, group, near) = (23, 3, 7);
        let value = |i: usize, s: usize| ((i * 37 + s * 101) as f64 * 0.713).sin();
        let rows = |s: usize, heads: usize| -> Vec<f64> { (0..heads * n * D).map(|i| value(i, s)).collect() };
        let (q, k, v) = (rows(1, 2), rows(2, 1), rows(3, 1));
        let row = |x: &[f64], head: usize, i: usize| x[(head * n + i) * D..][..D].to_vec();
        let rope = Rope::new(100.0, D, RopeScaling::None, DType::F64, &Device::Cpu).unwrap();
        for step in [1, 5, 23] {
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
