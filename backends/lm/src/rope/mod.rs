//! Rotary positions (Su et al. 2021, arXiv 2104.09864).

mod scaling;

pub(crate) use scaling::RopeParameters;
pub use scaling::RopeScaling;

use crate::{LmError, Result};
use candle_core::{DType, Device, Tensor};
use std::sync::{Arc, Mutex, PoisonError};

/// Tables of cos and sin, grown as positions are asked for and shared by all layers.
#[derive(Debug, Clone)]
pub struct Rope {
    theta: f64,
    head_dim: usize,
    scaling: RopeScaling,
    device: Device,
    dtype: DType,
    tables: Arc<Mutex<Option<Tables>>>,
}

#[derive(Debug, Clone)]
struct Tables {
    /// Sequence length the frequencies hold for; 0 where they do not depend on it.
    positions: usize,
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    /// Tables for heads of width `head_dim`, made when first asked for.
    ///
    /// # Errors
    /// Per-frequency divisors of another number than the frequencies.
    pub fn new(
        theta: f64,
        head_dim: usize,
        scaling: RopeScaling,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        if let RopeScaling::Divisors(d) = &scaling
            && d.len() != head_dim / 2
        {
            let (got, want) = (d.len(), head_dim / 2);
            return Err(LmError::Input(format!("{got} divisors for {want} rotary frequencies")));
        }
        Ok(Self { theta, head_dim, scaling, device: device.clone(), dtype, tables: Arc::default() })
    }

    /// cos and sin `[len, head_dim / 2]` of the positions from `offset` on, for a sequence that will have
    /// `sequence` positions (only dynamic scaling asks).
    ///
    /// # Errors
    /// Any of making the tables.
    pub fn tables(
        &self,
        offset: usize,
        len: usize,
        sequence: usize,
    ) -> candle_core::Result<(Tensor, Tensor)> {
        self.tables_for(self.base_positions(offset + len, sequence), offset, len)
    }

    /// The same by places in a memory that forgets: the frequencies are those of `sequence` positions, wherever a place is.
    ///
    /// # Errors
    /// Any of making the tables.
    pub fn places(
        &self,
        offset: usize,
        len: usize,
        sequence: usize,
    ) -> candle_core::Result<(Tensor, Tensor)> {
        self.tables_for(self.base_positions(0, sequence), offset, len)
    }

    /// As [`Rope::places`], for what was turned before: without the factor that cos and sin may have.
    ///
    /// # Errors
    /// Any of making the tables.
    pub fn turns(&self, offset: usize, len: usize, sequence: usize) -> candle_core::Result<(Tensor, Tensor)> {
        let (cos, sin) = self.places(offset, len, sequence)?;
        let factor = self.scaling.attention_factor();
        if factor == 1.0 { Ok((cos, sin)) } else { Ok(((cos / factor)?, (sin / factor)?)) }
    }

