//! The arithmetic of CEPE, for training and inference alike.

use crate::trained::{params, start};
use candle_core::{Device, Result, Tensor, Var};
use e2llm_kernels::{IGNORED, gather_rows};
use e2llm_lm::{
    BertConfig, BertEncoder, DecoderFiles, EncoderFiles, Llama, LlamaConfig, LmError, LoraConfig, LoraSource,
    Params, Precision, Source, TensorSpec, lora_targets,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What its files are called in a checkpoint.
pub const METHOD: &str = "cepe";
pub(crate) const ENCODER: &str = "encoder.";
pub(crate) const DECODER: &str = "decoder.";

/// `cepe_config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CepeConfig {
    /// Low-rank updates of the encoder.
    pub encoder_lora: LoraConfig,
    /// Tokens of the context's end that the decoder reads as they are, at most.
    pub decoder_context: usize,
    /// Characters of a chunk at most.
    pub chunk_chars: usize,
    /// Fraction of a chunk that the next one repeats, 0 to 0.5.
    pub chunk_overlap: f64,
}

impl Default for CepeConfig {
    fn default() -> Self {
        let targets = lora_targets("bert", "all").expect("configs/lora.toml is part of the program");
        Self {
            encoder_lora: LoraConfig { r: 32, lora_alpha: 64.0, target_modules: targets },
            decoder_context: 512,
            chunk_chars: 512,
            chunk_overlap: 0.0,
        }
    }
}

impl CepeConfig {
    /// Everything that is trained.
    pub fn tensors(&self, encoder: &BertConfig, decoder: &LlamaConfig) -> Vec<TensorSpec> {
        let mut all = encoder.lora_tensors(&self.encoder_lora, ENCODER);
        all.extend(decoder.cross_attention_tensors(encoder.hidden_size, DECODER));
        all
    }

    /// Start values: cross-attention's output is zero, so that the decoder is what it was; LoRA as everywhere.
    ///
    /// # Errors
    /// Failing tensor operations.
    pub fn start_tensors(
        &self,
        encoder: &BertConfig,
        decoder: &LlamaConfig,
        seed: u64,
    ) -> Result<BTreeMap<String, Tensor>> {
        let (cross, lora): (Vec<_>, Vec<_>) =
            self.tensors(encoder, decoder).into_iter().partition(|s| s.name.contains(".cross_attn."));
        let mut tensors = e2llm::initial_tensors(&lora, seed)?;
        for spec in cross {
            let tensor = if spec.name.ends_with(".layernorm.weight") {
                Tensor::ones(spec.shape.clone(), candle_core::DType::F32, &Device::Cpu)?
            } else {
                start(&spec, seed, spec.name.ends_with(".o_proj.weight"))?
            };
            tensors.insert(spec.name, tensor);
        }
        Ok(tensors)
    }
}

/// An encoder with its LoRA; small, so that it is never quantised.
pub(crate) fn load_encoder(
    config: &CepeConfig,
    files: &EncoderFiles,
    params: &mut Params,
    device: &Device,
    precision: Precision,
) -> std::result::Result<BertEncoder, LmError> {
    let precision = if precision == Precision::Quantised { Precision::F32 } else { precision };
    let lora = LoraSource { config: &config.encoder_lora, params, prefix: ENCODER };
    BertEncoder::load(&files.config, &files.weights, Some(lora), device, precision)
}

/// Encoder and decoder, with what is trained of them.
#[derive(Debug, Clone)]
pub struct CepeModel {
    config: CepeConfig,
    encoder: BertEncoder,
    decoder: Llama,
}

impl CepeModel {
    /// Builds the model, and gives the variables by name where it is to be trained.
    ///
    /// # Errors
    /// Base models that do not fit their configuration; tensors that do not fit the settings.
    pub fn load(
        config: CepeConfig,
        (encoder, decoder): (&EncoderFiles, &DecoderFiles),
        tensors: BTreeMap<String, Tensor>,
        (device, precision): (&Device, Precision),
        trainable: bool,
    ) -> std::result::Result<(Self, BTreeMap<String, Var>), LmError> {
        let width = encoder.config.hidden_size;
        let mut params = params(tensors, device, precision, trainable);
        let encoder = load_encoder(&config, encoder, &mut params, device, precision)?;
        let mut decoder = Llama::load(&decoder.config, &decoder.weights, None, device, precision)?;
        decoder.add_cross_attention(width, &mut params, DECODER)?;
        Ok((Self { config, encoder, decoder }, params.finish()?))
    }

    /// The settings.
    pub fn config(&self) -> &CepeConfig {
        &self.config
    }

    /// The decoder, whose layers have cross-attention.
    pub fn decoder(&self) -> &Llama {
        &self.decoder
    }

    /// Whether encoder and decoder layers are computed again in the backward pass instead of being kept.
    pub fn set_checkpointing(&mut self, on: bool) {
        self.encoder.set_checkpointing(on);
        self.decoder.set_checkpointing(on);
    }

    /// What the decoder's cross-attention reads for a batch: the states of every token of each example's chunks, given by
    /// their encoder ids; `None` where there is no chunk at all.
    ///
    /// # Errors
    /// A chunk that is empty or beyond the encoder's window; failing tensor operations.
    pub fn source(&self, batch: &[Vec<Vec<u32>>]) -> Result<Option<Source>> {
        let chunks: Vec<Vec<u32>> = batch.iter().flatten().cloned().collect();
        if chunks.is_empty() {
            return Ok(None);
        }
        let (states, _) = self.encoder.forward(&chunks)?;
        let (_, padded, width) = states.dims3()?;
        let lengths: Vec<usize> = batch.iter().map(|c| c.iter().map(Vec::len).sum()).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let (mut rows, mut first) = (Vec::with_capacity(batch.len() * longest), 0);
        for (chunks, length) in batch.iter().zip(&lengths) {
            for chunk in chunks {
                rows.extend((first..first + chunk.len()).map(|row| row as u32));
                first += padded;
            }
            rows.extend(std::iter::repeat_n(IGNORED, longest - length));
        }
        let states = gather_rows(&states.flatten(0, 1)?, &rows)?.to_dtype(self.decoder.dtype())?;
        Ok(Some(Source { states: states.reshape((batch.len(), longest, width))?, lengths }))
    }
}
