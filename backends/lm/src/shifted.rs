//! Shifted sparse attention, S2-Attn (LongLoRA, Chen et al. 2023, arXiv 2309.12307).
//!
//! A sequence of T positions is cut into groups of G = T/4. In the first half of the heads a position sees those before it
//! in its own group; in the other half the groups begin G/2 earlier, so that what one layer keeps apart meets in the
//! next. Attention costs O(T G) instead of O(T^2), a quarter.
//!
//! A group that the shift leaves without a beginning or an end is a shorter one: `0..G/2` and `T-G/2..T`. That is the
//! official code's form with flash attention. Its form without rolls the sequence instead, and lets the first G/2
//! positions see the last ones: the leak that the paper warns of.
//!
//! Lengths: the official code takes T as the padded length of the batch and refuses one that G = floor(T/4) does not
//! divide (its fine-tuning form takes groups of 8192 for one that is no multiple of 4096). Here T is a sequence's own
//! length and G = ceil(T/4), the last group being shorter where they do not divide: a sequence's loss does not depend
//! on what it is batched with.

use crate::Heads;
use candle_core::{Device, Result, Tensor, bail};
use e2llm_kernels::{HeadGroups, group_attention};
use std::ops::Range;

/// Groups of a sequence.
const GROUPS: usize = 4;

/// Which positions of a batch of sequences attend to each other.
#[derive(Debug, Clone)]
pub(crate) struct ShiftedGroups {
    batch: usize,
    t: usize,
    /// For the first half of the heads, and the second.
    halves: [HeadGroups; 2],
}

impl ShiftedGroups {
    /// Groups of right-padded sequences of `lengths`, or of full ones.
    pub(crate) fn new(
        (batch, t): (usize, usize),
        lengths: Option<&[usize]>,
        device: &Device,
    ) -> Result<Self> {
        let length = |b: usize| lengths.map_or(t, |l| l[b].min(t));
        let half = |shifted: bool| {
            let of = |b: usize| {
                let own = groups(length(b), shifted).into_iter();
                own.map(move |g| b * t + g.start..b * t + g.end)
            };
            HeadGroups::new(&(0..batch).flat_map(of).collect::<Vec<_>>(), batch * t, device)
        };
        Ok(Self { batch, t, halves: [half(false)?, half(true)?] })
    }

    /// For the first half of the heads, and the second.
    pub(crate) fn halves(&self) -> &[HeadGroups; 2] {
        &self.halves
    }

    /// What rotated queries see: `[B, H, T, d]`, zero behind a sequence's end.
    pub(crate) fn attend(&self, heads: &Heads) -> Result<Tensor> {
        let (b, _, t, _) = heads.q.dims4()?;
        if (b, t) != (self.batch, self.t) {
            bail!("groups of {} x {} positions for {b} x {t}", self.batch, self.t);
        }
        group_attention(&self.halves, &heads.q, &heads.k, &heads.v, heads.scale()?)
    }
}

