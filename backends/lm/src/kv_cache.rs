//! Keys and values of the positions read so far.

use crate::{Heads, Memory, Rope};
use candle_core::{Result, Tensor, bail};
use e2llm_kernels::{Mask, unwritten};

/// Room made at first; it doubles when full.
const FIRST_CAPACITY: usize = 256;
/// Bytes of all layers up to which they are made in one.
#[cfg(feature = "cuda")]
const IN_ONE: usize = 256 << 20;

/// A decoder's memory of the positions it has read, layer by layer.
///
/// Room is made ahead and doubled when full, so that a new token costs one small copy and not one of everything.
#[derive(Debug, Clone, Default)]
pub struct KvCache {
    layers: Vec<Option<(Tensor, Tensor)>>,
    len: usize,
    expected: usize,
    /// Positions that decide the angles, where it is not those expected.
    angles: Option<usize>,
}

impl KvCache {
    /// An empty memory for a sequence that will have about `expected` positions (0: unknown).
    ///
    /// The expected length decides how much room is made at first and, for dynamic rotary scaling only, the
    /// length that angles are computed for: give that of the prompt and its answer, or the angles change while the
    /// answer is written and keys read early no longer fit those read late.
    pub fn new(expected: usize) -> Self {
        Self { expected, ..Self::default() }
    }

    /// The same memory, whose angles are those of a sequence of `positions` however long it becomes.
    #[must_use]
    pub fn with_angles_of(self, positions: usize) -> Self {
        Self { angles: Some(positions), ..self }
    }

    /// An empty memory in given keys and values of each layer, `[B, Hkv, room, d]`, which are written in place while
    /// their room lasts.
    pub(crate) fn over(layers: Vec<(Tensor, Tensor)>, expected: usize) -> Self {
        Self { layers: layers.into_iter().map(Some).collect(), expected, ..Self::default() }
    }

    /// Positions read so far; the next one's index.
    pub fn offset(&self) -> usize {
        self.len
    }

    /// Positions that decide the angles: those that the sequence is expected to have, unless others were given.
    pub fn expected(&self) -> usize {
        self.angles.unwrap_or(self.expected)
    }

    /// Forgets all positions from `len` on; what was there is overwritten by the next ones.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Adds a layer's keys and values `[B, Hkv, T, d]` behind the positions read so far, and returns all of
    /// them: `[B, Hkv, offset + T, d]`, views of this memory.
    ///
    /// # Errors
    /// Failing tensor operations.
    pub fn append(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let t = k.dims4()?.2;
        let (keys, values) = self.reserve(layer, k.dims4()?, k)?;
        keys.slice_set(&k.contiguous()?, 2, self.len)?;
        values.slice_set(&v.contiguous()?, 2, self.len)?;
        let needed = self.len + t;
        Ok((keys.narrow(2, 0, needed)?, values.narrow(2, 0, needed)?))
    }

    /// Makes the room of all layers in one, for `T` positions at first, where they are small and there is none yet: as many
    /// fillings as there are tensors take a GPU longer than what they fill.
    #[cfg(feature = "cuda")]
    pub(crate) fn begin(
        &mut self,
        layers: usize,
        (batch, heads, t, d): (usize, usize, usize, usize),
        like: &Tensor,
    ) -> Result<()> {
        let capacity = t.max(self.expected).max(FIRST_CAPACITY);
        let elements = 2 * layers * batch * heads * capacity * d;
        if self.len > 0 || !self.layers.is_empty() || elements * like.dtype().size_in_bytes() > IN_ONE {
            return Ok(());
        }
        let all = unwritten((2 * layers, batch, heads, capacity, d), like.dtype(), like.device())?;
        let layer = |i| Ok(Some((all.get(2 * i)?, all.get(2 * i + 1)?)));
        self.layers = (0..layers).map(layer).collect::<Result<_>>()?;
        Ok(())
    }

    /// A layer's keys and values with room for `T` more positions, `[B, Hkv, room, d]`, whose element type and device are
    /// those of `like`.
    pub(crate) fn reserve(
        &mut self,
        layer: usize,
        (batch, heads, t, d): (usize, usize, usize, usize),
        like: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let needed = self.len + t;
        if self.layers.len() <= layer {
            self.layers.resize(layer + 1, None);
        }
        let slot = &mut self.layers[layer];
        let room = slot.as_ref().map_or(0, |(keys, _)| keys.dims()[2]);
        if room < needed {
            let first = self.expected.max(FIRST_CAPACITY);
            let capacity = if room == 0 { needed.max(first) } else { needed.max(2 * room) };
            let grow = |old: Option<&Tensor>| -> Result<Tensor> {
                let new = unwritten((batch, heads, capacity, d), like.dtype(), like.device())?;
                if let Some(old) = old {
                    new.slice_set(&old.narrow(2, 0, self.len)?.contiguous()?, 2, 0)?;
                }
                Ok(new)
            };
            let keys = grow(slot.as_ref().map(|(keys, _)| keys))?;
            let values = grow(slot.as_ref().map(|(_, values)| values))?;
            *slot = Some((keys, values));
        }
        let Some((keys, values)) = slot else { bail!("no room for keys and values") };
        Ok((keys.clone(), values.clone()))
    }

