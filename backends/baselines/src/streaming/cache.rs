//! The rolling memory: attention sinks and the latest positions.

use candle_core::{Result, Tensor, bail};
use e2llm_kernels::Mask;
use e2llm_lm::{Heads, Memory, PREFILL_BLOCK, Rope};

/// Keys (not rotated) and values of the first `sinks` positions and the latest `recent` ones; see the module.
///
/// Each layer's tensors have room for all of them from the start. The latest ones lie in a ring.
#[derive(Debug, Clone)]
pub(super) struct StreamingCache {
    sinks: usize,
    recent: usize,
    layers: Vec<Option<(Tensor, Tensor)>>,
    /// Positions kept.
    held: usize,
    /// Where in the ring the oldest position is.
    oldest: usize,
    read: usize,
    /// cos and sin by place in the tensors, for one new position; they hold for `oldest` and a number of positions.
    turned: Option<(usize, usize, Tensor, Tensor)>,
}

impl StreamingCache {
    /// A memory of `sinks + recent` positions, `recent` being at least 1.
    pub(super) fn new(sinks: usize, recent: usize) -> Self {
        Self { sinks, recent, layers: Vec::new(), held: 0, oldest: 0, read: 0, turned: None }
    }

    /// Positions it keeps at most.
    fn room(&self) -> usize {
        self.sinks + self.recent
    }

    /// Bytes of keys and values.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        let tensors = self.layers.iter().flatten().flat_map(|(k, v)| [k, v]);
        tensors.map(|t| t.elem_count() * t.dtype().size_in_bytes()).sum()
    }

    /// How many of the oldest positions have to go for `t` new ones.
    fn overflow(&self, t: usize) -> usize {
        (self.held + t).saturating_sub(self.room())
    }

    /// Places of `n` positions of the ring from its `first` on, as at most two runs of (place, length).
    fn runs(&self, first: usize, n: usize) -> [(usize, usize); 2] {
        let start = (self.oldest + first) % self.recent;
        let before = n.min(self.recent - start);
        [(self.sinks + start, before), (self.sinks, n - before)]
    }

    /// Runs of places that `t` new positions take.
    fn places(&self, t: usize) -> Vec<(usize, usize)> {
        let to_sinks = self.sinks.saturating_sub(self.held).min(t);
        let in_ring = self.held.saturating_sub(self.sinks);
        let ring = self.runs(in_ring, t - to_sinks);
        std::iter::once((self.held, to_sinks)).chain(ring).filter(|(_, n)| *n > 0).collect()
    }

    /// Writes new keys and values over those that have to go.
    fn write(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let (batch, heads, t, d) = k.dims4()?;
        if t > self.recent {
            bail!("{t} positions at once into a rolling memory of {}", self.recent);
        }
        if self.layers.len() <= layer {
            self.layers.resize(layer + 1, None);
        }
        let (places, room) = (self.places(t), self.room());
        let slot = &mut self.layers[layer];
        if slot.is_none() {
            let new = || Tensor::zeros((batch, heads, room, d), k.dtype(), k.device());
            *slot = Some((new()?, new()?));
        }
        let Some((keys, values)) = slot else { bail!("no room for keys and values") };
        let mut from = 0;
        for (place, n) in places {
            keys.slice_set(&k.narrow(2, from, n)?.contiguous()?, 2, place)?;
            values.slice_set(&v.narrow(2, from, n)?.contiguous()?, 2, place)?;
            from += n;
        }
        Ok((keys.clone(), values.clone()))
    }

    /// Runs of places in the order of positions, once `t` new ones are written.
    fn order(&self, t: usize) -> Vec<(usize, usize)> {
        let held = self.held + t - self.overflow(t);
        let sinks = held.min(self.sinks);
        let ring = self.runs(self.overflow(t), held - sinks);
        std::iter::once((0, sinks)).chain(ring).filter(|(_, n)| *n > 0).collect()
    }

    /// cos and sin for every place, once one new position is written.
    fn turns(&mut self, rope: &Rope) -> Result<(Tensor, Tensor)> {
        let (oldest, held) = (self.oldest, self.held);
        if let Some((o, h, cos, sin)) = &self.turned
            && (*o, *h) == (oldest, held)
        {
            return Ok((cos.clone(), sin.clone()));
        }
        let runs = self.order(1);
        let n: usize = runs.iter().map(|(_, n)| n).sum();
        let (cos, sin) = rope.tables(0, n, n)?;
        // Each run of places has the angles of the positions it holds; put together in the order of places.
        let mut position = 0;
        let mut tables = Vec::new();
        for (place, n) in runs {
            tables.push((place, cos.narrow(0, position, n)?, sin.narrow(0, position, n)?));
            position += n;
        }
        tables.sort_by_key(|(place, ..)| *place);
        let cos = Tensor::cat(&tables.iter().map(|(_, cos, _)| cos.clone()).collect::<Vec<_>>(), 0)?;
        let sin = Tensor::cat(&tables.iter().map(|(.., sin)| sin.clone()).collect::<Vec<_>>(), 0)?;
        self.turned = Some((oldest, held, cos.clone(), sin.clone()));
        Ok((cos, sin))
    }
}