    fn tables_for(
        &self,
        positions: usize,
        offset: usize,
        len: usize,
    ) -> candle_core::Result<(Tensor, Tensor)> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |t: &Tables| t.positions == positions && t.cos.dims()[0] >= offset + len;
        if !tables.as_ref().is_some_and(fits) {
            let rows = (offset + len).next_power_of_two().max(512);
            *tables = Some(self.make(rows, positions)?);
        }
        match tables.as_ref() {
            Some(t) => Ok((t.cos.narrow(0, offset, len)?, t.sin.narrow(0, offset, len)?)),
            None => candle_core::bail!("no rotary tables"),
        }
    }

    /// cos and sin of single positions of several sequences, `[n, d / 2]`: what [`Rope::tables`] has for each
    /// `positions[i]` of a sequence that is expected to have `sequences[i]` positions.
    ///
    /// # Errors
    /// Any of making the tables.
    pub(crate) fn rows(
        &self,
        positions: &[usize],
        sequences: &[usize],
    ) -> candle_core::Result<(Tensor, Tensor)> {
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        let mut known: Option<(usize, Vec<f64>)> = None;
        for (&position, &sequence) in positions.iter().zip(sequences) {
            let base = self.base_positions(position + 1, sequence);
            let frequencies = match known.take() {
                Some((same, frequencies)) if same == base => frequencies,
                _ => self.frequencies(base),
            };
            self.angles(position, &frequencies, &mut cos, &mut sin);
            known = Some((base, frequencies));
        }
        let shape = (positions.len(), self.head_dim / 2);
        Ok((self.table(cos, shape)?, self.table(sin, shape)?))
    }

    /// cos and sin `[len, d / 2]` of all positions of sequences that are expected to have `sequences` positions; nothing where
    /// they are not the same for all of them, or change on the way there.
    ///
    /// # Errors
    /// Any of making the tables.
    #[cfg(feature = "cuda")]
    pub(crate) fn common_tables(
        &self,
        len: usize,
        sequences: &[usize],
    ) -> candle_core::Result<Option<(Tensor, Tensor)>> {
        let Some(&first) = sequences.first() else { return Ok(None) };
        if !sequences.iter().all(|&n| self.are_common(len, first, n)) {
            return Ok(None);
        }
        self.tables(0, len, first).map(Some)
    }

    /// Whether a sequence that is expected to have `other` positions has the angles of one of `sequence`, and both keep
    /// them up to `len`.
    #[cfg(feature = "cuda")]
    pub(crate) fn are_common(&self, len: usize, sequence: usize, other: usize) -> bool {
        let base = self.base_positions(len, sequence);
        self.base_positions(len, other) == base && self.base_positions(0, other) == base
    }

    /// Positions that decide the frequencies, of a sequence read up to `end`.
    fn base_positions(&self, end: usize, sequence: usize) -> usize {
        match &self.scaling {
            RopeScaling::Dynamic { window, .. } => sequence.max(end).max(*window),
            _ => 0,
        }
    }

    fn frequencies(&self, positions: usize) -> Vec<f64> {
        self.scaling.inverse_frequencies(self.theta, self.head_dim, positions)
    }

    /// Adds cos and sin of a position.
    fn angles(&self, position: usize, frequencies: &[f64], cos: &mut Vec<f64>, sin: &mut Vec<f64>) {
        let factor = self.scaling.attention_factor();
        for f in frequencies {
            // Everyone else computes angles in float32, except where the whole model is float64.
            let angle = if self.dtype == DType::F64 {
                position as f64 * f
            } else {
                f64::from(position as f32 * *f as f32)
            };
            cos.push(angle.cos() * factor);
            sin.push(angle.sin() * factor);
        }
    }

    fn make(&self, rows: usize, positions: usize) -> candle_core::Result<Tables> {
        let frequencies = self.frequencies(positions);
        let shape = (rows, frequencies.len());
        let mut cos = Vec::with_capacity(rows * frequencies.len());
        let mut sin = Vec::with_capacity(rows * frequencies.len());
        for position in 0..rows {
            self.angles(position, &frequencies, &mut cos, &mut sin);
        }
        Ok(Tables { positions, cos: self.table(cos, shape)?, sin: self.table(sin, shape)? })
    }

    fn table(&self, values: Vec<f64>, shape: (usize, usize)) -> candle_core::Result<Tensor> {
        Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(self.dtype)?.to_device(&self.device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_grow_without_changing() {
        let rope = Rope::new(1e4, 8, RopeScaling::None, DType::F32, &Device::Cpu).unwrap();
        let (early, _) = rope.tables(3, 5, 0).unwrap();
        rope.tables(5000, 10, 0).unwrap();
        let (late, _) = rope.tables(3, 5, 0).unwrap();
        assert_eq!(early.to_vec2::<f32>().unwrap(), late.to_vec2::<f32>().unwrap());
    }

    #[test]
    fn single_positions_are_those_of_the_tables() {
        let dynamic = RopeScaling::Dynamic { factor: 4.0, window: 20 };
        for scaling in [RopeScaling::None, RopeScaling::yarn(2.0, 64), dynamic] {
            let rope = Rope::new(1e4, 8, scaling, DType::F32, &Device::Cpu).unwrap();
            let (positions, sequences) = ([3, 700, 30, 19], [10, 5, 50, 0]);
            let (cos, sin) = rope.rows(&positions, &sequences).unwrap();
            for (i, (&at, &sequence)) in positions.iter().zip(&sequences).enumerate() {
                let (c, s) = rope.tables(at, 1, sequence).unwrap();
                for (rows, table) in [(&cos, c), (&sin, s)] {
                    let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                    assert_eq!(values(&rows.narrow(0, i, 1).unwrap()), values(&table));
                }
            }
        }
    }
}
