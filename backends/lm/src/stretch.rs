//! How a user asks for a stretched window.

use crate::{LlamaConfig, RopeScaling};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Rotary positions rescaled for a longer window: the settings of `[model.rope]`, of the backend `yarn`, and of a trained
/// decoder's folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Stretch {
    /// `yarn`, `linear` (position interpolation), `dynamic` or `llama3`.
    pub scaling: String,
    /// How much the window is stretched, at least 1.
    pub factor: f64,
    /// Positions the decoder was trained on; its own where not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_window: Option<usize>,
    /// yarn: turns within the window above which angles are kept.
    pub beta_fast: f64,
    /// yarn: turns within the window below which they are stretched.
    pub beta_slow: f64,
    /// yarn: factor of cos and sin; `0.1 ln(factor) + 1` where not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attention_factor: Option<f64>,
    /// llama3: wavelengths above `window / low_freq_factor` are stretched.
    pub low_freq_factor: f64,
    /// llama3: wavelengths below `window / high_freq_factor` are kept.
    pub high_freq_factor: f64,
}

impl Default for Stretch {
    fn default() -> Self {
        Self {
            scaling: "yarn".into(),
            factor: 4.0,
            original_window: None,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: None,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
        }
    }
}

/// A setting of a [`Stretch`] that is out of range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StretchError {
    /// Its name.
    pub setting: &'static str,
    /// Its value and what it must be.
    pub what: String,
}

impl fmt::Display for StretchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.setting, self.what)
    }
}

impl std::error::Error for StretchError {}

impl Stretch {
    /// The scaling of angles, for a decoder that was trained on `window` positions.
    ///
    /// # Errors
    /// A setting out of range.
    pub fn rope_scaling(&self, window: usize) -> Result<RopeScaling, StretchError> {
        let bad = |setting, what| Err(StretchError { setting, what });
        if self.original_window == Some(0) {
            return bad("original_window", "0: it must be at least 1".into());
        }
        let factor = self.factor;
        if !(factor.is_finite() && factor >= 1.0) {
            return bad("factor", format!("{factor}: it must be at least 1"));
        }
        let numbers = [
            ("beta_fast", self.beta_fast),
            ("beta_slow", self.beta_slow),
            ("attention_factor", self.attention_factor.unwrap_or(1.0)),
            ("low_freq_factor", self.low_freq_factor),
            ("high_freq_factor", self.high_freq_factor),
        ];
        for (setting, value) in numbers {
            if !(value.is_finite() && value > 0.0) {
                return bad(setting, format!("{value}: it must be a number above 0"));
            }
        }
        let (fast, slow) = (self.beta_fast, self.beta_slow);
        if slow >= fast {
            return bad("beta_fast", format!("{fast}: it must be above beta_slow = {slow}"));
        }
        let (low, high) = (self.low_freq_factor, self.high_freq_factor);
        if low >= high {
            return bad("high_freq_factor", format!("{high}: it must be above low_freq_factor = {low}"));
        }
        Ok(match self.scaling.as_str() {
            "linear" => RopeScaling::Linear { factor },
            "dynamic" => RopeScaling::Dynamic { factor, window },
            "llama3" => RopeScaling::Llama3 { factor, low, high, window },
            "yarn" => {
                let mut scaling = RopeScaling::yarn(factor, window);
                if let RopeScaling::Yarn { beta_fast, beta_slow, attention_factor, .. } = &mut scaling {
                    (*beta_fast, *beta_slow) = (fast, slow);
                    *attention_factor = self.attention_factor.unwrap_or(*attention_factor);
                }
                scaling
            }
            other => {
                return bad("scaling", format!("`{other}`: known are yarn, linear, dynamic, llama3"));
            }
        })
    }

    /// Positions of a decoder whose own are `window`.
    pub fn window(&self, window: usize) -> usize {
        (self.original_window.unwrap_or(window) as f64 * self.factor) as usize
    }

    /// Stretches a decoder's window, and returns what whoever uses it should know.
    ///
    /// # Errors
    /// A setting out of range.
    pub fn apply(&self, config: &mut LlamaConfig) -> Result<Vec<String>, StretchError> {
        let own = config.max_position_embeddings;
        let scaling = self.rope_scaling(self.original_window.unwrap_or(own))?;
        let mut warnings = Vec::new();
        if config.rope_scaling != RopeScaling::None {
            warnings.push(format!("the decoder's own rotary scaling is replaced by `{}`", self.scaling));
        }
        config.rope_scaling = scaling;
        config.max_position_embeddings = self.window(own);
        Ok(warnings)
    }
}
