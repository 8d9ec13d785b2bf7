//! Decoders of the Llama family, read by embeddings so that soft tokens can stand between words.
//!
//! candle-transformers' quantised Llama takes token ids only and neither it nor the dense one can be trained, so
//! both forms are here, over the same [`Linear`].

use crate::batch_cache::BatchCache;
use crate::config::{LinearSpec, LlamaConfig, TensorSpec};
use crate::cross_attention::CrossAttention;
use crate::linear::{Linear, Weight};
use crate::loader::Loader;
use crate::residual::add;
use crate::rope::Rope;
use crate::shifted::ShiftedGroups;
use crate::{
    CrossKeys, Heads, LmError, LoraConfig, LoraSource, Memory, Params, Precision, Result, Source, Weights,
};
use candle_core::{DType, Device, Tensor};
use e2llm_kernels::Mask;
use std::collections::BTreeMap;

/// Names and sizes of layer `i`'s linears: q, k, v, o, gate, up, down.
fn layer_linears(c: &LlamaConfig, i: usize) -> [LinearSpec; 7] {
    let (h, m) = (c.hidden_size, c.intermediate_size);
    let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
    let attention = |name, outputs, inputs, bias| {
        LinearSpec::new(format!("model.layers.{i}.self_attn.{name}"), outputs, inputs, bias)
    };
    let mlp = |name, outputs, inputs| {
        LinearSpec::new(format!("model.layers.{i}.mlp.{name}"), outputs, inputs, c.mlp_bias)
    };
    [
        attention("q_proj", q, h, c.qkv_bias),
        attention("k_proj", kv, h, c.qkv_bias),
        attention("v_proj", kv, h, c.qkv_bias),
        attention("o_proj", h, q, c.output_bias),
        mlp("gate_proj", m, h),
        mlp("up_proj", m, h),
        mlp("down_proj", h, m),
    ]
}

fn head(c: &LlamaConfig) -> LinearSpec {
    LinearSpec::new("lm_head", c.vocab_size, c.hidden_size, false)
}

fn linears(c: &LlamaConfig) -> Vec<LinearSpec> {
    (0..c.num_hidden_layers).flat_map(|i| layer_linears(c, i)).chain([head(c)]).collect()
}

impl LlamaConfig {
    /// The frozen tensors of the model; a tied output layer is left out.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let h = self.hidden_size;
        let mut all = vec![TensorSpec::new("model.embed_tokens.weight", vec![self.vocab_size, h])];
        for i in 0..self.num_hidden_layers {
            let norm = |name: &str, n| TensorSpec::new(format!("model.layers.{i}.{name}.weight"), vec![n]);
            all.extend([norm("input_layernorm", h), norm("post_attention_layernorm", h)]);
            if self.qk_norm {
                all.extend([
                    norm("self_attn.q_norm", self.head_dim),
                    norm("self_attn.k_norm", self.head_dim),
                ]);
            }
            for linear in layer_linears(self, i) {
                all.extend(linear.tensors());
            }
        }
        all.push(TensorSpec::new("model.norm.weight", vec![h]));
        if !self.tie_word_embeddings {
            all.extend(head(self).tensors());
        }
        all
    }

    /// The adapters' tensors, names behind `prefix` (`decoder.`), in the order of the model.
    pub fn lora_tensors(&self, lora: &LoraConfig, prefix: &str) -> Vec<TensorSpec> {
        let all = linears(self);
        lora.specs(prefix, all.iter().map(|l| (l.module.as_str(), l.outputs, l.inputs)))
    }

    /// The tensors of the modules with these last names (`norm`, `embed_tokens`), each name behind `prefix`: what is
    /// trained in full.
    pub fn module_tensors(&self, modules: &[String], prefix: &str) -> Vec<TensorSpec> {
        let named = |t: &TensorSpec| modules.iter().any(|m| module_of(&t.name) == m);
        let own = self.tensors().into_iter().filter(named);
        own.map(|t| TensorSpec::new(format!("{prefix}{}", t.name), t.shape)).collect()
    }

    /// Last names of the modules of embeddings and norms. An output layer that is tied to the embeddings goes with
    /// them, one that is not stays out.
    pub fn embeddings_and_norms(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for t in self.tensors() {
            let module = module_of(&t.name);
            if (module.contains("embed") || module.contains("norm")) && !names.iter().any(|n| n == module) {
                names.push(module.to_owned());
            }
        }
        names
    }

    /// Number of frozen parameters.
    pub fn parameters(&self) -> u64 {
        self.tensors().iter().map(|t| t.len() as u64).sum()
    }
}