impl Memory for StreamingCache {
    fn offset(&self) -> usize {
        self.read
    }

    fn block(&self) -> usize {
        (self.recent / 4).clamp(1, PREFILL_BLOCK)
    }

    fn attend(&mut self, layer: usize, heads: &Heads, rope: &Rope) -> Result<Tensor> {
        let t = heads.positions()?;
        let (keys, values) = self.write(layer, &heads.k, &heads.v)?;
        let held = self.held + t - self.overflow(t);
        let (cos, sin) = rope.tables(held - t, t, held)?;
        let q = e2llm_kernels::rope(&heads.q, &cos, &sin)?;
        if t == 1 {
            // A single query sees every place, so their order does not matter and nothing is moved.
            let (cos, sin) = self.turns(rope)?;
            let k = e2llm_kernels::rope(&keys.narrow(2, 0, held)?, &cos, &sin)?;
            return e2llm_kernels::attention(&q, &k, &values.narrow(2, 0, held)?, Mask::None, heads.scale()?);
        }
        let order = self.order(t);
        let ordered = |x: &Tensor| -> Result<Tensor> {
            let runs = order.iter().map(|(place, n)| x.narrow(2, *place, *n));
            Tensor::cat(&runs.collect::<Result<Vec<_>>>()?, 2)
        };
        let (cos, sin) = rope.tables(0, held, held)?;
        let k = e2llm_kernels::rope(&ordered(&keys)?, &cos, &sin)?;
        let mask = Mask::Causal { offset: held - t };
        e2llm_kernels::attention(&q, &k, &ordered(&values)?, mask, heads.scale()?)
    }

    fn advance(&mut self, t: usize) {
        let overflow = self.overflow(t);
        self.held += t - overflow;
        self.oldest = (self.oldest + overflow) % self.recent;
        self.read += t;
    }

    fn fork(&self) -> Result<Box<dyn Memory>> {
        // What is written overwrites what is kept, so a fork needs tensors of its own.
        let copy = |slot: &Option<(Tensor, Tensor)>| -> Result<_> {
            slot.as_ref().map(|(k, v)| Ok((k.copy()?, v.copy()?))).transpose()
        };
        let layers = self.layers.iter().map(copy).collect::<Result<_>>()?;
        Ok(Box::new(Self { layers, ..self.clone() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Places in the order of positions after every step, against a list that is cut by hand.
    #[test]
    fn the_ring_keeps_the_sinks_and_the_latest() {
        for (sinks, recent, step) in [(2, 5, 1), (2, 5, 3), (0, 4, 2), (4, 4, 4), (3, 1, 1)] {
            let mut cache = StreamingCache::new(sinks, recent);
            let mut places = vec![usize::MAX; sinks + recent];
            let mut expected: Vec<usize> = Vec::new();
            for start in (0..40).step_by(step) {
                let mut next = start;
                for (place, n) in cache.places(step) {
                    for slot in &mut places[place..place + n] {
                        *slot = next;
                        next += 1;
                    }
                }
                assert_eq!(next, start + step);
                let got: Vec<usize> = cache
                    .order(step)
                    .iter()
                    .flat_map(|(place, n)| places[*place..place + n].to_vec())
                    .collect();
                expected.extend(start..start + step);
                while expected.len() > sinks + recent {
                    expected.remove(sinks);
                }
                assert_eq!(got, expected, "{sinks} sinks, {recent} recent, {step} at once");
                cache.advance(step);
                assert_eq!(cache.offset(), start + step);
            }
        }
    }
}
