//! A memory that is thinned once the prompt is read.

use super::select::{Pooling, highest, pooled};
use candle_core::{D, DType, Result, Tensor, bail};
use e2llm_kernels::Mask;
use e2llm_lm::{Heads, KvCache, Memory, Rope};
use rayon::prelude::*;

/// What is kept of a prompt.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keeping {
    /// Positions in all.
    pub(super) budget: usize,
    /// Of these, the last ones, whose queries choose the others.
    pub(super) observe: usize,
    /// Neighbours pooled, an odd number.
    pub(super) kernel: usize,
    pub(super) pooling: Pooling,
}

/// Keys and values of the prompt, rotated by their places in the text; see the module.
#[derive(Debug, Clone)]
pub(super) struct SnapKvCache {
    keeping: Keeping,
    cache: KvCache,
    read: usize,
    /// Positions of the prompt.
    prompt: usize,
    expected: usize,
    /// Rotated queries `[1, H, n, d]` of the last positions of the prompt, by layer; empty once it is read.
    observed: Vec<Tensor>,
    is_prompt: bool,
}

impl SnapKvCache {
    /// A memory for a prompt of `prompt` positions, `expected` with its answer.
    pub(super) fn new(keeping: Keeping, prompt: usize, expected: usize) -> Self {
        let cache = KvCache::new(expected);
        Self { keeping, cache, read: 0, prompt, expected, observed: Vec::new(), is_prompt: true }
    }

    /// Positions of the prompt until the first that observes.
    fn unobserved(&self) -> usize {
        self.prompt.saturating_sub(self.keeping.observe + self.read)
    }

    /// Positions each head keeps.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.cache.offset()
    }

    fn observe(&mut self, layer: usize, q: &Tensor) -> Result<()> {
        let all = match self.observed.get(layer) {
            Some(before) => Tensor::cat(&[before, q], 2)?,
            None => q.clone(),
        };
        let n = all.dims4()?.2;
        let last = n.min(self.keeping.observe);
        let last = all.narrow(2, n - last, last)?.contiguous()?;
        match self.observed.get_mut(layer) {
            Some(slot) => *slot = last,
            None => self.observed.push(last),
        }
        Ok(())
    }
}

/// The positions before the last `keeping.observe` that each head keeps, by the attention of these last ones:
/// queries `[1, H, n, d]`, keys `[1, Hkv, T, d]`.
pub(super) fn chosen(q: &Tensor, k: &Tensor, keeping: &Keeping) -> Result<Vec<Vec<u32>>> {
    let ((_, h, n, d), (_, hkv, t, _)) = (q.dims4()?, k.dims4()?);
    let group = h / hkv;
    let q = q.to_dtype(DType::F32)?.reshape((hkv, group * n, d))?;
    let k = k.squeeze(0)?.to_dtype(DType::F32)?.contiguous()?;
    let scores = (q.matmul(&k.transpose(1, 2)?)? * (1.0 / (d as f64).sqrt()))?;
    // The last positions see each other up to themselves.
    let later: Vec<f32> =
        (0..n).flat_map(|i| (0..n).map(move |j| if j > i { f32::NEG_INFINITY } else { 0.0 })).collect();
    let later = Tensor::from_vec(later, (1, 1, n, n), q.device())?;
    let scores = scores.reshape((hkv, group, n, t))?;
    let (before, last) = (scores.narrow(3, 0, t - n)?, scores.narrow(3, t - n, n)?.broadcast_add(&later)?);
    let scores = Tensor::cat(&[&before, &last], 3)?;
    let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    let votes = weights.narrow(3, 0, t - n)?.sum(2)?.mean(1)?.to_vec2::<f32>()?;
    let of_head = |votes: Vec<f32>| {
        highest(&pooled(&votes, keeping.kernel, keeping.pooling), keeping.budget - keeping.observe)
    };
    Ok(votes.into_par_iter().map(of_head).collect())
}

/// The positions `keep[h]` of each head `h` of `[1, Hkv, T, d]`, as many of each.
fn gathered(x: &Tensor, keep: &[Vec<u32>]) -> Result<Tensor> {
    let (_, heads, t, d) = x.dims4()?;
    let rows = keep.iter().enumerate().flat_map(|(h, keep)| keep.iter().map(move |at| (h * t) as u32 + at));
    let rows = Tensor::new(rows.collect::<Vec<_>>(), x.device())?;
    x.reshape((heads * t, d))?.index_select(&rows, 0)?.reshape((1, heads, rows.elem_count() / heads, d))
}

