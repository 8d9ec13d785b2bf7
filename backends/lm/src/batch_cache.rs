//! Keys and values of several sequences that are continued side by side.

use crate::{KvCache, LlamaConfig};
use candle_core::{DType, Device, Result, Tensor, bail};
use e2llm_kernels::{RowLengths, store_last};

/// Positions added where the room is full.
const GROWTH: usize = 256;

/// The memory of a batch: a row for each sequence, as long as the longest needs, and no more rows than are in use.
///
/// A sequence's prompt is read into a place by [`BatchCache::place`] or with others in one pass; then the place becomes a row
/// by [`BatchCache::set`].
#[derive(Debug)]
pub(crate) struct BatchCache {
    /// Keys and values of each layer, `[R, Hkv, room, d]`; the rows in use are the first ones.
    layers: Vec<(Tensor, Tensor)>,
    /// R.
    places: usize,
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
    /// Room for `places` sequences of `room` positions.
    pub(crate) fn new(
        config: &LlamaConfig,
        (places, room): (usize, usize),
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let shape = (places, config.num_key_value_heads, room, config.head_dim);
        let zeros = || Tensor::zeros(shape, dtype, device);
        let layers = (0..config.num_hidden_layers).map(|_| Ok((zeros()?, zeros()?)));
        let layers = layers.collect::<Result<_>>()?;
        Ok(Self { layers, places, device: device.clone(), rows: Vec::with_capacity(places), reading: None })
    }

    /// How many sequences there is room for.
    pub(crate) fn places(&self) -> usize {
        self.places
    }

    /// A view of a place, empty, for a sequence that will have about `expected` positions. There must be room for it.
    pub(crate) fn place(&self, place: usize, expected: usize) -> Result<KvCache> {
        let row = |t: &Tensor| t.narrow(0, place, 1);
        let layers = self.layers.iter().map(|(k, v)| Ok((row(k)?, row(v)?)));
        Ok(KvCache::over(layers.collect::<Result<_>>()?, expected))
    }

    /// Keys and values of all places of each layer, `[R, Hkv, room, d]`.
    #[cfg(feature = "cuda")]
    pub(crate) fn layers(&self) -> &[(Tensor, Tensor)] {
        &self.layers
    }

    /// Makes the place in which a sequence of `len` positions was read a row of the batch: in that of one that has ended, or
    /// behind the last.
    pub(crate) fn set(&mut self, place: usize, len: usize, expected: usize) -> Result<()> {
        let (row, rows) = (Row { len, expected }, self.rows.len());
        match self.rows.get_mut(place) {
            Some(old) => *old = row,
            None if place == rows => self.rows.push(row),
            None => bail!("place {place} of {rows} rows"),
        }
        Ok(())
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

    /// Makes room for `needed` positions of every place. Views of places mean nothing afterwards.
    pub(crate) fn grow(&mut self, needed: usize) -> Result<()> {
        for (keys, values) in &mut self.layers {
            for tensor in [keys, values] {
                let (_, heads, room, d) = tensor.dims4()?;
                if room >= needed {
                    continue;
                }
                let shape = (self.places, heads, needed + GROWTH, d);
                let larger = Tensor::zeros(shape, tensor.dtype(), &self.device)?;
                let rows = self.rows.len();
                if rows > 0 {
                    larger.narrow(0, 0, rows)?.slice_set(&tensor.narrow(0, 0, rows)?, 2, 0)?;
                }
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

    /// Counts the positions of a row as read that were written into its room, `len` with those before.
    #[cfg(feature = "cuda")]
    pub(crate) fn count(&mut self, row: usize, len: usize) {
        if let Some(row) = self.rows.get_mut(row) {
            row.len = len;
        }
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
