//! Prompts of different lengths read in one pass, one behind the other: weights are read once for all of them, and nothing
//! is padded.

use crate::batch_cache::BatchCache;
use crate::{Heads, KvCache, Llama, Memory, Rope};
use candle_core::{Result, Tensor, bail};

/// One prompt of a pass.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packed {
    /// Where the batch's memory takes it in.
    pub(crate) place: usize,
    /// Its positions.
    pub(crate) len: usize,
    /// Positions its sequence is expected to have, see [`KvCache::new`].
    pub(crate) expected: usize,
}

/// Normalised hidden states `[1, n, D]` of the last positions of prompts `x` (`[1, T, D]`), which stand one behind the other
/// and of which the memory has room for all positions.
pub(crate) fn read(llama: &Llama, x: &Tensor, prompts: &[Packed], cache: &BatchCache) -> Result<Tensor> {
    let (_, t, _) = x.dims3()?;
    if prompts.iter().map(|p| p.len).sum::<usize>() != t || prompts.iter().any(|p| p.len == 0) {
        bail!("{prompts:?} packed in {t} positions");
    }
    let last = prompts.iter().scan(0, |end, p| {
        *end += p.len;
        Some(*end - 1)
    });
    let ends: Vec<usize> = last.collect();
    #[cfg(feature = "cuda")]
    if let Some(hidden) = crate::whole_layers::read_packed(x, llama, (prompts, &ends), cache)? {
        return Ok(hidden);
    }
    let own = |p: &Packed| Ok((p.len, cache.place(p.place, p.expected)?));
    let mut memory = SideBySide(prompts.iter().map(own).collect::<Result<_>>()?);
    let hidden = llama.forward_hidden(x, None, Some(&mut memory))?;
    let ends = ends.into_iter().map(|end| end as u32).collect::<Vec<_>>();
    hidden.index_select(&Tensor::new(ends, x.device())?, 1)
}

/// The memories of prompts that are read in one pass, from their first positions on, and how many positions each has.
struct SideBySide(Vec<(usize, KvCache)>);

impl Memory for SideBySide {
    fn offset(&self) -> usize {
        0
    }

    fn attend(&mut self, layer: usize, heads: &Heads, rope: &Rope) -> Result<Tensor> {
        let mut start = 0;
        let mut attended = Vec::with_capacity(self.0.len());
        for (len, memory) in &mut self.0 {
            let own = |t: &Tensor| t.narrow(2, start, *len);
            let heads = Heads { q: own(&heads.q)?, k: own(&heads.k)?, v: own(&heads.v)? };
            attended.push(memory.attend(layer, &heads, rope)?);
            start += *len;
        }
        Tensor::cat(&attended, 2)
    }

    fn advance(&mut self, _: usize) {
        self.0.iter_mut().for_each(|(len, memory)| memory.advance(*len));
    }

    fn fork(&self) -> Result<Box<dyn Memory>> {
        Ok(Box::new(Self(self.0.clone())))
    }
}
