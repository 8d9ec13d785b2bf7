//! The arithmetic of LLoCO, for training and inference alike.

use crate::trained::params;
use candle_core::{DType, Device, Result, Tensor, Var};
use e2llm_kernels::gather_rows;
use e2llm_lm::{
    KvCache, Llama, LlamaConfig, LmError, LoraConfig, LoraSource, PREFILL_BLOCK, Part, Precision, TensorSpec,
    lora_targets, mean_norm, uniform,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What its files are called in a checkpoint.
pub const METHOD: &str = "lloco";
const COMPRESSOR: &str = "compressor.";
const DECODER: &str = "decoder.";
/// Embeddings of the summary tokens.
const SUMMARY: &str = "compressor.summary";
/// Factor of all summary vectors.
const SCALE: &str = "compressor.output_scale";

/// `lloco_config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LlocoConfig {
    /// Tokens that are compressed at once.
    pub segment_tokens: usize,
    /// Summary vectors that a segment becomes.
    pub summary_tokens: usize,
    /// Compression steps that a gradient runs through, in training.
    pub bptt_segments: usize,
    /// Low-rank updates of the decoder while it compresses.
    pub compressor_lora: LoraConfig,
    /// Low-rank updates of the decoder while it answers: the domain's.
    pub decoder_lora: LoraConfig,
}

impl Default for LlocoConfig {
    fn default() -> Self {
        let targets = lora_targets("llama", "paper").expect("configs/lora.toml is part of the program");
        let lora = |r| LoraConfig { r, lora_alpha: 16.0, target_modules: targets.clone() };
        Self {
            segment_tokens: 1536,
            summary_tokens: 50,
            bptt_segments: 2,
            compressor_lora: lora(16),
            decoder_lora: lora(8),
        }
    }
}

impl LlocoConfig {
    /// What is out of range.
    ///
    /// # Errors
    /// The first setting that cannot be used.
    pub fn check(&self) -> std::result::Result<(), String> {
        let all = [
            ("segment_tokens", self.segment_tokens),
            ("summary_tokens", self.summary_tokens),
            ("bptt_segments", self.bptt_segments),
        ];
        match all.iter().find(|(_, n)| *n == 0) {
            Some((name, _)) => Err(format!("`{name}` is 0: it must be at least 1")),
            None => Ok(()),
        }
    }

    /// The tensors of the compressor: they decide what a document's summary vectors are.
    pub fn compressor_tensors(&self, decoder: &LlamaConfig) -> Vec<TensorSpec> {
        let mut all = decoder.lora_tensors(&self.compressor_lora, COMPRESSOR);
        all.push(TensorSpec::new(SUMMARY, vec![self.summary_tokens, decoder.hidden_size]));
        all.push(TensorSpec::new(SCALE, vec![1]));
        all
    }

    /// Everything that is trained.
    pub fn tensors(&self, decoder: &LlamaConfig) -> Vec<TensorSpec> {
        let mut all = self.compressor_tensors(decoder);
        all.extend(decoder.lora_tensors(&self.decoder_lora, DECODER));
        all
    }

    /// Summary vectors of a text of so many tokens.
    pub fn summaries(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.segment_tokens) * self.summary_tokens
    }

    /// Positions of the longest pass that compresses a text of so many tokens.
    pub fn positions(&self, tokens: usize) -> usize {
        let before = tokens.div_ceil(self.segment_tokens).saturating_sub(1) * self.summary_tokens;
        before + self.segment_tokens.min(tokens) + self.summary_tokens
    }

    /// Start values: every summary token is the end of a text, as AutoCompressors start; LoRA changes nothing; summary
    /// vectors are as long as embeddings are on average.
    ///
    /// # Errors
    /// Failing tensor operations; a decoder without an end-of-sequence token.
    pub fn start_tensors(&self, base: &Llama, eos: u32, seed: u64) -> Result<BTreeMap<String, Tensor>> {
        const PROBE: usize = 64;
        let (s, c) = (self.summary_tokens, base.config());
        let lora: Vec<_> =
            self.tensors(c).into_iter().filter(|t| t.name != SUMMARY && t.name != SCALE).collect();
        let mut tensors = e2llm::initial_tensors(&lora, seed)?;
        let host = |t: Tensor| t.to_dtype(DType::F32)?.to_device(&Device::Cpu);
        tensors.insert(SUMMARY.to_owned(), host(base.embed(&vec![eos; s])?.squeeze(0)?)?);
        let draw = uniform(seed, "probe", PROBE, 0.5);
        let id = |v: &f32| (((v + 0.5) * c.vocab_size as f32) as usize).min(c.vocab_size - 1) as u32;
        let ids: Vec<u32> = draw.iter().map(id).chain(vec![eos; s]).collect();
        let states = base.forward_hidden(&base.embed(&ids)?, None, None)?.narrow(1, PROBE, s)?;
        let scale = base.embedding_norm()? / mean_norm(&states)?.max(f64::MIN_POSITIVE);
        tensors.insert(SCALE.to_owned(), Tensor::full(scale as f32, 1, &Device::Cpu)?);
        Ok(tensors)
    }
}

