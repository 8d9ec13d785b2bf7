//! Models to measure, and how much work each gets.

use super::Bench;
use e2llm_lm::{BertConfig, LlamaConfig, RopeScaling};

/// Decoder tokens before and behind the soft tokens.
pub(super) const PREFIX: usize = 16;
pub(super) const SUFFIX: usize = 32;

/// Base models and the work they are given.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Its name in rows and flags.
    pub name: &'static str,
    pub(super) encoder: BertConfig,
    pub(super) decoder: LlamaConfig,
    /// Encoder tokens of a chunk.
    pub(super) chunk_tokens: usize,
    pub(super) chunks: usize,
    /// Soft tokens of a chunk.
    pub(super) soft: usize,
    /// Tokens of the answer that is learned.
    pub(super) answer: usize,
    /// Tokens of the answer that is written.
    pub(super) decode: usize,
}

impl Shape {
    /// Names of the shapes: MiniLM before SmolLM2-135M, BERT large before Llama-2 7B, and one that runs in no time, for
    /// tests.
    pub const NAMES: [&str; 3] = ["135m", "7b", "tiny"];

    /// The shape of that name.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "135m" => Self {
                name: "135m",
                encoder: bert(30522, 384, 6, 12),
                decoder: llama(49152, 576, 30, (9, 3), 1536, 8192, true),
                chunk_tokens: 256,
                chunks: 32,
                soft: 4,
                answer: 128,
                decode: 64,
            },
            "7b" => Self {
                name: "7b",
                encoder: bert(30522, 1024, 24, 16),
                decoder: llama(32000, 4096, 32, (32, 32), 11008, 4096, false),
                chunk_tokens: 256,
                chunks: 64,
                soft: 4,
                answer: 256,
                decode: 128,
            },
            "tiny" => Self {
                name: "tiny",
                encoder: bert(100, 32, 2, 2),
                decoder: llama(120, 48, 2, (4, 2), 96, 4096, true),
                chunk_tokens: 16,
                chunks: 4,
                soft: 2,
                answer: 12,
                decode: 6,
            },
            _ => return None,
        })
    }

    /// Its base models.
    pub fn base_models(&self) -> (&BertConfig, &LlamaConfig) {
        (&self.encoder, &self.decoder)
    }

    /// Positions of a prompt.
    pub(super) fn prompt(&self) -> usize {
        PREFIX + self.chunks * self.soft + SUFFIX
    }

    /// Tokens that a bench counts; of a context the shortest one's.
    pub(super) fn tokens(&self, bench: Bench) -> usize {
        match bench {
            Bench::Encode => self.chunks * self.chunk_tokens,
            Bench::Prefill => self.prompt(),
            Bench::Decode => self.decode,
            Bench::Train => self.chunks * self.chunk_tokens + self.prompt() + self.answer,
            Bench::Context => super::work::SHORTEST,
        }
    }
}

fn bert(vocabulary: usize, width: usize, layers: usize, heads: usize) -> BertConfig {
    BertConfig {
        vocab_size: vocabulary,
        hidden_size: width,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        intermediate_size: 4 * width,
        max_position_embeddings: 512,
        type_vocab_size: 2,
        layer_norm_eps: 1e-12,
        hidden_act: "gelu".into(),
        pad_token_id: 0,
        model_type: "bert".into(),
        position_embedding_type: "absolute".into(),
    }
}

fn llama(
    vocabulary: usize,
    width: usize,
    layers: usize,
    (heads, kv_heads): (usize, usize),
    inner: usize,
    positions: usize,
    tied: bool,
) -> LlamaConfig {
    LlamaConfig {
        model_type: "llama".into(),
        vocab_size: vocabulary,
        hidden_size: width,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim: width / heads,
        intermediate_size: inner,
        max_position_embeddings: positions,
        rms_norm_eps: 1e-5,
        rope_theta: if tied { 100_000.0 } else { 10_000.0 },
        rope_scaling: RopeScaling::None,
        tie_word_embeddings: tied,
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
        qk_norm: false,
        bos_token_id: None,
        // No token may end an answer before its length is reached.
        eos_token_ids: Vec::new(),
    }
}