    /// A layer's keys and values of the positions read so far, views of this memory; `None` where it has none.
    ///
    /// # Errors
    /// Failing tensor operations.
    pub fn layer(&self, layer: usize) -> Result<Option<(Tensor, Tensor)>> {
        let Some(Some((keys, values))) = self.layers.get(layer) else { return Ok(None) };
        Ok(Some((keys.narrow(2, 0, self.len)?, values.narrow(2, 0, self.len)?)))
    }

    /// Puts other keys `[B, Hkv, len, d]` in the place of a layer's, of all positions read so far.
    ///
    /// # Errors
    /// A layer that has read nothing; keys of another shape.
    pub fn replace_keys(&mut self, layer: usize, k: &Tensor) -> Result<()> {
        let Some(Some((keys, _))) = self.layers.get(layer) else { bail!("layer {layer} has read nothing") };
        if k.dim(2)? != self.len {
            bail!("keys {:?} for {} positions", k.shape(), self.len);
        }
        keys.slice_set(&k.contiguous()?, 2, 0)
    }

    /// A memory with tensors of its own.
    ///
    /// # Errors
    /// Failing tensor operations.
    pub fn copied(&self) -> Result<Self> {
        let copy = |slot: &Option<(Tensor, Tensor)>| -> Result<_> {
            // Not `copy`, which would copy all layers where they are one tensor.
            slot.as_ref().map(|(k, v)| Ok((k.force_contiguous()?, v.force_contiguous()?))).transpose()
        };
        Ok(Self { layers: self.layers.iter().map(copy).collect::<Result<_>>()?, ..self.clone() })
    }

    /// Puts the keys and values `[B, Hkv, len, d]` of `len` positions in the place of all that was read.
    pub fn replace(&mut self, layers: Vec<(Tensor, Tensor)>, len: usize) {
        self.layers = layers.into_iter().map(Some).collect();
        self.len = len;
    }
}

impl Memory for KvCache {
    fn offset(&self) -> usize {
        self.len
    }

    fn attend(&mut self, layer: usize, heads: &Heads, rope: &Rope) -> Result<Tensor> {
        let (cos, sin) = rope.tables(self.len, heads.positions()?, self.expected())?;
        let q = e2llm_kernels::rope(&heads.q, &cos, &sin)?;
        let k = e2llm_kernels::rope(&heads.k, &cos, &sin)?;
        let (k, v) = self.append(layer, &k, &heads.v)?;
        e2llm_kernels::attention(&q, &k, &v, Mask::Causal { offset: self.len }, heads.scale()?)
    }

    fn advance(&mut self, t: usize) {
        self.len += t;
    }

    fn behind(&mut self) -> Option<&mut KvCache> {
        Some(self)
    }

    /// The fork shares this memory's room: it writes behind what is read here.
    fn fork(&self) -> Result<Box<dyn Memory>> {
        Ok(Box::new(self.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, IndexOp};

    fn row(value: f32, t: usize) -> Tensor {
        Tensor::full(value, (1, 2, t, 4), &Device::Cpu).unwrap()
    }

    #[test]
    fn growing_keeps_what_was_read() {
        let mut cache = KvCache::new(0);
        for step in 0..3 * FIRST_CAPACITY {
            let (k, v) = cache.append(0, &row(step as f32, 1), &row(-(step as f32), 1)).unwrap();
            cache.advance(1);
            assert_eq!(k.dims(), [1, 2, step + 1, 4]);
            let first: f32 = k.i((0, 1, step / 2, 3)).unwrap().to_scalar().unwrap();
            let last: f32 = v.i((0, 1, step, 0)).unwrap().to_scalar().unwrap();
            assert_eq!((first, last), ((step / 2) as f32, -(step as f32)));
        }
    }

    #[test]
    fn truncated_positions_are_overwritten() {
        let mut cache = KvCache::new(8);
        cache.append(0, &row(1.0, 5), &row(1.0, 5)).unwrap();
        cache.advance(5);
        cache.truncate(2);
        let (k, _) = cache.append(0, &row(7.0, 1), &row(7.0, 1)).unwrap();
        let values: Vec<f32> = k.i((0, 0, .., 0)).unwrap().to_vec1().unwrap();
        assert_eq!(values, [1.0, 1.0, 7.0]);
    }
}
