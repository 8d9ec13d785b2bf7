//! What is trained: `[model]`.

use e2llm::{AdapterKind, E2llmConfig};
use e2llm_baselines::lloco::LlocoConfig;
use e2llm_lm::{LoraConfig, Stretch};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// E2LLM: encoder LoRA, adapter, decoder LoRA.
    E2llm,
    /// CEPE: encoder LoRA, cross-attention of a frozen decoder.
    Cepe,
    /// LLoCO: the decoder's LoRA while it compresses and while it answers, summary tokens.
    Lloco,
    /// LoRA of the decoder alone, which reads what fits its budget of the context's own tokens.
    SftTruncate,
    /// LoRA of the decoder alone, which reads the instruction only.
    SftNoContext,
    /// LongLoRA: as `sft-truncate`, in shifted groups of attention, with embeddings and norms trained, too.
    Longlora,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::E2llm, Self::Cepe, Self::Lloco, Self::SftTruncate, Self::SftNoContext, Self::Longlora];

    /// Its name in files and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::E2llm => "e2llm",
            Self::Cepe => "cepe",
            Self::Lloco => "lloco",
            Self::SftTruncate => "sft-truncate",
            Self::SftNoContext => "sft-no-context",
            Self::Longlora => "longlora",
        }
    }

    /// Whether it needs an encoder.
    pub fn encodes(self) -> bool {
        matches!(self, Self::E2llm | Self::Cepe)
    }

    /// Whether it has a reconstruction loss.
    pub fn restates(self) -> bool {
        matches!(self, Self::E2llm | Self::Cepe | Self::Lloco)
    }
}

/// `[model]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// What is trained.
    pub method: Method,
    /// Encoder: a catalogue name or a folder in HF layout.
    pub encoder: String,
    /// Decoder: a catalogue name, a folder in HF layout or a `.gguf` file.
    pub decoder: String,
    /// A checkpoint whose trained weights are the start; its settings of the model win over those here.
    pub start: Option<PathBuf>,
    /// The adapter.
    pub adapter: AdapterKind,
    /// Soft tokens of a chunk.
    pub soft_tokens_per_chunk: usize,
    /// Attention heads of `vpma`.
    pub vpma_num_heads: usize,
    /// Whether soft tokens start at the length of the decoder's embeddings.
    pub output_scale: bool,
    /// LoRA of the encoder.
    pub encoder_lora: LoraConfig,
    /// LoRA of the decoder.
    pub decoder_lora: LoraConfig,
    /// How the decoder's window is stretched (`sft-*`, `longlora`); not at all where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope: Option<Stretch>,
    /// Tokens of the context's end that the decoder reads as they are, at most (`cepe`).
    pub decoder_context: usize,
    /// Tokens that are compressed at once (`lloco`).
    pub segment_tokens: usize,
    /// Summary vectors that a segment becomes (`lloco`).
    pub summary_tokens: usize,
    /// Compression steps that a gradient runs through (`lloco`).
    pub bptt_segments: usize,
    /// Whether the compressor is trained too, or the answering LoRA only, of another domain (`lloco`).
    pub train_compressor: bool,
    /// LoRA of the decoder while it compresses (`lloco`).
    pub compressor_lora: LoraConfig,
    /// Element type of the trained tensors in a checkpoint's model: `f32` or `bf16`. The masters are kept beside it.
    pub save_dtype: String,
}

impl Default for ModelConfig {
    fn default() -> Self {
        let d = E2llmConfig::default();
        let l = LlocoConfig::default();
        Self {
            method: Method::E2llm,
            encoder: "all-minilm-l6-v2".into(),
            decoder: "smollm2-135m-instruct".into(),
            start: None,
            adapter: d.adapter,
            soft_tokens_per_chunk: d.soft_tokens_per_chunk,
            vpma_num_heads: d.vpma_num_heads,
            output_scale: d.output_scale,
            encoder_lora: d.encoder_lora,
            decoder_lora: d.decoder_lora,
            rope: None,
            decoder_context: 512,
            segment_tokens: l.segment_tokens,
            summary_tokens: l.summary_tokens,
            bptt_segments: l.bptt_segments,
            train_compressor: true,
            compressor_lora: l.compressor_lora,
            save_dtype: "f32".into(),
        }
    }
}
