//! Decoders of the Llama family, read by embeddings so that soft tokens can stand between words.
//!
//! candle-transformers' quantised Llama takes token ids only and neither it nor the dense one can be trained, so
//! both forms are here, over the same [`Linear`].

mod adapters;
mod layer;
mod read;
mod tensors;

use crate::batch_cache::BatchCache;
use crate::block_layers::Batch;
use crate::config::LlamaConfig;
use crate::cross_attention::CrossAttention;
use crate::linear::{Linear, Weight};
use crate::loader::Loader;
use crate::rope::Rope;
use crate::shifted::ShiftedGroups;
use crate::{CrossKeys, LmError, LoraSource, Memory, Params, Precision, Result, Source, Weights};
use candle_core::{DType, Device, Tensor};
use e2llm_kernels::{DecoderLayer, Seen};
use layer::{Attend, Layer, attend, checkpointed, rms_norm};
pub(crate) use read::Asked;
use tensors::{head, linears};

/// A decoder of the Llama family.
#[derive(Debug, Clone)]
pub struct Llama {
    config: LlamaConfig,
    embed: Weight,
    layers: Vec<Layer>,
    norm: Tensor,
    head: Linear,
    rope: Rope,
    device: Device,
    dtype: DType,
    checkpointing: bool,
    /// Whether positions attend in shifted groups.
    shifted: bool,
}

impl Llama {
    /// Builds a decoder from checked weights, with the adapters of `lora` where given.
    ///
    /// # Errors
    /// Tensors that do not fit the configuration (all of them), adapters that are missing.
    pub fn load(
        config: &LlamaConfig,
        weights: &Weights,
        lora: Option<LoraSource<'_>>,
        device: &Device,
        precision: Precision,
    ) -> Result<Self> {
        // Some files carry a copy of a tied output layer, older ones a table of inverse frequencies.
        let tied = config.tie_word_embeddings;
        weights.check(&config.tensors(), |name| {
            name.ends_with("rotary_emb.inv_freq") || (tied && name == "lm_head.weight")
        })?;
        if let Some(lora) = &lora {
            let all = linears(config);
            lora.config.check(all.iter().map(|l| l.module.as_str()))?;
        }
        let mut loader = Loader::new(weights, lora, device, precision)?;
        let embed = loader.trainable_weight("model.embed_tokens.weight")?;
        let layers = (0..config.num_hidden_layers)
            .map(|i| Layer::load(config, i, &mut loader))
            .collect::<Result<Vec<_>>>()?;
        let head = if tied {
            loader.linear_with(&head(config), embed.clone())?
        } else {
            loader.linear(&head(config))?
        };
        let dtype = precision.activations();
        let rope = Rope::new(config.rope_theta, config.head_dim, config.rope_scaling.clone(), dtype, device)?;
        let norm = loader.trainable_tensor("model.norm.weight")?;
        let (config, device) = (config.clone(), device.clone());
        let (checkpointing, shifted) = (false, false);
        Ok(Self { config, embed, layers, norm, head, rope, device, dtype, checkpointing, shifted })
    }