/// Last name of the module that a tensor belongs to.
fn module_of(tensor: &str) -> &str {
    let path = tensor.rsplit_once('.').map_or(tensor, |(path, _)| path);
    path.rsplit('.').next().unwrap_or(path)
}

/// [`e2llm_kernels::rms_norm`] with a weight that may be wider than the activations (a float32 master).
fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> candle_core::Result<Tensor> {
    e2llm_kernels::rms_norm(x, &weight.to_dtype(x.dtype())?, eps)
}

#[derive(Debug, Clone)]
struct Layer {
    input_norm: Tensor,
    post_norm: Tensor,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    gate: Linear,
    up: Linear,
    down: Linear,
    /// Norms of each head's q and k (Qwen3).
    head_norms: Option<(Tensor, Tensor)>,
    /// Attention to another model's states, behind that to the sequence's own.
    cross: Option<CrossAttention>,
    head_dim: usize,
    eps: f64,
}

impl Layer {
    fn load(c: &LlamaConfig, i: usize, loader: &mut Loader<'_>) -> Result<Self> {
        let norm = |loader: &mut Loader<'_>, name: &str| {
            loader.trainable_tensor(&format!("model.layers.{i}.{name}.weight"))
        };
        let [q, k, v, o, gate, up, down] = layer_linears(c, i);
        let head_norms = if c.qk_norm {
            Some((norm(loader, "self_attn.q_norm")?, norm(loader, "self_attn.k_norm")?))
        } else {
            None
        };
        Ok(Self {
            input_norm: norm(loader, "input_layernorm")?,
            post_norm: norm(loader, "post_attention_layernorm")?,
            q: loader.linear(&q)?,
            k: loader.linear(&k)?,
            v: loader.linear(&v)?,
            o: loader.linear(&o)?,
            gate: loader.linear(&gate)?,
            up: loader.linear(&up)?,
            down: loader.linear(&down)?,
            head_norms,
            cross: None,
            head_dim: c.head_dim,
            eps: c.rms_norm_eps,
        })
    }

    fn linears(&self) -> [&Linear; 7] {
        [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down]
    }

    fn linears_mut(&mut self) -> [&mut Linear; 7] {
        let Self { q, k, v, o, gate, up, down, .. } = self;
        [q, k, v, o, gate, up, down]
    }

    fn norms(&self) -> Vec<&Tensor> {
        let heads = self.head_norms.iter().flat_map(|(q, k)| [q, k]);
        [&self.input_norm, &self.post_norm].into_iter().chain(heads).collect()
    }

    fn norms_mut(&mut self) -> Vec<&mut Tensor> {
        let heads = self.head_norms.iter_mut().flat_map(|(q, k)| [q, k]);
        [&mut self.input_norm, &mut self.post_norm].into_iter().chain(heads).collect()
    }

    /// What may be trained, in a fixed order, and a copy of the layer with other tensors in their place.
    fn trained_tensors(&self) -> Vec<Tensor> {
        let loras = self.linears().into_iter().filter_map(Linear::lora);
        let loras = loras.flat_map(|l| [l.a.clone(), l.b.clone()]);
        let norms = self.norms().into_iter().filter(|n| n.track_op()).cloned();
        loras.chain(norms).chain(self.cross.iter().flat_map(CrossAttention::tensors)).collect()
    }

    fn with_trained_tensors(&self, tensors: &[Tensor]) -> candle_core::Result<Self> {
        let mut copy = self.clone();
        let mut next = tensors.iter().cloned();
        for linear in copy.linears_mut() {
            *linear = linear.with_lora_tensors(&mut next)?;
        }
        for norm in copy.norms_mut().into_iter().filter(|n| n.track_op()) {
            match next.next() {
                Some(other) => *norm = other,
                None => candle_core::bail!("too few tensors for the norms of a layer"),
            }
        }
        if let Some(cross) = &mut copy.cross {
            *cross = cross.with_tensors(&mut next)?;
        }
        Ok(copy)
    }

    /// The layer as one operation of the GPU, where it is trained in bf16 there.
    #[cfg(feature = "cuda")]
    fn whole(&self, x: &Tensor) -> Option<e2llm_kernels::DecoderLayer<'_>> {
        let trained = self.norms().iter().any(|n| n.track_op());
        let graph = trained || self.head_norms.is_some() || self.cross.is_some();
        if graph || !crate::whole_layers::fit(x, self.head_dim, &self.linears()) {
            return None;
        }
        let linears: Option<Vec<_>> = self.linears().into_iter().map(Linear::adapted).collect();
        let linears: [e2llm_kernels::Adapted; 7] = linears?.try_into().ok()?;
        let heads = |l: &e2llm_kernels::Adapted| l.weight.dims()[0] / self.head_dim;
        Some(e2llm_kernels::DecoderLayer {
            input_norm: &self.input_norm,
            post_norm: &self.post_norm,
            heads: heads(&linears[0]),
            kv_heads: heads(&linears[1]),
            linears,
            eps: self.eps,
        })
    }

    /// The layer as a GPU reads new positions with it, where it has no updates of its own.
    #[cfg(feature = "cuda")]
    fn cached(&self) -> Option<e2llm_kernels::CachedLayer<'_>> {
        let linears: Option<Vec<_>> = self.linears().into_iter().map(Linear::plain).collect();
        Some(e2llm_kernels::CachedLayer {
            input_norm: &self.input_norm,
            post_norm: &self.post_norm,
            linears: linears
                .filter(|_| self.head_norms.is_none() && self.cross.is_none())?
                .try_into()
                .ok()?,
            eps: self.eps,
        })
    }

    /// `[B, T, H * d]` to `[B, H, T, d]`.
    fn split(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let (b, t, width) = x.dims3()?;
        x.reshape((b, t, width / self.head_dim, self.head_dim))?.transpose(1, 2)
    }

    fn forward(
        &self,
        x: &Tensor,
        attend: Attend<'_>,
        source: Option<&Source>,
    ) -> candle_core::Result<Tensor> {
        let (b, t, _) = x.dims3()?;
        let y = rms_norm(x, &self.input_norm, self.eps)?;
        let mut q = self.split(&self.q.forward(&y)?)?;
        let mut k = self.split(&self.k.forward(&y)?)?;
        let v = self.split(&self.v.forward(&y)?)?;
        if let Some((q_norm, k_norm)) = &self.head_norms {
            q = rms_norm(&q, q_norm, self.eps)?;
            k = rms_norm(&k, k_norm, self.eps)?;
        }
        let heads = Heads { q, k, v };
        let mut ready = None;
        let o = match attend {
            Attend::Block { cos, sin, mask } => {
                let q = e2llm_kernels::rope(&heads.q, cos, sin)?;
                let k = e2llm_kernels::rope(&heads.k, cos, sin)?;
                e2llm_kernels::attention(&q, &k, &heads.v, mask, heads.scale()?)?
            }
            Attend::Groups { cos, sin, groups } => {
                let q = e2llm_kernels::rope(&heads.q, cos, sin)?;
                let k = e2llm_kernels::rope(&heads.k, cos, sin)?;
                groups.attend(&Heads { q, k, v: heads.v })?
            }
            Attend::Through { memory, layer, rope } => {
                ready = memory.cross_keys(layer);
                memory.attend(layer, &heads, rope)?
            }
            Attend::Rows { cos, sin, cache, layer } => {
                // The positions are of different sequences: from here on they are rows.
                let rows = |t: &Tensor| t.transpose(0, 2);
                let q = rows(&e2llm_kernels::rope(&heads.q, cos, sin)?)?;
                let k = rows(&e2llm_kernels::rope(&heads.k, cos, sin)?)?;
                let (k, v, lengths) = cache.append(layer, &k, &rows(&heads.v)?)?;
                rows(&e2llm_kernels::attention(&q, &k, &v, Mask::Rows(lengths), heads.scale()?)?)?
            }
        };
        let o = o.transpose(1, 2)?.reshape((b, t, ()))?;
        let mut x = add(x, &self.o.forward(&o)?)?;
        if let Some(cross) = &self.cross {
            if let Some(source) = source {
                let keys = cross.keys(&source.states)?;
                x = add(&x, &cross.forward(&x, &keys, Some(&source.lengths))?)?;
            } else if let Some(keys) = ready {
                x = add(&x, &cross.forward(&x, &keys, None)?)?;
            }
        }
        let y = rms_norm(&x, &self.post_norm, self.eps)?;
        let y = e2llm_kernels::silu_mul(&self.gate.forward(&y)?, &self.up.forward(&y)?)?;
        add(&x, &self.down.forward(&y)?)
    }
}

