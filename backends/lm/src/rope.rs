//! Rotary positions (Su et al. 2021, arXiv 2104.09864) and the ways of stretching them, as transformers computes
//! them (`modeling_rope_utils.py`).

use crate::{LmError, Result};
use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use std::f64::consts::PI;
use std::sync::{Arc, Mutex, PoisonError};

/// How rotary angles are stretched beyond the window a model was trained on.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum RopeScaling {
    /// Not at all.
    #[default]
    None,
    /// Position interpolation (Chen et al. 2023, arXiv 2306.15595): every angle is divided by `factor`.
    Linear {
        /// Stretch.
        factor: f64,
    },
    /// NTK-aware scaling whose base grows with the sequence beyond the window.
    Dynamic {
        /// Stretch.
        factor: f64,
        /// Positions up to which nothing changes.
        window: usize,
    },
    /// YaRN (Peng et al. 2023, arXiv 2309.00071).
    Yarn {
        /// Stretch.
        factor: f64,
        /// Positions the model was trained on.
        window: usize,
        /// Rotations within the window above which an angle is kept.
        beta_fast: f64,
        /// Rotations within the window below which an angle is divided by `factor`.
        beta_slow: f64,
        /// Factor of cos and sin.
        attention_factor: f64,
        /// Whether the borders between the two are rounded to whole dimensions.
        truncate: bool,
    },
    /// Llama 3.1's blend by wavelength.
    Llama3 {
        /// Stretch of long wavelengths.
        factor: f64,
        /// Wavelengths above `window / low` are stretched.
        low: f64,
        /// Wavelengths below `window / high` are kept.
        high: f64,
        /// Positions the model was trained on.
        window: usize,
    },
    /// Each inverse frequency has a divisor of its own (GGUF files keep Llama 3.1's blend this way).
    Divisors(Vec<f64>),
}

/// `rope_scaling` (older) or `rope_parameters` (newer) of an HF `config.json`.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct RopeParameters {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    pub(crate) rope_theta: Option<f64>,
    factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
    attention_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    partial_rotary_factor: Option<f64>,
}

impl RopeParameters {
    /// The scaling these parameters describe, for a model whose configuration names `max_positions`.
    pub(crate) fn scaling(&self, max_positions: usize) -> std::result::Result<RopeScaling, String> {
        let kind = self.rope_type.as_deref().unwrap_or("default");
        if self.partial_rotary_factor.is_some_and(|f| f != 1.0) {
            return Err("partly rotated heads are not supported".to_owned());
        }
        let positive = |name: &str, value: Option<f64>| match value {
            Some(v) if v.is_finite() && v > 0.0 => Ok(v),
            Some(v) => Err(format!("rope `{kind}`: `{name}` = {v} is out of range")),
            None => Err(format!("rope `{kind}` needs `{name}`")),
        };
        let factor = || positive("factor", self.factor);
        let window = self.original_max_position_embeddings.unwrap_or(max_positions);
        Ok(match kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: factor()? },
            "dynamic" => RopeScaling::Dynamic { factor: factor()?, window },
            "yarn" => {
                let factor = factor()?;
                let attention_factor = match (self.attention_factor, self.mscale, self.mscale_all_dim) {
                    (Some(given), ..) => given,
                    (None, Some(m), Some(all)) if m != 0.0 && all != 0.0 => {
                        yarn_magnitude(factor, m) / yarn_magnitude(factor, all)
                    }
                    _ => yarn_magnitude(factor, 1.0),
                };
                RopeScaling::Yarn {
                    factor,
                    window,
                    beta_fast: positive("beta_fast", self.beta_fast.or(Some(32.0)))?,
                    beta_slow: positive("beta_slow", self.beta_slow.or(Some(1.0)))?,
                    attention_factor: positive("attention_factor", Some(attention_factor))?,
                    truncate: self.truncate.unwrap_or(true),
                }
            }
            "llama3" => RopeScaling::Llama3 {
                factor: factor()?,
                low: positive("low_freq_factor", self.low_freq_factor)?,
                high: positive("high_freq_factor", self.high_freq_factor)?,
                window,
            },
            other => {
                let known = "default, linear, dynamic, yarn, llama3";
                return Err(format!("rope scaling `{other}` is not supported ({known})"));
            }
        })
    }
}

