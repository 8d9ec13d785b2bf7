//! `e2llm_config.json`: everything about a model that its base models do not say.

use e2llm_backend::{Chunker, ChunkerError};
use e2llm_lm::{LoraConfig, lora_targets};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How the token states of a chunk become soft tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdapterKind {
    /// Learned seeds attend over all token states (E2LLM, EMNLP'25).
    Vpma,
    /// The `[CLS]` state through a two-layer MLP (E2LLM, first version).
    Cls,
    /// Means of equal spans through the same MLP.
    Mean,
}

impl fmt::Display for AdapterKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vpma => "vpma",
            Self::Cls => "cls",
            Self::Mean => "mean",
        })
    }
}

impl FromStr for AdapterKind {
    type Err = ConfigError;

    fn from_str(s: &str) -> Result<Self, ConfigError> {
        match s {
            "vpma" => Ok(Self::Vpma),
            "cls" => Ok(Self::Cls),
            "mean" => Ok(Self::Mean),
            _ => Err(ConfigError::Value("adapter", format!("`{s}` is none of vpma, cls, mean"))),
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No JSON, or a value of another type.
    #[error("not the JSON it should be: {0}")]
    Json(#[from] serde_json::Error),
    /// A value out of range: its key, and what is wrong.
    #[error("`{0}`: {1}")]
    Value(&'static str, String),
    /// Chunk size or overlap out of range.
    #[error("`chunk_chars`, `chunk_overlap`: {0}")]
    Chunker(#[from] ChunkerError),
}

/// The settings of an E2LLM model, with the keys and defaults of the reference implementation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct E2llmConfig {
    /// The adapter between encoder and decoder.
    pub adapter: AdapterKind,
    /// Soft tokens k that a chunk becomes; the paper's is 1, and `cls` allows no other.
    pub soft_tokens_per_chunk: usize,
    /// Attention heads of `vpma`; they must divide the decoder's width.
    pub vpma_num_heads: usize,
    /// Whether soft tokens are multiplied by one learned number (norm matching).
    pub output_scale: bool,
    /// Low-rank updates of the encoder.
    pub encoder_lora: LoraConfig,
    /// Low-rank updates of the decoder.
    pub decoder_lora: LoraConfig,
    /// Characters of a chunk at most.
    pub chunk_chars: usize,
    /// Fraction of a chunk that the next one repeats, 0 to 0.5.
    pub chunk_overlap: f64,
    /// Text before the soft tokens.
    pub context_prefix: String,
    /// Text between the soft tokens and the instruction.
    pub instruction_prefix: String,
    /// The instruction of the reconstruction objective.
    pub reconstruction_instruction: String,
}

impl Default for E2llmConfig {
    fn default() -> Self {
        let targets = |t: &str| lora_targets(t, "paper").expect("configs/lora.toml is part of the program");
        let lora = |model_type| LoraConfig { r: 16, lora_alpha: 32.0, target_modules: targets(model_type) };
        Self {
            adapter: AdapterKind::Vpma,
            soft_tokens_per_chunk: 1,
            vpma_num_heads: 4,
            output_scale: false,
            encoder_lora: lora("bert"),
            decoder_lora: lora("llama"),
            chunk_chars: 512,
            chunk_overlap: 0.0,
            context_prefix: "Given the contexts:\n".into(),
            instruction_prefix: "\nPlease follow the instruction:\n".into(),
            reconstruction_instruction: "Restate the aforementioned context.".into(),
        }
    }
}

impl E2llmConfig {
    /// Reads a configuration; what is missing takes its default. Also gives the keys nobody knows, dotted.
    ///
    /// # Errors
    /// No JSON object, values of another type or out of range.
    pub fn from_json(text: &str) -> Result<(Self, Vec<String>), ConfigError> {
        // Read as an object first: serde would take a list for the fields in their order.
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text)?;
        let object = serde_json::Value::Object(object);
        let mut unknown = Vec::new();
        let config: Self = serde_ignored::deserialize(object, |path| unknown.push(path.to_string()))?;
        config.check()?;
        Ok((config, unknown))
    }

    /// The configuration as the text of `e2llm_config.json`.
    ///
    /// # Errors
    /// None that a configuration made here can cause.
    pub fn to_json(&self) -> Result<String, ConfigError> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// The chunker these settings ask for.
    ///
    /// # Errors
    /// A chunk size of 0, an overlap outside 0 to 0.5.
    pub fn chunker(&self) -> Result<Chunker, ChunkerError> {
        Chunker::new(self.chunk_chars, self.chunk_overlap)
    }

    /// Checks everything that can be checked without the base models.
    ///
    /// # Errors
    /// The first value out of range.
    pub fn check(&self) -> Result<(), ConfigError> {
        let bad = |key, what: String| Err(ConfigError::Value(key, what));
        match self.soft_tokens_per_chunk {
            0 => return bad("soft_tokens_per_chunk", "0: it must be at least 1".into()),
            1 => {}
            k if self.adapter == AdapterKind::Cls => {
                return bad("soft_tokens_per_chunk", format!("{k}: the adapter `cls` makes 1 of a chunk"));
            }
            k if k > MOST_SOFT_TOKENS => {
                return bad("soft_tokens_per_chunk", format!("{k}: at most {MOST_SOFT_TOKENS}"));
            }
            _ => {}
        }
        if self.vpma_num_heads == 0 {
            return bad("vpma_num_heads", "0: it must be at least 1".into());
        }
        for (key, lora) in [("encoder_lora", &self.encoder_lora), ("decoder_lora", &self.decoder_lora)] {
            if lora.r == 0 && !lora.target_modules.is_empty() {
                return bad(key, "rank `r` is 0: it must be at least 1, or `target_modules` empty".into());
            }
            if !lora.lora_alpha.is_finite() {
                return bad(key, format!("`lora_alpha` is {}", lora.lora_alpha));
            }
        }
        self.chunker()?;
        Ok(())
    }
}

/// More soft tokens than an encoder has positions would repeat themselves.
const MOST_SOFT_TOKENS: usize = 8192;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_keys_take_their_defaults_and_unknown_ones_are_listed() {
        let text = r#"{"adapter": "mean", "soft_tokens_per_chunk": 8, "colour": 1,
                       "encoder_lora": {"r": 4, "lora_alpha": 8, "target_modules": [], "bias": "none"}}"#;
        let (config, unknown) = E2llmConfig::from_json(text).unwrap();
        assert_eq!(config.adapter, AdapterKind::Mean);
        assert_eq!(config.soft_tokens_per_chunk, 8);
        assert_eq!(config.encoder_lora, LoraConfig { r: 4, lora_alpha: 8.0, target_modules: vec![] });
        assert_eq!(config.chunk_chars, 512);
        assert_eq!(config.decoder_lora.target_modules, ["q_proj", "k_proj", "v_proj", "o_proj"]);
        assert_eq!(unknown, ["colour", "encoder_lora.bias"]);
    }

    #[test]
    fn an_empty_object_is_the_default_and_survives_writing() {
        let (config, unknown) = E2llmConfig::from_json("{}").unwrap();
        assert_eq!((&config, unknown.len()), (&E2llmConfig::default(), 0));
        assert_eq!(E2llmConfig::from_json(&config.to_json().unwrap()).unwrap().0, config);
    }

    #[test]
    fn bad_values_are_named() {
        for (text, key) in [
            (r#"{"adapter": "max"}"#, "vpma"),
            (r#"{"soft_tokens_per_chunk": 0}"#, "soft_tokens_per_chunk"),
            (r#"{"soft_tokens_per_chunk": -1}"#, "invalid value"),
            (r#"{"soft_tokens_per_chunk": 100000}"#, "soft_tokens_per_chunk"),
            (r#"{"adapter": "cls", "soft_tokens_per_chunk": 2}"#, "cls"),
            (r#"{"vpma_num_heads": 0}"#, "vpma_num_heads"),
            (r#"{"chunk_chars": 0}"#, "chunk_chars"),
            (r#"{"chunk_overlap": 0.9}"#, "chunk_overlap"),
            (r#"{"decoder_lora": {"r": 0, "target_modules": ["q_proj"]}}"#, "decoder_lora"),
            ("[]", "invalid type"),
            ("{} x", "trailing"),
            ("", "EOF"),
        ] {
            let error = E2llmConfig::from_json(text).unwrap_err().to_string();
            assert!(error.contains(key), "{text}: {error}");
        }
    }
}
