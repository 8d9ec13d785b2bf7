//! The model: encoder, adapter, decoder, and the arithmetic between them.
//!
//! One forward pass serves training and inference: where the trained tensors are variables
//! ([`Params`](e2llm_lm::Params) in training mode) every result here has its gradient.

use crate::adapter::Adapter;
use crate::config::E2llmConfig;
use candle_core::{Device, Result, Tensor, bail};
use e2llm_kernels::{IGNORED, gather_rows, gather_rows_onto};
use e2llm_lm::{BertEncoder, Generation, Llama, LmError, Segment};

/// One training or inference example, already tokenised.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Example {
    /// Encoder ids of each chunk, with the encoder's special tokens.
    pub chunks: Vec<Vec<u32>>,
    /// Decoder ids before the soft tokens.
    pub prefix: Vec<u32>,
    /// Decoder ids after them.
    pub suffix: Vec<u32>,
    /// Decoder ids of the answer, the end-of-sequence token included; empty for inference.
    pub answer: Vec<u32>,
}

/// What the decoder reads for a batch of examples, padded on the right.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Embeddings of tokens and soft tokens, `[B, T, D]`; zero where padded.
    pub embeddings: Tensor,
    /// Positions of each example that are not padding.
    pub lengths: Vec<usize>,
    /// Ids that each position *is*, row after row (B x T); [`IGNORED`] wherever it is no answer token.
    pub labels: Vec<u32>,
}

/// A sum of cross-entropies and over how many tokens it goes, so that a caller can reduce over more than a batch.
#[derive(Debug, Clone)]
pub struct AnswerLoss {
    /// Sum over the answer tokens, a float32 scalar, in nats.
    pub sum: Tensor,
    /// Answer tokens.
    pub tokens: usize,
}

impl AnswerLoss {
    /// The mean over the tokens, as a scalar with its gradient.
    ///
    /// # Errors
    /// Failing tensor operations.
    pub fn mean(&self) -> Result<Tensor> {
        &self.sum / self.tokens as f64
    }
}

/// An E2LLM model.
#[derive(Debug, Clone)]
pub struct E2llmModel {
    config: E2llmConfig,
    encoder: BertEncoder,
    adapter: Adapter,
    output_scale: Option<Tensor>,
    decoder: Llama,
}

impl E2llmModel {
    /// Puts the parts together.
    pub fn new(
        config: E2llmConfig,
        encoder: BertEncoder,
        adapter: Adapter,
        output_scale: Option<Tensor>,
        decoder: Llama,
    ) -> Self {
        Self { config, encoder, adapter, output_scale, decoder }
    }

    /// The settings.
    pub fn config(&self) -> &E2llmConfig {
        &self.config
    }

    /// The encoder.
    pub fn encoder(&self) -> &BertEncoder {
        &self.encoder
    }

    /// The decoder.
    pub fn decoder(&self) -> &Llama {
        &self.decoder
    }

    /// Whether encoder and decoder layers are computed again in the backward pass instead of being kept.
    pub fn set_checkpointing(&mut self, on: bool) {
        self.encoder.set_checkpointing(on);
        self.decoder.set_checkpointing(on);
    }

    pub(crate) fn merge_lora(&mut self) -> Result<()> {
        self.encoder.merge_lora()?;
        self.decoder.merge_lora()
    }

    pub(crate) fn set_output_scale(&mut self, scale: Tensor) {
        self.output_scale = Some(scale);
    }

    /// Soft tokens `[C, k, D]` of C chunks of encoder ids, in one encoder pass over the padded batch.
    ///
    /// # Errors
    /// No chunk, an empty one, or one beyond the encoder's window; failing tensor operations.
    pub fn soft_tokens(&self, chunks: &[Vec<u32>]) -> Result<Tensor> {
        let (states, lengths) = self.encoder.forward(chunks)?;
        let soft = self.adapter.forward(&states, &lengths)?;
        let soft = match &self.output_scale {
            Some(scale) => soft.broadcast_mul(&scale.to_dtype(soft.dtype())?)?,
            None => soft,
        };
        soft.to_dtype(self.decoder.dtype())
    }

