//! `yarn`: the whole prompt in a window stretched by rescaled rotary positions, without training.
//!
//! Sources: YaRN (Peng et al. 2023, arXiv 2309.00071); position interpolation (Chen et al. 2023, arXiv 2306.15595) as
//! `linear`; `dynamic` NTK-aware scaling; Llama 3.1's blend as `llama3`. All as transformers' `modeling_rope_utils.py`.
//!
//! Pair i of a head's d dimensions turns by the angle `m f_i` at position m, `f_i = theta^(-2i/d)`. YaRN makes it
//! `f_i (1 - g_i) / s + f_i g_i` for a stretch s, where g_i falls from 1 to 0 as the turns that pair makes within the
//! original window L fall from `beta_fast` to `beta_slow` (NTK-by-parts), and multiplies cos and sin by
//! `0.1 ln(s) + 1`, which divides the temperature of the attention by its square. `linear` is `f_i / s`; `dynamic` is
//! `theta (s n / L - (s - 1))^(d / (d - 2))` for a sequence of n > L; `llama3` blends by wavelength between
//! `low_freq_factor` and `high_freq_factor`. A stretch of 1 leaves the decoder as it is.
//! Cost: that of `full`, O(T^2) attention and O(T) memory, for T up to s L.
//!
//! Ours: the window is s L unless `window` says otherwise, also for `dynamic`, whose angles are those of the prompt
//! with room for the longest answer asked for (n above) from the first position on, so that keys read early and late
//! agree and neighbours in a batch change nothing. Another `max_new_tokens` is therefore another stretch.

use crate::decoder::{Decoder, DecoderBackend, LORA, Method, Prepared, WINDOW};
use crate::options::{bad_option, positive};
use crate::prompt::Whole;
use e2llm_backend::{BackendError, BackendSpec, BuildContext, OptionSpec, Options, Prompt};
use e2llm_lm::{LlamaConfig, RopeScaling};

const NAME: &str = "yarn";

/// The registry entry.
pub fn spec() -> BackendSpec {
    BackendSpec {
        name: NAME,
        description: "the whole prompt in a window stretched by rescaled rotary positions",
        source: "YaRN, arXiv 2309.00071; position interpolation, arXiv 2306.15595",
        needs_model: true,
        options: &[
            OptionSpec { name: "scaling", default: "yarn", help: "yarn, linear, dynamic or llama3" },
            OptionSpec { name: "factor", default: "4", help: "how much the window is stretched, at least 1" },
            OptionSpec {
                name: "original_window",
                default: "",
                help: "positions the decoder was trained on; default: the model's own",
            },
            OptionSpec { name: "beta_fast", default: "32", help: "yarn: turns above which angles are kept" },
            OptionSpec {
                name: "beta_slow",
                default: "1",
                help: "yarn: turns below which they are stretched",
            },
            OptionSpec {
                name: "attention_factor",
                default: "",
                help: "yarn: factor of cos and sin; default: 0.1 ln(factor) + 1",
            },
            OptionSpec { name: "low_freq_factor", default: "1", help: "llama3: see the source" },
            OptionSpec { name: "high_freq_factor", default: "4", help: "llama3: see the source" },
            WINDOW,
            LORA,
        ],
        build: |context| Ok(Box::new(DecoderBackend::new(NAME, "none", Stretched::new(context)?, context)?)),
    }
}

/// The method with its options.
struct Stretched {
    kind: String,
    factor: f64,
    original: Option<usize>,
    options: Options,
}

impl Stretched {
    fn new(context: &BuildContext) -> Result<Self, BackendError> {
        let options = context.options.clone();
        let kind = options.text("scaling").to_owned();
        if !matches!(kind.as_str(), "yarn" | "linear" | "dynamic" | "llama3") {
            return Err(bad_option("scaling", &format!("`{kind}`: known are yarn, linear, dynamic, llama3")));
        }
        let factor = positive(&options, "factor")?;
        if factor < 1.0 {
            return Err(bad_option("factor", &format!("{factor}: it must be at least 1")));
        }
        let original = options.parse("original_window")?;
        if original == Some(0) {
            return Err(bad_option("original_window", "0: it must be at least 1"));
        }
        Ok(Self { kind, factor, original, options })
    }

