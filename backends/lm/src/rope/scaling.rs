//! The ways of stretching rotary positions, as transformers computes them (`modeling_rope_utils.py`).

use serde::Deserialize;
use std::f64::consts::PI;

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
    fn unknown_and_incomplete_scalings_are_refused() {
        let parse = |text: &str| serde_json::from_str::<RopeParameters>(text).unwrap().scaling(2048);
        assert!(parse(r#"{"type": "longrope"}"#).unwrap_err().contains("longrope"));
        assert!(parse(r#"{"rope_type": "linear"}"#).unwrap_err().contains("`factor`"));
        assert!(parse(r#"{"rope_type": "yarn", "factor": -1.0}"#).unwrap_err().contains("out of range"));
        assert_eq!(parse(r#"{"rope_type": "default"}"#).unwrap(), RopeScaling::None);
    }
}