/// YaRN's attention factor, eq. 22 of the paper.
fn yarn_magnitude(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

impl RopeScaling {
    /// YaRN with the paper's constants: `window` positions stretched `factor` times.
    pub fn yarn(factor: f64, window: usize) -> Self {
        let attention_factor = yarn_magnitude(factor, 1.0);
        Self::Yarn { factor, window, beta_fast: 32.0, beta_slow: 1.0, attention_factor, truncate: true }
    }

    /// The factor of both cos and sin.
    pub fn attention_factor(&self) -> f64 {
        match self {
            Self::Yarn { attention_factor, .. } => *attention_factor,
            _ => 1.0,
        }
    }

    /// Inverse frequencies, `head_dim / 2` of them, for a sequence of `positions`.
    pub fn inverse_frequencies(&self, theta: f64, head_dim: usize, positions: usize) -> Vec<f64> {
        let dim = head_dim as f64;
        let plain = |theta: f64| -> Vec<f64> {
            (0..head_dim / 2).map(|i| theta.powf(-((2 * i) as f64) / dim)).collect()
        };
        match self {
            Self::None => plain(theta),
            Self::Linear { factor } => plain(theta).into_iter().map(|f| f / factor).collect(),
            Self::Dynamic { factor, window } => {
                let stretch = factor * positions.max(*window) as f64 / *window as f64 - (factor - 1.0);
                plain(theta * stretch.powf(dim / (dim - 2.0)))
            }
            Self::Yarn { factor, window, beta_fast, beta_slow, truncate, .. } => {
                // The dimension that turns `rotations` times within the window.
                let turns = |rotations: f64| {
                    dim * (*window as f64 / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln())
                };
                let (mut low, mut high) = (turns(*beta_fast), turns(*beta_slow));
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(dim - 1.0));
                if low == high {
                    high += 0.001;
                }
                let blend = |(i, f): (usize, f64)| {
                    let stretched = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    f / factor * stretched + f * (1.0 - stretched)
                };
                plain(theta).into_iter().enumerate().map(blend).collect()
            }
            Self::Llama3 { factor, low, high, window } => {
                let blend = |f: f64| {
                    let turns = *window as f64 * f / (2.0 * PI);
                    if turns < *low {
                        f / factor
                    } else if turns > *high {
                        f
                    } else {
                        let kept = (turns - low) / (high - low);
                        (1.0 - kept) * f / factor + kept * f
                    }
                };
                plain(theta).into_iter().map(blend).collect()
            }
            Self::Divisors(divisors) => plain(theta).into_iter().zip(divisors).map(|(f, d)| f / d).collect(),
        }
    }

    pub(crate) fn to_hf_json(&self) -> serde_json::Value {
        use serde_json::{Value, json};
        match self {
            Self::None | Self::Divisors(_) => Value::Null,
            Self::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
            Self::Dynamic { factor, window } => {
                json!({"rope_type": "dynamic", "factor": factor, "original_max_position_embeddings": window})
            }
            Self::Yarn { factor, window, beta_fast, beta_slow, attention_factor, truncate } => json!({
                "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": window,
                "beta_fast": beta_fast, "beta_slow": beta_slow, "attention_factor": attention_factor,
                "truncate": truncate,
            }),
            Self::Llama3 { factor, low, high, window } => json!({
                "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
                "original_max_position_embeddings": window,
            }),
        }
    }
}

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
    fn stretched_angles_start_again_where_the_window_is_not_left() {
        let plain = RopeScaling::None.inverse_frequencies(1e4, 64, 100);
        let dynamic = RopeScaling::Dynamic { factor: 4.0, window: 2048 };
        assert_eq!(dynamic.inverse_frequencies(1e4, 64, 2048), plain);
        assert_ne!(dynamic.inverse_frequencies(1e4, 64, 2049), plain);
    }

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

    #[test]
    fn unknown_and_incomplete_scalings_are_refused() {
        let parse = |text: &str| serde_json::from_str::<RopeParameters>(text).unwrap().scaling(2048);
        assert!(parse(r#"{"type": "longrope"}"#).unwrap_err().contains("longrope"));
        assert!(parse(r#"{"rope_type": "linear"}"#).unwrap_err().contains("`factor`"));
        assert!(parse(r#"{"rope_type": "yarn", "factor": -1.0}"#).unwrap_err().contains("out of range"));
        assert_eq!(parse(r#"{"rope_type": "default"}"#).unwrap(), RopeScaling::None);
    }
}