/// The groups of a sequence, in order and without gaps.
fn groups(length: usize, shifted: bool) -> Vec<Range<usize>> {
    let size = length.div_ceil(GROUPS);
    let mut start = 0;
    let mut end = if shifted && size > 1 { size / 2 } else { size };
    let mut groups = Vec::new();
    while start < length {
        groups.push(start..end.min(length));
        (start, end) = (end, end + size);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Var};
    use e2llm_kernels::Mask;

    const D: usize = 4;

    fn noise(heads: usize, b: usize, t: usize) -> Var {
        Var::randn(0f64, 1.0, (b, heads, t, D), &Device::Cpu).unwrap()
    }

    /// Whether a query of a head sees a key by the paper: both in one group of the head's half, and not later.
    fn sees(head: usize, heads: usize, length: usize, query: usize, key: usize) -> bool {
        let size = length.div_ceil(4);
        let shift = if head < heads / 2 { 0 } else { size / 2 };
        let group = |position: usize| (position + size - shift) / size;
        query < length && key <= query && group(query) == group(key)
    }

    /// Softmax attention over all pairs, those that are not seen masked out.
    fn dense(q: &Tensor, k: &Tensor, v: &Tensor, lengths: &[usize]) -> Tensor {
        let (b, h, t, d) = q.dims4().unwrap();
        let own = k.dim(1).unwrap();
        let each = |x: &Tensor| {
            let x = x.unsqueeze(2).unwrap().broadcast_as((b, own, h / own, t, d)).unwrap();
            x.reshape((b, h, t, d)).unwrap()
        };
        let (k, v) = (each(k), each(v));
        let mask: Vec<f64> = (0..b * h * t * t)
            .map(|i| {
                let (row, head, query, key) = (i / (h * t * t), i / (t * t) % h, i / t % t, i % t);
                f64::from(u8::from(sees(head, h, lengths[row], query, key)))
            })
            .collect();
        let mask = Tensor::from_vec(mask, (b, h, t, t), &Device::Cpu).unwrap();
        let scores = (q.matmul(&k.t().unwrap()).unwrap() / (d as f64).sqrt()).unwrap();
        let weights = (scores.exp().unwrap() * mask).unwrap();
        let sums = weights.sum_keepdim(3).unwrap();
        let empty = sums.eq(0.0).unwrap().to_dtype(DType::F64).unwrap();
        let sums = (sums + empty).unwrap();
        weights.broadcast_div(&sums).unwrap().matmul(&v).unwrap()
    }

    fn gap(a: &Tensor, b: &Tensor) -> f64 {
        let gap = (a - b).unwrap().abs().unwrap().flatten_all().unwrap();
        gap.max(0).unwrap().to_dtype(DType::F64).unwrap().to_scalar().unwrap()
    }

    #[test]
    fn shifted_groups_are_a_dense_mask() {
        // Query heads, key heads, and lengths of the sequences of a batch.
        for (h, hkv, lengths) in [
            (4, 4, vec![16]),
            (4, 2, vec![16, 16]),
            (3, 1, vec![13]),
            (9, 3, vec![11, 3, 24, 18, 1]),
            (1, 1, vec![10]),
        ] {
            let (b, t) = (lengths.len(), lengths.iter().copied().max().unwrap());
            let (q, k, v) = (noise(h, b, t), noise(hkv, b, t), noise(hkv, b, t));
            let heads =
                Heads { q: q.as_tensor().clone(), k: k.as_tensor().clone(), v: v.as_tensor().clone() };
            let groups = ShiftedGroups::new((b, t), Some(&lengths), &Device::Cpu).unwrap();
            let (ours, theirs) = (groups.attend(&heads).unwrap(), dense(&q, &k, &v, &lengths));
            assert!(gap(&ours, &theirs) < 1e-12, "{lengths:?}");

            let factor = Tensor::randn(0f64, 1.0, (b, h, t, D), &Device::Cpu).unwrap();
            let gradients = |o: &Tensor| (o * &factor).unwrap().sum_all().unwrap().backward().unwrap();
            let (ours, theirs) = (gradients(&ours), gradients(&theirs));
            for x in [&q, &k, &v] {
                let gap = gap(ours.get(x).unwrap(), theirs.get(x).unwrap());
                assert!(gap < 1e-12, "{lengths:?}: {gap}");
            }
        }
    }

    #[test]
    fn it_is_not_full_attention_and_does_not_depend_on_the_batch() {
        let (q, k, v) = (noise(4, 2, 16), noise(2, 2, 16), noise(2, 2, 16));
        let heads = Heads { q: q.as_tensor().clone(), k: k.as_tensor().clone(), v: v.as_tensor().clone() };
        let both = ShiftedGroups::new((2, 16), Some(&[16, 9]), &Device::Cpu).unwrap();
        let both = both.attend(&heads).unwrap();
        let full = e2llm_kernels::attention(&q, &k, &v, Mask::Causal { offset: 0 }, 0.5).unwrap();
        assert!(gap(&both.narrow(0, 0, 1).unwrap(), &full.narrow(0, 0, 1).unwrap()) > 0.01);
        // The first group is read in full by both.
        let first = |x: &Tensor| x.narrow(1, 0, 2).unwrap().narrow(2, 0, 3).unwrap().contiguous().unwrap();
        assert!(gap(&first(&both), &first(&full)) < 1e-12);

        let own = |x: &Var| x.narrow(0, 1, 1).unwrap().narrow(2, 0, 9).unwrap();
        let alone = ShiftedGroups::new((1, 9), None, &Device::Cpu).unwrap();
        let alone = alone.attend(&Heads { q: own(&q), k: own(&k), v: own(&v) }).unwrap();
        assert!(gap(&alone, &both.narrow(0, 1, 1).unwrap().narrow(2, 0, 9).unwrap()) < 1e-12);
    }

    #[test]
    fn groups_cover_every_position_once() {
        assert_eq!(groups(16, false), [0..4, 4..8, 8..12, 12..16]);
        assert_eq!(groups(16, true), [0..2, 2..6, 6..10, 10..14, 14..16]);
        assert_eq!(groups(13, false), [0..4, 4..8, 8..12, 12..13]);
        assert_eq!(groups(13, true), [0..2, 2..6, 6..10, 10..13]);
        assert_eq!(groups(3, true), [0..1, 1..2, 2..3]);
        assert!(groups(0, true).is_empty());
    }
}