impl Memory for SnapKvCache {
    fn offset(&self) -> usize {
        self.read
    }

    /// The last positions of the prompt, whose queries are needed, are read apart.
    fn block(&self) -> usize {
        match self.unobserved() {
            0 => usize::MAX,
            before => before,
        }
    }

    fn behind(&mut self) -> Option<&mut KvCache> {
        (!self.is_prompt || self.unobserved() > 0).then_some(&mut self.cache)
    }

    fn attend(&mut self, layer: usize, heads: &Heads, rope: &Rope) -> Result<Tensor> {
        let (cos, sin) = rope.tables(self.read, heads.positions()?, self.expected)?;
        let q = e2llm_kernels::rope(&heads.q, &cos, &sin)?;
        let k = e2llm_kernels::rope(&heads.k, &cos, &sin)?;
        if self.is_prompt && self.unobserved() == 0 {
            self.observe(layer, &q)?;
        }
        let (k, v) = self.cache.append(layer, &k, &heads.v)?;
        let mask = Mask::Causal { offset: self.cache.offset() };
        e2llm_kernels::attention(&q, &k, &v, mask, heads.scale()?)
    }

    fn advance(&mut self, t: usize) {
        self.cache.advance(t);
        self.read += t;
    }

    fn prompt_read(&mut self) -> Result<()> {
        let observed = std::mem::take(&mut self.observed);
        self.is_prompt = false;
        if self.read <= self.keeping.budget {
            return Ok(());
        }
        let last = (self.read - self.keeping.observe) as u32..self.read as u32;
        let mut layers = Vec::with_capacity(observed.len());
        for (layer, q) in observed.iter().enumerate() {
            let Some((k, v)) = self.cache.layer(layer)? else { bail!("layer {layer} has read nothing") };
            let mut keep = chosen(q, &k, &self.keeping)?;
            for head in &mut keep {
                head.extend(last.clone());
            }
            layers.push((gathered(&k, &keep)?, gathered(&v, &keep)?));
        }
        self.cache.replace(layers, self.keeping.budget);
        Ok(())
    }

    fn fork(&self) -> Result<Box<dyn Memory>> {
        Ok(Box::new(self.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn tensor(values: &[f32], shape: (usize, usize, usize, usize)) -> Tensor {
        Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
    }

    #[test]
    fn heads_choose_what_their_last_queries_look_at() {
        // Two query heads read key head 0, two read key head 1; the last position observes alone.
        let q = tensor(&[1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0], (1, 4, 1, 2));
        let mut keys = vec![0.0; 2 * 6 * 2];
        keys[2] = 9.0; // head 0, position 1, along its queries
        keys[12 + 2 * 4 + 1] = 9.0; // head 1, position 4
        keys[12 + 2 * 2] = 9.0; // head 1, position 2, across its queries
        let k = tensor(&keys, (1, 2, 6, 2));
        let keeping = Keeping { budget: 2, observe: 1, kernel: 1, pooling: Pooling::Max };
        assert_eq!(chosen(&q, &k, &keeping).unwrap(), [[1], [4]]);
        let keeping = Keeping { budget: 4, kernel: 3, ..keeping };
        assert_eq!(chosen(&q, &k, &keeping).unwrap(), [[0, 1, 2], [0, 3, 4]]);
        let got = gathered(&k, &[vec![1, 5], vec![2, 4]]).unwrap();
        assert_eq!(got.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [9., 0., 0., 0., 9., 0., 0., 9.]);
    }

    #[test]
    fn observers_do_not_see_what_comes_after_them() {
        // Two observers; the first would look at the second alone, if it could.
        let q = tensor(&[5.0, 0.0], (1, 1, 2, 1));
        let k = tensor(&[0.0, 1.0, 0.0, 9.0], (1, 1, 4, 1));
        let keeping = Keeping { budget: 3, observe: 2, kernel: 1, pooling: Pooling::Average };
        assert_eq!(chosen(&q, &k, &keeping).unwrap(), [[1]]);
        let seen = chosen(&tensor(&[-5.0, 0.0], (1, 1, 2, 1)), &k, &keeping).unwrap();
        assert_eq!(seen, [[0]]);
    }
}