    fn scaling(&self, window: usize) -> Result<RopeScaling, BackendError> {
        let (factor, options) = (self.factor, &self.options);
        Ok(match self.kind.as_str() {
            "linear" => RopeScaling::Linear { factor },
            "dynamic" => RopeScaling::Dynamic { factor, window },
            "llama3" => {
                let low = positive(options, "low_freq_factor")?;
                let high = positive(options, "high_freq_factor")?;
                if low >= high {
                    let what = format!("{high}: it must be above low_freq_factor = {low}");
                    return Err(bad_option("high_freq_factor", &what));
                }
                RopeScaling::Llama3 { factor, low, high, window }
            }
            _ => {
                let mut scaling = RopeScaling::yarn(factor, window);
                if let RopeScaling::Yarn { beta_fast, beta_slow, attention_factor, .. } = &mut scaling {
                    *beta_fast = positive(options, "beta_fast")?;
                    *beta_slow = positive(options, "beta_slow")?;
                    if beta_slow >= beta_fast {
                        let what = format!("{beta_fast}: it must be above beta_slow = {beta_slow}");
                        return Err(bad_option("beta_fast", &what));
                    }
                    if !options.text("attention_factor").is_empty() {
                        *attention_factor = positive(options, "attention_factor")?;
                    }
                }
                scaling
            }
        })
    }
}

impl Method for Stretched {
    fn configure(&mut self, config: &mut LlamaConfig) -> Result<Vec<String>, BackendError> {
        let window = self.original.unwrap_or(config.max_position_embeddings);
        let scaling = self.scaling(window)?;
        let mut warnings = Vec::new();
        if config.rope_scaling != RopeScaling::None {
            warnings.push(format!("the decoder's own rotary scaling is replaced by `{}`", self.kind));
        }
        config.rope_scaling = scaling;
        config.max_position_embeddings = (window as f64 * self.factor) as usize;
        Ok(warnings)
    }

    fn prepare(&mut self, decoder: &Decoder, prompt: &Prompt, room: usize) -> Result<Prepared, BackendError> {
        Whole::new(decoder, prompt)?.within_window(decoder, room)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::collections::BTreeMap;
    use std::path::Path;

    /// The options of a case of transformers' `rope_parameters`; `None` where one has no option here.
    fn options(params: &Value) -> Option<Options> {
        let mut given = BTreeMap::new();
        for (key, value) in params.as_object().unwrap() {
            let name = match key.as_str() {
                "rope_type" => "scaling",
                "original_max_position_embeddings" => "original_window",
                "mscale" | "mscale_all_dim" | "truncate" | "rope_theta" => return None,
                other => other,
            };
            given.insert(name.to_owned(), value.as_str().map_or(value.to_string(), str::to_owned));
        }
        Options::checked(spec().options, &given).ok().filter(|o| o.text("scaling") != "default")
    }

    #[test]
    fn golden_options_give_the_frequencies_of_transformers() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/golden/rope/rope.json");
        let Ok(text) = std::fs::read(&path) else {
            return eprintln!("SKIPPED: {} not found", path.display());
        };
        let cases: Vec<Value> = serde_json::from_slice(&text).unwrap();
        let mut tried = BTreeMap::<String, usize>::new();
        for case in &cases {
            let Some(options) = options(&case["params"]) else { continue };
            let context = BuildContext { options, ..BuildContext::default() };
            let method = Stretched::new(&context).unwrap();
            let window = case["window"].as_u64().unwrap() as usize;
            let scaling = method.scaling(method.original.unwrap_or(window)).unwrap();
            let positions = case["seq_len"].as_u64().map_or(window, |n| n as usize);
            let head_dim = case["head_dim"].as_u64().unwrap() as usize;
            let got = scaling.inverse_frequencies(case["theta"].as_f64().unwrap(), head_dim, positions);
            let want: Vec<f64> = serde_json::from_value(case["inv_freq"].clone()).unwrap();
            assert_eq!(got.len(), want.len());
            for (got, want) in got.iter().zip(&want) {
                assert!(
                    (got - want).abs() <= 1e-6 * want.abs().max(1e-3),
                    "{got} {want}: {}",
                    case["params"]
                );
            }
            let factor = case["attention_factor"].as_f64().unwrap();
            assert!((scaling.attention_factor() - factor).abs() < 1e-6, "{}", case["params"]);
            *tried.entry(method.kind).or_default() += 1;
        }
        assert_eq!(tried.keys().collect::<Vec<_>>(), ["dynamic", "linear", "llama3", "yarn"], "{tried:?}");
    }
}
