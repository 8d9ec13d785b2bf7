//! `yarn`: the whole prompt in a window stretched by rescaled rotary positions, without training or with.
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
//! agree and neighbours in a batch change nothing. Another `max_new_tokens` is therefore another stretch. A decoder that
//! was fine-tuned in a stretched window (`[model.rope]` of a training) brings its scaling along.

use crate::decoder::{Decoder, DecoderBackend, Draft, LORA, Method, WINDOW};
use crate::options::{bad_option, positive};
use crate::prompt::Whole;
use e2llm_backend::{BackendError, BackendSpec, BuildContext, OptionSpec, Options, Prompt};
use e2llm_lm::{LlamaConfig, Stretch, StretchError, TunedDecoder};

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

/// Stretches by the options, or not at all where the decoder's folder has done so.
struct Stretched(Option<Stretch>);

impl Stretched {
    fn new(context: &BuildContext) -> Result<Self, BackendError> {
        let tuned = context.model.checkpoint.as_deref().filter(|folder| TunedDecoder::is_at(folder));
        let own = tuned.map(TunedDecoder::settings).transpose()?.and_then(|(_, rope)| rope);
        if own.is_none() {
            return Ok(Self(Some(stretch(&context.options)?)));
        }
        let ours = |name: &str| spec().options.iter().find(|o| o.name == name).map(|o| o.default);
        let positions = |name: &&str| !matches!(*name, "window" | "lora");
        let mut given = context.options.iter().filter(|(name, value)| ours(name) != Some(value));
        match given.find(|(name, _)| positions(name)) {
            Some((name, _)) => Err(bad_option(name, "the model was trained with a scaling of its own")),
            None => Ok(Self(None)),
        }
    }
}

fn stretch(options: &Options) -> Result<Stretch, BackendError> {
    let given = |name: &str| !options.text(name).is_empty();
    let stretch = Stretch {
        scaling: options.text("scaling").to_owned(),
        factor: positive(options, "factor")?,
        original_window: options.parse("original_window")?,
        beta_fast: positive(options, "beta_fast")?,
        beta_slow: positive(options, "beta_slow")?,
        attention_factor: given("attention_factor")
            .then(|| positive(options, "attention_factor"))
            .transpose()?,
        low_freq_factor: positive(options, "low_freq_factor")?,
        high_freq_factor: positive(options, "high_freq_factor")?,
    };
    stretch.rope_scaling(1).map_err(out_of_range)?;
    Ok(stretch)
}

fn out_of_range(error: StretchError) -> BackendError {
    bad_option(error.setting, &error.what)
}

impl Method for Stretched {
    fn configure(&mut self, config: &mut LlamaConfig) -> Result<Vec<String>, BackendError> {
        self.0.as_ref().map_or(Ok(Vec::new()), |stretch| stretch.apply(config).map_err(out_of_range))
    }

    fn draft(&self, decoder: &Decoder, prompt: &Prompt, room: usize) -> Result<Draft<'_>, BackendError> {
        Whole::new(decoder, prompt)?.within_window(decoder, room).map(Draft::from)
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
            let stretch = Stretched::new(&context).unwrap().0.unwrap();
            let window = case["window"].as_u64().unwrap() as usize;
            let scaling = stretch.rope_scaling(stretch.original_window.unwrap_or(window)).unwrap();
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
            *tried.entry(stretch.scaling).or_default() += 1;
        }
        assert_eq!(tried.keys().collect::<Vec<_>>(), ["dynamic", "linear", "llama3", "yarn"], "{tried:?}");
    }
}