/// What a layer's positions see.
enum Attend<'a> {
    /// Each other, from the first position on.
    Block { cos: &'a Tensor, sin: &'a Tensor, mask: Mask<'a> },
    /// Those of their groups.
    Groups { cos: &'a Tensor, sin: &'a Tensor, groups: &'a ShiftedGroups },
    /// Each other and what is remembered.
    Through { memory: &'a mut dyn Memory, layer: usize, rope: &'a Rope },
    /// Each the sequence of its own that it is the next position of.
    Rows { cos: &'a Tensor, sin: &'a Tensor, cache: &'a BatchCache, layer: usize },
}

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

    /// All layers as a GPU reads new positions with them, where it can.
    #[cfg(feature = "cuda")]
    pub(crate) fn cached_layers(&self) -> Option<Vec<e2llm_kernels::CachedLayer<'_>>> {
        self.layers.iter().map(Layer::cached).collect()
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
        let Some(memory) = memory else { return self.forward_block(x, lengths, None) };
        if lengths.is_some() {
            candle_core::bail!("a padded batch cannot be read through a memory");
        }
        self.check_unshifted()?;
        let (_, t, _) = x.dims3()?;
        let mut x = x.clone();
        #[cfg(feature = "cuda")]
        if let Some(cache) = memory.plain().filter(|_| x.dims()[0] == 1)
            && let Some(layers) = crate::whole_layers::cached(&x, self)
        {
            let (cos, sin) = self.rope.tables(cache.offset(), t, cache.expected())?;
            x = crate::whole_layers::read(&x, self, &layers, (&cos, &sin), cache)?;
            memory.advance(t);
            return rms_norm(&x, &self.norm, self.config.rms_norm_eps);
        }
        for (i, layer) in self.layers.iter().enumerate() {
            let attend = Attend::Through { memory: &mut *memory, layer: i, rope: &self.rope };
            x = layer.forward(&x, attend, None)?;
        }
        memory.advance(t);
        rms_norm(&x, &self.norm, self.config.rms_norm_eps)
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
        #[cfg(feature = "cuda")]
        let whole = crate::whole_layers::Batch::new(&x, lengths)?;
        for layer in &self.layers {
            #[cfg(feature = "cuda")]
            if groups.is_none()
                && let Some(parts) = layer.whole(&x)
            {
                x = parts.forward(&x, (&cos, &sin), whole.lengths(), !self.checkpointing)?;
                continue;
            }
            x = if self.checkpointing {
                checkpointed(layer, &x, (&cos, &sin), lengths, groups.as_ref(), source)?
            } else {
                layer.forward(&x, attend((&cos, &sin), lengths, groups.as_ref()), source)?
            };
        }
        rms_norm(&x, &self.norm, self.config.rms_norm_eps)
    }

    fn check_unshifted(&self) -> candle_core::Result<()> {
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

    /// The same decoder with other adapters: frozen weights are shared with this one.
    ///
    /// # Errors
    /// Targets that the decoder has not, adapters that are missing.
    pub fn with_lora(&self, mut lora: LoraSource<'_>) -> Result<Self> {
        let all = linears(&self.config);
        lora.config.check(all.iter().map(|l| l.module.as_str()))?;
        let mut copy = self.clone();
        for (i, layer) in copy.layers.iter_mut().enumerate() {
            for (spec, linear) in layer_linears(&self.config, i).iter().zip(layer.linears_mut()) {
                linear.set_lora(lora.of(spec)?);
            }
        }
        copy.head.set_lora(lora.of(&head(&self.config))?);
        Ok(copy)
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
        if let Some(layers) = crate::whole_layers::cached(&x, self) {
            x = crate::whole_layers::read_rows(&x, self, &layers, (&cos, &sin), cache)?;
            cache.advance();
            return e2llm_kernels::rms_norm(&x, &self.norm, self.config.rms_norm_eps);
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

    /// Sum of the cross-entropies of the ids `targets` (`[N]`, u32) that follow normalised hidden states `[N, D]`, in
    /// nats, as a scalar with its gradient.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn cross_entropy(&self, hidden: &Tensor, targets: &Tensor) -> candle_core::Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Some(weight) = self.head.plain()
            && weight.bias.is_none()
            && let Some(loss) = e2llm_kernels::head_loss(hidden, weight.weight, targets)?
        {
            return Ok(loss);
        }
        e2llm_kernels::cross_entropy(&self.logits(hidden)?, targets)
    }

    /// Adds every adapter to its weight (which becomes dense), for faster inference.
    ///
    /// # Errors
    /// Any of the additions.
    pub fn merge_lora(&mut self) -> candle_core::Result<()> {
        self.layers.iter_mut().flat_map(Layer::linears_mut).try_for_each(Linear::merge_lora)?;
        self.head.merge_lora()
    }

    /// Dense tensors by HF name with the adapters added: what a plain HF model of it holds.
    ///
    /// # Errors
    /// Any of dequantising and adding.
    pub fn merged_tensors(&self) -> candle_core::Result<BTreeMap<String, Tensor>> {
        let c = &self.config;
        let mut all = BTreeMap::new();
        all.insert("model.embed_tokens.weight".to_owned(), self.embed.dense()?);
        all.insert("model.norm.weight".to_owned(), self.norm.clone());
        let mut add = |spec: &LinearSpec, linear: &Linear| -> candle_core::Result<()> {
            all.insert(format!("{}.weight", spec.module), linear.merged_weight()?);
            if let Some(bias) = linear.bias() {
                all.insert(format!("{}.bias", spec.module), bias.clone());
            }
            Ok(())
        };
        for (i, layer) in self.layers.iter().enumerate() {
            for (spec, linear) in layer_linears(c, i).iter().zip(layer.linears()) {
                add(spec, linear)?;
            }
        }
        // A tied output layer is the embedding table, unless an adapter made them differ.
        if !c.tie_word_embeddings || self.head.lora().is_some() {
            add(&head(c), &self.head)?;
        }
        for (i, layer) in self.layers.iter().enumerate() {
            let mut norm = |name: &str, t: &Tensor| {
                all.insert(format!("model.layers.{i}.{name}.weight"), t.clone());
            };
            norm("input_layernorm", &layer.input_norm);
            norm("post_attention_layernorm", &layer.post_norm);
            if let Some((q, k)) = &layer.head_norms {
                norm("self_attn.q_norm", q);
                norm("self_attn.k_norm", k);
            }
        }
        Ok(all)
    }
}

/// How the positions of a whole batch attend.
fn attend<'a>(
    (cos, sin): (&'a Tensor, &'a Tensor),
    lengths: Option<&'a [usize]>,
    groups: Option<&'a ShiftedGroups>,
) -> Attend<'a> {
    match groups {
        Some(groups) => Attend::Groups { cos, sin, groups },
        None => {
            let mask = lengths.map_or(Mask::Causal { offset: 0 }, Mask::CausalKeys);
            Attend::Block { cos, sin, mask }
        }
    }
}