/// The decoder as it compresses.
#[derive(Debug, Clone)]
pub struct Compressor {
    llama: Llama,
    /// `[S, D]`.
    summary: Tensor,
    /// `[1]`.
    scale: Tensor,
    segment_tokens: usize,
    bptt_segments: usize,
}

impl Compressor {
    /// Summary vectors of documents given by their ids, `[n, D]` each; documents go through the decoder side by side.
    ///
    /// Segment by segment the decoder reads the summary vectors of all segments before, the segment, and the summary tokens;
    /// its last states at those, times the learned scale, are the segment's summary vectors. Gradients are cut between
    /// groups of `bptt_segments` segments.
    ///
    /// # Errors
    /// A document without a token; ids beyond the vocabulary; failing tensor operations. `step` is asked before each step.
    pub fn summaries(
        &self,
        documents: &[Vec<u32>],
        mut step: impl FnMut() -> Result<()>,
    ) -> Result<Vec<Tensor>> {
        let s = self.summary.dim(0)?;
        let dtype = self.llama.dtype();
        let (summary, scale) = (self.summary.to_dtype(dtype)?, self.scale.to_dtype(dtype)?);
        let segments: Vec<Vec<&[u32]>> =
            documents.iter().map(|d| d.chunks(self.segment_tokens).collect()).collect();
        if segments.iter().any(Vec::is_empty) {
            candle_core::bail!("a document without a token has no summary");
        }
        let mut own: Vec<Vec<Tensor>> = vec![Vec::new(); documents.len()];
        for at in 0..segments.iter().map(Vec::len).max().unwrap_or(0) {
            step()?;
            let active: Vec<usize> = (0..documents.len()).filter(|d| segments[*d].len() > at).collect();
            let group = at - at % self.bptt_segments;
            let (mut soft, mut sequences, mut rows) = (Vec::new(), Vec::new(), 0);
            for &d in &active {
                for (i, before) in own[d].iter().enumerate() {
                    soft.push(if i < group { before.detach() } else { before.clone() });
                }
                soft.push(summary.clone());
                let read = rows + own[d].len() * s;
                let ids = Part::Ids(segments[d][at].to_vec());
                sequences.push(vec![Part::Soft(rows..read), ids, Part::Soft(read..read + s)]);
                rows = read + s;
            }
            let (x, lengths) = self.llama.embed_parts(&sequences, Some(&Tensor::cat(&soft, 0)?))?;
            let states = self.llama.forward_hidden(&x, Some(&lengths), None)?;
            let longest = x.dim(1)?;
            let last = lengths.iter().enumerate().flat_map(|(i, n)| i * longest + n - s..i * longest + n);
            let last: Vec<u32> = last.map(|row| row as u32).collect();
            let new = gather_rows(&states.flatten(0, 1)?, &last)?.broadcast_mul(&scale)?;
            for (i, &d) in active.iter().enumerate() {
                own[d].push(new.narrow(0, i * s, s)?);
            }
        }
        own.iter().map(|parts| Tensor::cat(parts, 0)).collect()
    }