    /// What the decoder reads for `batch`: prefix, soft tokens, suffix and answer of each example.
    ///
    /// # Errors
    /// As [`E2llmModel::soft_tokens`]; an example without any position.
    pub fn inputs(&self, batch: &[Example]) -> Result<Inputs> {
        let chunks: Vec<_> = batch.iter().flat_map(|e| e.chunks.iter().cloned()).collect();
        let k = self.config.soft_tokens_per_chunk;
        let lengths: Vec<usize> = batch
            .iter()
            .map(|e| e.chunks.len() * k + e.prefix.len() + e.suffix.len() + e.answer.len())
            .collect();
        if lengths.contains(&0) || lengths.is_empty() {
            bail!("a batch or an example without tokens");
        }
        let longest = lengths.iter().copied().max().unwrap_or(0);

        // For each position its token and its soft token, of which it has one or, where padded, neither.
        let (mut ids, mut token_rows) = (Vec::new(), Vec::with_capacity(batch.len() * longest));
        let (mut soft_rows, mut soft_count) = (Vec::with_capacity(batch.len() * longest), 0);
        let mut labels = Vec::with_capacity(batch.len() * longest);
        for (example, &length) in batch.iter().zip(&lengths) {
            let soft = example.chunks.len() * k;
            let mut words = |words: &[u32], rows: &mut Vec<u32>| {
                rows.extend((ids.len()..ids.len() + words.len()).map(|row| row as u32));
                ids.extend_from_slice(words);
            };
            words(&example.prefix, &mut token_rows);
            token_rows.extend(std::iter::repeat_n(IGNORED, soft));
            words(&example.suffix, &mut token_rows);
            words(&example.answer, &mut token_rows);
            token_rows.extend(std::iter::repeat_n(IGNORED, longest - length));
            soft_rows.extend(std::iter::repeat_n(IGNORED, example.prefix.len()));
            soft_rows.extend(soft_count..soft_count + soft as u32);
            soft_rows.extend(std::iter::repeat_n(IGNORED, longest - example.prefix.len() - soft));
            soft_count += soft as u32;
            labels.extend(std::iter::repeat_n(IGNORED, length - example.answer.len()));
            labels.extend_from_slice(&example.answer);
            labels.extend(std::iter::repeat_n(IGNORED, longest - length));
        }
        let tokens = if ids.is_empty() {
            None
        } else {
            Some(gather_rows(&self.decoder.embed(&ids)?.squeeze(0)?, &token_rows)?)
        };
        let soft = if chunks.is_empty() { None } else { Some(self.soft_tokens(&chunks)?.flatten(0, 1)?) };
        let embeddings = match (tokens, soft) {
            (Some(tokens), Some(soft)) => gather_rows_onto(&tokens, &soft, &soft_rows)?,
            (Some(tokens), None) => tokens,
            (None, Some(soft)) => gather_rows(&soft, &soft_rows)?,
            (None, None) => bail!("a batch without tokens"),
        };
        let embeddings = embeddings.reshape((batch.len(), longest, ()))?;
        Ok(Inputs { embeddings, lengths, labels })
    }

    /// Mean next-token cross-entropy over all answer tokens of the batch, and all logits `[B, T, V]`: the
    /// reference's `loss`. Training uses [`E2llmModel::answer_loss`], which does not hold logits nobody needs.
    ///
    /// # Errors
    /// No answer token in the batch; as [`E2llmModel::inputs`].
    pub fn loss(&self, batch: &[Example]) -> Result<(Tensor, Tensor)> {
        let inputs = self.inputs(batch)?;
        let hidden = self.decoder.forward_hidden(&inputs.embeddings, Some(&inputs.lengths), None)?;
        let logits = self.decoder.logits(&hidden)?;
        let (rows, targets) = inputs.predictions();
        let kept = gather_rows(&logits.flatten(0, 1)?, &rows)?;
        let loss = answer_loss(targets, logits.device(), |t| e2llm_kernels::cross_entropy(&kept, t))?;
        Ok((loss.mean()?, logits))
    }

    /// Cross-entropy of the batch's answer tokens; logits are made at their positions only.
    ///
    /// # Errors
    /// No answer token in the batch; as [`E2llmModel::inputs`].
    pub fn answer_loss(&self, batch: &[Example]) -> Result<AnswerLoss> {
        let inputs = self.inputs(batch)?;
        let hidden = self.decoder.forward_hidden(&inputs.embeddings, Some(&inputs.lengths), None)?;
        let (rows, targets) = inputs.predictions();
        let kept = gather_rows(&hidden.flatten(0, 1)?, &rows)?;
        answer_loss(targets, kept.device(), |targets| self.decoder.cross_entropy(&kept, targets))
    }

    /// Greedy continuation of an example's prompt (its answer is not read), at most `max_new_tokens` ids. Any of the
    /// decoder's end-of-sequence tokens ends it and is left out.
    ///
    /// # Errors
    /// As [`E2llmModel::inputs`].
    pub fn generate(
        &self,
        example: &Example,
        max_new_tokens: usize,
    ) -> std::result::Result<Vec<u32>, LmError> {
        let prompt = Example { answer: Vec::new(), ..example.clone() };
        let embeddings = self.inputs(&[prompt])?.embeddings.squeeze(0)?;
        let settings = Generation { max_new_tokens, ..Generation::default() };
        let eos = &self.decoder.config().eos_token_ids;
        let prompt = [Segment::Embeds(embeddings)];
        Ok(e2llm_lm::generate(&self.decoder, None, eos, &prompt, &settings, &|| false)?.ids)
    }
}

impl Inputs {
    /// Rows of the flattened `[B * T]` positions whose next token is an answer token, and those tokens.
    fn predictions(&self) -> (Vec<u32>, Vec<u32>) {
        let t = self.labels.len() / self.lengths.len().max(1);
        // The token after a row's last is another example's.
        let followed = (0..self.labels.len()).filter(|i| (i + 1) % t.max(1) != 0);
        let kept = followed.filter(|i| self.labels[i + 1] != IGNORED);
        kept.map(|i| (i as u32, self.labels[i + 1])).unzip()
    }
}

fn indices(rows: Vec<u32>, device: &Device) -> Result<Tensor> {
    let n = rows.len();
    Tensor::from_vec(rows, n, device)
}

/// The summed cross-entropy of the target ids, which `sum` computes.
fn answer_loss(
    targets: Vec<u32>,
    device: &Device,
    sum: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<AnswerLoss> {
    let tokens = targets.len();
    if tokens == 0 {
        bail!("a batch without an answer token has no loss");
    }
    Ok(AnswerLoss { sum: sum(&indices(targets, device)?)?, tokens })
}