/// One layer whose inner activations are not kept. What is trained is an input beside `x`, so that it gets gradients.
fn checkpointed(
    layer: &Layer,
    x: &Tensor,
    (cos, sin): (&Tensor, &Tensor),
    lengths: Option<&[usize]>,
    groups: Option<&ShiftedGroups>,
    source: Option<&Source>,
) -> candle_core::Result<Tensor> {
    let states = source.map(|s| s.states.clone());
    let trained = layer.trained_tensors();
    let first = 1 + states.iter().len();
    let inputs: Vec<&Tensor> = std::iter::once(x).chain(&states).chain(&trained).collect();
    let (layer, cos, sin) = (layer.clone(), cos.clone(), sin.clone());
    let (lengths, groups) = (lengths.map(<[usize]>::to_vec), groups.cloned());
    let read = source.map(|s| s.lengths.clone());
    e2llm_kernels::checkpoint(&inputs, move |inputs| {
        let layer = layer.with_trained_tensors(&inputs[first..])?;
        let source = read.as_ref().map(|l| Source { states: inputs[1].clone(), lengths: l.clone() });
        let attend = attend((&cos, &sin), lengths.as_deref(), groups.as_ref());
        layer.forward(&inputs[0], attend, source.as_ref())
    })
}

/// Mean Euclidean length over the last dimension.
///
/// # Errors
/// Failing tensor operations.
pub fn mean_norm(x: &Tensor) -> candle_core::Result<f64> {
    let norms = x.to_dtype(DType::F32)?.sqr()?.sum(candle_core::D::Minus1)?.sqrt()?;
    Ok(f64::from(norms.mean_all()?.to_scalar::<f32>()?))
}
