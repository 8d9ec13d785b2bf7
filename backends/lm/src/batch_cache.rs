//! Keys and values of several sequences that are continued side by side.

use crate::{KvCache, LlamaConfig};
use candle_core::{DType, Device, Result, Tensor, bail};
use e2llm_kernels::{RowLengths, store_last};

/// Positions added where the room is full.
const GROWTH: usize = 256;

/// The memory of a batch: a row for each sequence, as long as the longest needs, and no more rows than are in use.
///
/// A sequence's prompt is read through [`BatchCache::row`], then the row is taken into the batch with
/// [`BatchCache::push`].
#[derive(Debug)]
pub(crate) struct BatchCache {
    /// Keys and values of each layer, `[R, Hkv, room, d]`; the rows in use are the first ones.
    layers: Vec<(Tensor, Tensor)>,
    device: Device,
    rows: Vec<Row>,
    /// Lengths with the positions that are being read, for all layers of a pass.
    reading: Option<RowLengths>,
}

/// A sequence in use.
#[derive(Debug, Clone, Copy)]
struct Row {
    len: usize,
    /// Positions it is expected to have, see [`KvCache::new`].
    expected: usize,
}

impl BatchCache {
    /// Room for `rows` sequences of `room` positions.
    pub(crate) fn new(
        config: &LlamaConfig,
        (rows, room): (usize, usize),
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let shape = (rows, config.num_key_value_heads, room, config.head_dim);
        let zeros = || Tensor::zeros(shape, dtype, device);
        let layers = (0..config.num_hidden_layers).map(|_| Ok((zeros()?, zeros()?)));
        let layers = layers.collect::<Result<_>>()?;
        Ok(Self { layers, device: device.clone(), rows: Vec::with_capacity(rows), reading: None })
    }

    /// A view of the first row that is not in use, empty, for a sequence that will have about `expected` positions.
    pub(crate) fn row(&self, expected: usize) -> Result<KvCache> {
        let row = |t: &Tensor| t.narrow(0, self.rows.len(), 1);
        let layers = self.layers.iter().map(|(k, v)| Ok((row(k)?, row(v)?)));
        Ok(KvCache::over(layers.collect::<Result<_>>()?, expected))
    }

    /// Takes the row that was read through [`BatchCache::row`] into the batch.
    pub(crate) fn push(&mut self, read: &KvCache) {
        self.rows.push(Row { len: read.offset(), expected: read.expected() });
    }

    /// Each row's next position.
    pub(crate) fn positions(&self) -> Vec<usize> {
        self.rows.iter().map(|r| r.len).collect()
    }

    /// Positions each row is expected to have.
    pub(crate) fn expected(&self) -> Vec<usize> {
        self.rows.iter().map(|r| r.expected).collect()
    }

    /// Makes room for a new position of every row.
    pub(crate) fn begin(&mut self) -> Result<()> {
        let lengths = RowLengths::new(self.rows.iter().map(|r| r.len + 1).collect(), &self.device)?;
        self.grow(lengths.longest())?;
        self.reading = Some(lengths);
        Ok(())
    }

    /// Makes room for `needed` positions of every row.
    fn grow(&mut self, needed: usize) -> Result<()> {
        for (keys, values) in &mut self.layers {
            for tensor in [keys, values] {
                let (_, heads, room, d) = tensor.dims4()?;
                if room >= needed {
                    continue;
                }
                let shape = (self.rows.len(), heads, needed + GROWTH, d);
                let larger = Tensor::zeros(shape, tensor.dtype(), &self.device)?;
                larger.slice_set(&tensor.narrow(0, 0, self.rows.len())?, 2, 0)?;
                *tensor = larger;
            }
        }
        Ok(())
    }

    /// Keys and values of all layers, `[B, Hkv, room, d]`, with room for `needed` positions of every row.
    #[cfg(feature = "cuda")]
    pub(crate) fn with_room(&mut self, needed: usize) -> Result<Vec<(Tensor, Tensor)>> {
        self.grow(needed)?;
        let rows = |t: &Tensor| t.narrow(0, 0, self.rows.len());
        self.layers.iter().map(|(keys, values)| Ok((rows(keys)?, rows(values)?))).collect()
    }

    /// Counts `t` positions of every row as read that were written into its room.
    #[cfg(feature = "cuda")]
    pub(crate) fn count(&mut self, t: usize) {
        self.rows.iter_mut().for_each(|r| r.len += t);
    }

    /// Keys and values of a layer, `[B, Hkv, room, d]`, with room for the new position of every row, and the rows' lengths
    /// with it.
    #[cfg(feature = "cuda")]
    pub(crate) fn reserved(&self, layer: usize) -> Result<(Tensor, Tensor, &RowLengths)> {
        let (Some((keys, values)), Some(lengths)) = (self.layers.get(layer), &self.reading) else {
            bail!("no room for keys and values");
        };
        let rows = self.rows.len();
        Ok((keys.narrow(0, 0, rows)?, values.narrow(0, 0, rows)?, lengths))
    }

    /// Adds a layer's keys and values `[B, Hkv, 1, d]` of the new positions, and returns all of them, `[B, Hkv, longest,
    /// d]`, with how many of them belong to each row.
    pub(crate) fn append(
        &self,
        layer: usize,
        k: &Tensor,
        v: &Tensor,
    ) -> Result<(Tensor, Tensor, &RowLengths)> {
        let (Some((keys, values)), Some(lengths)) = (self.layers.get(layer), &self.reading) else {
            bail!("no room for keys and values");
        };
        let (keys, values) = (keys.narrow(0, 0, self.rows.len())?, values.narrow(0, 0, self.rows.len())?);
        store_last(&keys, k, lengths)?;
        store_last(&values, v, lengths)?;
        let longest = lengths.longest();
        Ok((keys.narrow(2, 0, longest)?, values.narrow(2, 0, longest)?, lengths))
    }

    /// Counts the new positions as read, once every layer has them.
    pub(crate) fn advance(&mut self) {
        if self.reading.take().is_some() {
            self.rows.iter_mut().for_each(|r| r.len += 1);
        }
    }

    /// Forgets a sequence; the last row takes its place.
    pub(crate) fn swap_remove(&mut self, row: usize) -> Result<()> {
        let last = self.rows.len() - 1;
        if row != last {
            for tensor in self.layers.iter().flat_map(|(k, v)| [k, v]) {
                let from = tensor.narrow(0, last, 1)?.narrow(2, 0, self.rows[last].len)?;
                tensor.narrow(0, row, 1)?.slice_set(&from.force_contiguous()?, 2, 0)?;
            }
        }
        self.rows.swap_remove(row);
        Ok(())
    }
}