    /// The configuration.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Where the model is.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Element type of the activations: what soft tokens are cast to.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// All layers as a GPU reads new positions with them, where it can; `states` are the keys and values that their
    /// cross-attention reads.
    #[cfg(feature = "cuda")]
    pub(crate) fn cached_layers<'a>(
        &'a self,
        states: Option<&'a [CrossKeys]>,
    ) -> Option<Vec<e2llm_kernels::CachedLayer<'a>>> {
        let layers = self.layers.iter().enumerate();
        layers.map(|(i, layer)| layer.cached(states.and_then(|states| states.get(i)))).collect()
    }

    /// The rotary positions.
    #[cfg(feature = "cuda")]
    pub(crate) fn rope(&self) -> &Rope {
        &self.rope
    }

    /// Weight of the norm behind the layers.
    #[cfg(feature = "cuda")]
    pub(crate) fn last_norm(&self) -> &Tensor {
        &self.norm
    }

    /// Whether greedy steps can be made by a GPU alone.
    #[cfg(feature = "cuda")]
    pub(crate) fn has_steps(&self) -> bool {
        self.device.is_cuda() && self.dtype == DType::BF16 && !self.shifted
    }

    /// The decoder as a GPU makes greedy steps with it, with the angles of all positions there may be, and `states` as for
    /// [`Llama::cached_layers`]; nothing where it cannot.
    #[cfg(feature = "cuda")]
    pub(crate) fn step_model<'a>(
        &'a self,
        angles: (Tensor, Tensor),
        states: Option<&'a [CrossKeys]>,
    ) -> candle_core::Result<Option<e2llm_kernels::StepModel<'a>>> {
        if !self.has_steps() {
            return Ok(None);
        }
        let (Some(embed), Some(layers), Some(head)) =
            (self.embed.frozen(), self.cached_layers(states), self.head.plain())
        else {
            return Ok(None);
        };
        let norm = (&self.norm, self.config.rms_norm_eps);
        let head_dim = self.config.head_dim;
        let model = e2llm_kernels::StepModel { embed, layers, norm, head, angles, head_dim };
        let like = embed.narrow(0, 0, 1)?;
        Ok(e2llm_kernels::GreedySteps::is_supported(&like, &model).then_some(model))
    }

    /// Whether positions up to `len` have the same angles in sequences that are expected to have `sequence` and `other`
    /// positions.
    #[cfg(feature = "cuda")]
    pub(crate) fn shares_angles(&self, len: usize, sequence: usize, other: usize) -> bool {
        self.rope.are_common(len, sequence, other)
    }

    /// Angles of single positions, see [`Rope::rows`].
    #[cfg(feature = "cuda")]
    pub(crate) fn angles(
        &self,
        positions: &[usize],
        sequences: &[usize],
    ) -> candle_core::Result<(Tensor, Tensor)> {
        self.rope.rows(positions, sequences)
    }

    /// Whether each layer is computed again in the backward pass instead of being kept.
    pub fn set_checkpointing(&mut self, on: bool) {
        self.checkpointing = on;
    }

    /// The same decoder, weights and variables shared, whose positions attend in LongLoRA's shifted groups instead of to
    /// all before them. For training: it reads whole batches, and nothing through a memory.
    #[must_use]
    pub fn with_shifted_groups(&self) -> Self {
        Self { shifted: true, ..self.clone() }
    }

    /// Embeddings of token ids: `[1, T, D]`.
    ///
    /// # Errors
    /// Ids beyond the vocabulary.
    pub fn embed(&self, ids: &[u32]) -> candle_core::Result<Tensor> {
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.config.vocab_size) {
            candle_core::bail!("token {id} is beyond the vocabulary of {}", self.config.vocab_size);
        }
        self.embed.embed(ids, &self.device, self.dtype)?.unsqueeze(0)
    }

    /// Last hidden states, normalised: `[B, T, D]` to `[B, T, D]`.
    ///
    /// Positions follow the memory's, or start at 0. `lengths` are the rows' valid positions of a right-padded
    /// batch (training); what comes out behind them means nothing. It cannot be combined with a memory.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward_hidden(
        &self,
        x: &Tensor,
        lengths: Option<&[usize]>,
        memory: Option<&mut dyn Memory>,
    ) -> candle_core::Result<Tensor> {
        let Some(memory) = memory else {
            return e2llm_kernels::on_workers(&self.device, || self.forward_block(x, lengths, None));
        };
        if lengths.is_some() {
            candle_core::bail!("a padded batch cannot be read through a memory");
        }
        self.read(x, memory, Asked::All)
    }

    /// As [`Llama::forward_hidden`] without a memory; every layer's cross-attention reads `source`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward_block(
        &self,
        x: &Tensor,
        lengths: Option<&[usize]>,
        source: Option<&Source>,
    ) -> candle_core::Result<Tensor> {
        let (batch, t, _) = x.dims3()?;
        for lengths in lengths.into_iter().chain(source.map(|s| &s.lengths[..])) {
            if lengths.len() != batch {
                candle_core::bail!("{} lengths for a batch of {batch}", lengths.len());
            }
        }
        let mut x = x.clone();
        let (cos, sin) = self.rope.tables(0, t, t)?;
        let groups =
            self.shifted.then(|| ShiftedGroups::new((batch, t), lengths, &self.device)).transpose()?;
        if (groups.is_none() || self.device.is_cuda())
            && let Some(layers) = self.layers.iter().map(|l| l.whole(&x)).collect::<Option<Vec<_>>>()
        {
            let batch = Batch::new(&x, lengths)?;
            let (tables, keep) = ((&cos, &sin), !self.checkpointing);
            let seen = groups.as_ref().map_or(Seen::Before(batch.lengths()), |g| Seen::Groups(g.halves()));
            x = DecoderLayer::forward(&layers, &x, tables, seen, keep)?;
            return rms_norm(&x, &self.norm, self.config.rms_norm_eps);
        }
        for layer in &self.layers {
            x = if self.checkpointing {
                checkpointed(layer, &x, (&cos, &sin), lengths, groups.as_ref(), source)?
            } else {
                layer.forward(&x, attend((&cos, &sin), lengths, groups.as_ref()), source)?
            };
        }
        rms_norm(&x, &self.norm, self.config.rms_norm_eps)
    }

    pub(crate) fn check_unshifted(&self) -> candle_core::Result<()> {
        if self.shifted {
            candle_core::bail!("shifted groups are for training: nothing is read through a memory in them");
        }
        Ok(())
    }

    /// Adds cross-attention to states of `width` to every layer; its tensors' names stand behind `prefix`.
    ///
    /// # Errors
    /// Tensors that are missing or of another shape.
    pub fn add_cross_attention(&mut self, width: usize, params: &mut Params, prefix: &str) -> Result<()> {
        for (i, layer) in self.layers.iter_mut().enumerate() {
            layer.cross = Some(CrossAttention::load(&self.config, (width, prefix, i), params)?);
        }
        Ok(())
    }

    /// Keys and values that the layers make of states `[B, L, E]`, for a [`CrossMemory`](crate::CrossMemory).
    ///
    /// # Errors
    /// Shapes that do not fit; a decoder without cross-attention.
    pub fn cross_keys(&self, states: &Tensor) -> Result<Vec<CrossKeys>> {
        let all = self.layers.iter().map(|layer| {
            let cross = layer.cross.as_ref();
            let cross = cross.ok_or_else(|| LmError::Input("the decoder has no cross-attention".into()))?;
            let (k, v) = cross.keys(states)?;
            Ok((k.contiguous()?, v.contiguous()?))
        });
        all.collect()
    }

    /// Mean length of the token embeddings.
    ///
    /// # Errors
    /// Failing tensor operations.
    pub fn embedding_norm(&self) -> candle_core::Result<f64> {
        const ROWS: u32 = 4096; // at a time: a vocabulary in float32 may be gigabytes
        let vocabulary = self.config.vocab_size as u32;
        let mut sum = 0.0;
        for start in (0..vocabulary).step_by(ROWS as usize) {
            let ids: Vec<u32> = (start..vocabulary.min(start + ROWS)).collect();
            sum += crate::mean_norm(&self.embed(&ids)?)? * ids.len() as f64;
        }
        Ok(sum / f64::from(vocabulary))
    }

    /// Last hidden states of the next position of every row of `cache`: `[1, B, D]` to `[1, B, D]`.
    pub(crate) fn forward_rows(&self, x: &Tensor, cache: &mut BatchCache) -> candle_core::Result<Tensor> {
        self.check_unshifted()?;
        if self.layers.iter().any(|layer| layer.cross.is_some()) {
            candle_core::bail!("answers side by side of a decoder with cross-attention");
        }
        let (cos, sin) = self.rope.rows(&cache.positions(), &cache.expected())?;
        cache.begin()?;
        let mut x = x.clone();
        #[cfg(feature = "cuda")]
        if let Some(layers) = crate::whole_layers::cached(&x, self, None) {
            x = crate::whole_layers::read_rows(&x, self, &layers, (&cos, &sin), cache)?;
            cache.advance();
            return Ok(x);
        }
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, Attend::Rows { cos: &cos, sin: &sin, cache, layer: i }, None)?;
        }
        cache.advance();
        rms_norm(&x, &self.norm, self.config.rms_norm_eps)
    }

    /// Logits of normalised hidden states: `[.., D]` to `[.., V]`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn logits(&self, hidden: &Tensor) -> candle_core::Result<Tensor> {
        self.head.forward(hidden)
    }

    /// The likeliest token behind each of normalised hidden states `[.., D]`, with its logit.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn likeliest(&self, hidden: &Tensor) -> candle_core::Result<Vec<(u32, f32)>> {
        #[cfg(feature = "cuda")]
        if let Some(head) = self.head.plain()
            && let Some(best) = e2llm_kernels::likeliest(hidden, &head)?
        {
            return Ok(best);
        }
        crate::generate::likeliest(&self.logits(hidden)?)
    }

    /// Sum of the cross-entropies of the ids `targets` (`[N]`, u32) that follow normalised hidden states `[N, D]`, in
    /// nats, as a scalar with its gradient.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn cross_entropy(&self, hidden: &Tensor, targets: &Tensor) -> candle_core::Result<Tensor> {
        if let Some(weight) = self.head.frozen_weight()
            && let Some(loss) = e2llm_kernels::head_loss(hidden, weight, targets)?
        {
            return Ok(loss);
        }
        e2llm_kernels::cross_entropy(&self.logits(hidden)?, targets)
    }
}

/// Mean Euclidean length over the last dimension.
///
/// # Errors
/// Failing tensor operations.
pub fn mean_norm(x: &Tensor) -> candle_core::Result<f64> {
    let norms = x.to_dtype(DType::F32)?.sqr()?.sum(candle_core::D::Minus1)?.sqrt()?;
    Ok(f64::from(norms.mean_all()?.to_scalar::<f32>()?))
}
