//! Configuration of encoders.

use super::{check_sizes, read_json};
use crate::{LmError, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// HF `config.json` of a BERT-family encoder (absolute positions, post-norm).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BertConfig {
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width E of the hidden states.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Rows of the position table.
    pub max_position_embeddings: usize,
    /// Rows of the segment table.
    #[serde(default = "two")]
    pub type_vocab_size: usize,
    /// Added to variances.
    #[serde(default = "bert_eps")]
    pub layer_norm_eps: f64,
    /// Activation; only `gelu` (exact) is supported.
    #[serde(default = "gelu")]
    pub hidden_act: String,
    /// Id of padding.
    #[serde(default)]
    pub pad_token_id: u32,
    /// `bert`, `roberta` or `xlm-roberta`.
    #[serde(default = "bert")]
    pub model_type: String,
    /// Only `absolute` is supported.
    #[serde(default = "absolute")]
    pub position_embedding_type: String,
}

fn two() -> usize {
    2
}
fn bert_eps() -> f64 {
    1e-12
}
fn gelu() -> String {
    "gelu".to_owned()
}
fn bert() -> String {
    "bert".to_owned()
}
fn absolute() -> String {
    "absolute".to_owned()
}

impl BertConfig {
    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// Unreadable or damaged files, models of another family, numbers out of range.
    pub fn from_file(path: &Path) -> Result<Self> {
        let config: Self = read_json(path)?;
        config.check().map_err(|m| LmError::file(path, m))?;
        Ok(config)
    }

    fn check(&self) -> std::result::Result<(), String> {
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("type_vocab_size", self.type_vocab_size),
        ])?;
        if !matches!(self.model_type.as_str(), "bert" | "roberta" | "xlm-roberta") {
            return Err(format!("encoder family `{}` is not supported (bert, xlm-roberta)", self.model_type));
        }
        if self.hidden_act != "gelu" {
            return Err(format!("activation `{}` is not supported (gelu)", self.hidden_act));
        }
        if self.position_embedding_type != "absolute" {
            return Err(format!("positions `{}` are not supported (absolute)", self.position_embedding_type));
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Err(format!("{} heads do not divide {}", self.num_attention_heads, self.hidden_size));
        }
        if self.max_position_embeddings <= self.position_offset() {
            return Err("no position is left after the padding's".to_owned());
        }
        Ok(())
    }

    /// Position of the first token: RoBERTa starts after the padding's row.
    pub fn position_offset(&self) -> usize {
        if self.model_type == "bert" { 0 } else { self.pad_token_id as usize + 1 }
    }

    /// Tokens that can be read at once, special tokens included.
    pub fn window(&self) -> usize {
        self.max_position_embeddings - self.position_offset()
    }
}
