//! Configuration of decoders, from HF's `config.json` or GGUF metadata.

use super::{Ids, check_sizes, read_json};
use crate::rope::{RopeParameters, RopeScaling};
use crate::{Gguf, LmError, Result};
use serde::Deserialize;
use std::path::Path;

/// Configuration of a Llama-family decoder (RoPE, RMSNorm, SwiGLU, grouped-query attention).
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// `llama`, `qwen2` or `qwen3`.
    pub model_type: String,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width D of the hidden states.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Width of a head; may differ from `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Positions the decoder was trained on.
    pub max_position_embeddings: usize,
    /// Added to mean squares.
    pub rms_norm_eps: f64,
    /// Base of the rotary angles.
    pub rope_theta: f64,
    /// How the rotary angles are stretched.
    pub rope_scaling: RopeScaling,
    /// Whether the output layer is the embedding table.
    pub tie_word_embeddings: bool,
    /// Whether the projections to q, k, v have a bias.
    pub qkv_bias: bool,
    /// Whether the attention's output projection has a bias.
    pub output_bias: bool,
    /// Whether the feed-forward layers have a bias.
    pub mlp_bias: bool,
    /// Whether q and k are normalised head by head (Qwen3).
    pub qk_norm: bool,
    /// Beginning of a text, where the model has such a token.
    pub bos_token_id: Option<u32>,
    /// Tokens that end an answer.
    pub eos_token_ids: Vec<u32>,
}

/// `config.json` as it is written.
#[derive(Deserialize)]
struct RawLlama {
    #[serde(default = "llama")]
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: usize,
    #[serde(default = "two_thousand")]
    max_position_embeddings: usize,
    #[serde(default = "llama_eps")]
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeParameters>,
    rope_parameters: Option<RopeParameters>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    use_sliding_window: bool,
    #[serde(default = "silu")]
    hidden_act: String,
    #[serde(default)]
    bos_token_id: Ids,
    #[serde(default)]
    eos_token_id: Ids,
}

fn llama() -> String {
    "llama".to_owned()
}
fn silu() -> String {
    "silu".to_owned()
}
fn two_thousand() -> usize {
    2048
}
fn llama_eps() -> f64 {
    1e-6
}

impl LlamaConfig {
    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// Unreadable or damaged files, models of another family, numbers out of range.
    pub fn from_file(path: &Path) -> Result<Self> {
        let raw: RawLlama = read_json(path)?;
        Self::from_raw(raw).map_err(|m| LmError::file(path, m))
    }

    fn from_raw(raw: RawLlama) -> std::result::Result<Self, String> {
        if !matches!(raw.model_type.as_str(), "llama" | "qwen2" | "qwen3") {
            return Err(format!(
                "decoder family `{}` is not supported (llama, qwen2, qwen3)",
                raw.model_type
            ));
        }
        if raw.hidden_act != "silu" {
            return Err(format!("activation `{}` is not supported (silu)", raw.hidden_act));
        }
        if raw.use_sliding_window {
            return Err("sliding-window attention is not supported".to_owned());
        }
        check_sizes(&[("num_attention_heads", raw.num_attention_heads), ("hidden_size", raw.hidden_size)])?;
        // Newer files put everything about rotary positions, the base included, under `rope_parameters`.
        let rope = raw.rope_parameters.or(raw.rope_scaling).unwrap_or_default();
        let config = Self {
            vocab_size: raw.vocab_size,
            hidden_size: raw.hidden_size,
            num_hidden_layers: raw.num_hidden_layers,
            num_attention_heads: raw.num_attention_heads,
            num_key_value_heads: raw.num_key_value_heads.unwrap_or(raw.num_attention_heads),
            head_dim: raw.head_dim.unwrap_or(raw.hidden_size / raw.num_attention_heads),
            intermediate_size: raw.intermediate_size,
            max_position_embeddings: raw.max_position_embeddings,
            rms_norm_eps: raw.rms_norm_eps,
            rope_theta: rope.rope_theta.or(raw.rope_theta).unwrap_or(10_000.0),
            rope_scaling: rope.scaling(raw.max_position_embeddings)?,
            tie_word_embeddings: raw.tie_word_embeddings,
            qkv_bias: raw.attention_bias || raw.model_type == "qwen2",
            output_bias: raw.attention_bias && raw.model_type != "qwen2",
            mlp_bias: raw.mlp_bias,
            qk_norm: raw.model_type == "qwen3",
            bos_token_id: raw.bos_token_id.into_vec().first().copied(),
            eos_token_ids: raw.eos_token_id.into_vec(),
            model_type: raw.model_type,
        };
        config.check()?;
        Ok(config)
    }

    /// Reads the configuration out of a GGUF file's metadata.
    ///
    /// # Errors
    /// Other architectures than `llama`, `qwen2`, `qwen3`; missing keys; numbers out of range.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let arch = gguf.text("general.architecture")?.to_owned();
        if !matches!(arch.as_str(), "llama" | "qwen2" | "qwen3") {
            let message = format!("GGUF architecture `{arch}` is not supported (llama, qwen2, qwen3)");
            return Err(LmError::file(gguf.path(), message));
        }
        let size = |key: &str| gguf.integer(&format!("{arch}.{key}"));
        let heads = size("attention.head_count")?;
        let hidden = size("embedding_length")?;
        check_sizes(&[("head_count", heads), ("embedding_length", hidden)])
            .map_err(|m| LmError::file(gguf.path(), m))?;
        let or = |key: &str, default: usize| gguf.integer_or(&format!("{arch}.{key}"), default);
        let head_dim = or("attention.key_length", hidden / heads)?;
        let rotated = or("rope.dimension_count", head_dim)?;
        if rotated != head_dim {
            let message = format!("partly rotated heads ({rotated} of {head_dim}) are not supported");
            return Err(LmError::file(gguf.path(), message));
        }
        let window = size("context_length")?;
        let id = |key: &str| gguf.integer_or(key, usize::MAX).map(|i| u32::try_from(i).ok());
        let eos = [id("tokenizer.ggml.eos_token_id")?, id("tokenizer.ggml.eot_token_id")?];
        let mut eos_token_ids: Vec<u32> = eos.into_iter().flatten().collect();
        eos_token_ids.dedup();
        let config = Self {
            vocab_size: gguf.rows("token_embd.weight")?,
            hidden_size: hidden,
            num_hidden_layers: size("block_count")?,
            num_attention_heads: heads,
            num_key_value_heads: or("attention.head_count_kv", heads)?,
            head_dim,
            intermediate_size: size("feed_forward_length")?,
            max_position_embeddings: window,
            rms_norm_eps: gguf.float(&format!("{arch}.attention.layer_norm_rms_epsilon"))?,
            rope_theta: gguf.float_or(&format!("{arch}.rope.freq_base"), 10_000.0)?,
            rope_scaling: gguf.rope_scaling(&arch, window)?,
            tie_word_embeddings: !gguf.has("output.weight"),
            qkv_bias: gguf.has("blk.0.attn_q.bias"),
            output_bias: gguf.has("blk.0.attn_output.bias"),
            mlp_bias: gguf.has("blk.0.ffn_up.bias"),
            qk_norm: gguf.has("blk.0.attn_q_norm.weight"),
            bos_token_id: id("tokenizer.ggml.bos_token_id")?,
            eos_token_ids,
            model_type: arch,
        };
        config.check().map_err(|m| LmError::file(gguf.path(), m))?;
        Ok(config)
    }

    fn check(&self) -> std::result::Result<(), String> {
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ])?;
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            let (kv, q) = (self.num_key_value_heads, self.num_attention_heads);
            return Err(format!("{kv} key heads do not divide {q} query heads"));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(format!("heads of odd width {} cannot be rotated", self.head_dim));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 1.0) {
            return Err(format!("`rope_theta` = {} is out of range", self.rope_theta));
        }
        Ok(())
    }

    /// The configuration as an HF `config.json`, e.g. for a model that came from a GGUF file.
    pub fn to_hf_json(&self) -> serde_json::Value {
        let architecture = match self.model_type.as_str() {
            "qwen2" => "Qwen2ForCausalLM",
            "qwen3" => "Qwen3ForCausalLM",
            _ => "LlamaForCausalLM",
        };
        serde_json::json!({
            "architectures": [architecture],
            "model_type": self.model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": self.rope_scaling.to_hf_json(),
            "tie_word_embeddings": self.tie_word_embeddings,
            "attention_bias": self.output_bias || (self.qkv_bias && self.model_type != "qwen2"),
            "mlp_bias": self.mlp_bias,
            "hidden_act": "silu",
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_ids,
        })
    }
}