    /// As [`Compressor::summaries`] of one document `[n, D]`, without gradients: the decoder keeps the keys and values of the
    /// summary vectors before a segment, which no later one changes, and forgets those of the segment behind it.
    ///
    /// # Errors
    /// As [`Compressor::summaries`]; `step` is asked before each block of positions.
    pub fn compress(&self, document: &[u32], mut step: impl FnMut() -> Result<()>) -> Result<Tensor> {
        let s = self.summary.dim(0)?;
        let dtype = self.llama.dtype();
        let (summary, scale) = (self.summary.to_dtype(dtype)?.unsqueeze(0)?, self.scale.to_dtype(dtype)?);
        let segments = document.len().div_ceil(self.segment_tokens);
        let longest = segments.saturating_sub(1) * s + self.segment_tokens.min(document.len()) + s;
        let mut memory = KvCache::new(longest);
        let mut own: Vec<Tensor> = Vec::with_capacity(segments);
        for (at, segment) in document.chunks(self.segment_tokens).enumerate() {
            let mut parts = vec![self.llama.embed(segment)?, summary.clone()];
            parts.splice(0..0, own.last().cloned());
            let x = Tensor::cat(&parts, 1)?;
            let t = x.dim(1)?;
            let mut states = Vec::new();
            for start in (0..t).step_by(PREFILL_BLOCK) {
                step()?;
                let block = x.narrow(1, start, PREFILL_BLOCK.min(t - start))?.contiguous()?;
                states.push(self.llama.forward_hidden(&block, None, Some(&mut memory))?);
            }
            memory.truncate(at * s);
            let states = Tensor::cat(&states, 1)?.narrow(1, t - s, s)?;
            own.push(states.broadcast_mul(&scale)?);
        }
        if own.is_empty() {
            candle_core::bail!("a document without a token has no summary");
        }
        Tensor::cat(&own, 1)?.squeeze(0)
    }
}

/// The decoder twice, with other adapters: as it compresses and as it answers.
#[derive(Debug, Clone)]
pub struct LlocoModel {
    config: LlocoConfig,
    /// How it compresses.
    pub compressor: Compressor,
    /// How it answers.
    pub decoder: Llama,
}

impl LlocoModel {
    /// Puts what is trained beside the weights of `base`, and gives the variables by name. `trainable` says whether the
    /// compressor and the answering LoRA are to be trained.
    ///
    /// # Errors
    /// Tensors that do not fit the settings.
    pub fn load(
        config: LlocoConfig,
        base: &Llama,
        tensors: BTreeMap<String, Tensor>,
        (device, precision): (&Device, Precision),
        trainable: (bool, bool),
    ) -> std::result::Result<(Self, BTreeMap<String, Var>), LmError> {
        let (compressing, answering) =
            tensors.into_iter().partition(|(name, _)| name.starts_with(COMPRESSOR));
        let mut own = params(compressing, device, precision, trainable.0);
        let source = LoraSource { config: &config.compressor_lora, params: &mut own, prefix: COMPRESSOR };
        let compressor = Compressor {
            llama: base.with_lora(source)?,
            summary: own.get(SUMMARY, &[config.summary_tokens, base.config().hidden_size])?,
            scale: own.get(SCALE, &[1])?,
            segment_tokens: config.segment_tokens,
            bptt_segments: config.bptt_segments,
        };
        let mut vars = own.finish()?;
        let mut own = params(answering, device, precision, trainable.1);
        let source = LoraSource { config: &config.decoder_lora, params: &mut own, prefix: DECODER };
        let decoder = base.with_lora(source)?;
        vars.extend(own.finish()?);
        Ok((Self { config, compressor, decoder }, vars))
    }

    /// The settings.
    pub fn config(&self) -> &LlocoConfig {
        &self.config
    }

    /// Adds the updates to both decoders' weights; they can then no longer be trained.
    ///
    /// # Errors
    /// Failing tensor operations.
    pub fn merge_lora(&mut self) -> Result<()> {
        self.compressor.llama.merge_lora()?;
        self.decoder.merge_lora()
    }

    /// Whether layers are computed again in the backward pass instead of being kept.
    pub fn set_checkpointing(&mut self, on: bool) {
        self.compressor.llama.set_checkpointing(on);
        self.decoder.set_checkpointing(on);
    }
}
