//! Text encoders of the BERT family: absolute positions, post-norm, exact GELU.

use crate::block_layers::{Batch, adapted};
use crate::config::{BertConfig, LinearSpec, TensorSpec};
use crate::linear::{Linear, Weight};
use crate::loader::Loader;
use crate::{LoraConfig, LoraSource, Precision, Result, Weights};
use candle_core::{DType, Device, Tensor};
use e2llm_kernels::{Mask, residual};
use std::collections::BTreeMap;

/// Names and sizes of layer `i`'s linears: query, key, value, attention output, feed-forward in and out.
fn layer_linears(c: &BertConfig, i: usize) -> [LinearSpec; 6] {
    let (h, m) = (c.hidden_size, c.intermediate_size);
    let linear =
        |name, outputs, inputs| LinearSpec::new(format!("encoder.layer.{i}.{name}"), outputs, inputs, true);
    [
        linear("attention.self.query", h, h),
        linear("attention.self.key", h, h),
        linear("attention.self.value", h, h),
        linear("attention.output.dense", h, h),
        linear("intermediate.dense", m, h),
        linear("output.dense", h, m),
    ]
}

fn linears(c: &BertConfig) -> Vec<LinearSpec> {
    (0..c.num_hidden_layers).flat_map(|i| layer_linears(c, i)).collect()
}

/// Heads of pre-training and of sentence classification, and buffers older versions saved.
fn is_ignored(name: &str) -> bool {
    name.starts_with("pooler.")
        || name.starts_with("cls.")
        || name.starts_with("lm_head.")
        || name.ends_with("position_ids")
}

impl BertConfig {
    /// The frozen tensors of the model.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let h = self.hidden_size;
        let table = |name: &str, rows| TensorSpec::new(format!("embeddings.{name}.weight"), vec![rows, h]);
        let norm = |name: &str| {
            ["weight", "bias"].map(|part| TensorSpec::new(format!("{name}.LayerNorm.{part}"), vec![h]))
        };
        let mut all = vec![
            table("word_embeddings", self.vocab_size),
            table("position_embeddings", self.max_position_embeddings),
            table("token_type_embeddings", self.type_vocab_size),
        ];
        all.extend(norm("embeddings"));
        for i in 0..self.num_hidden_layers {
            all.extend(norm(&format!("encoder.layer.{i}.attention.output")));
            all.extend(norm(&format!("encoder.layer.{i}.output")));
            for linear in layer_linears(self, i) {
                all.extend(linear.tensors());
            }
        }
        all
    }

    /// The adapters' tensors, names behind `prefix` (`encoder.`), in the order of the model.
    pub fn lora_tensors(&self, lora: &LoraConfig, prefix: &str) -> Vec<TensorSpec> {
        let all = linears(self);
        lora.specs(prefix, all.iter().map(|l| (l.module.as_str(), l.outputs, l.inputs)))
    }

    /// Number of frozen parameters.
    pub fn parameters(&self) -> u64 {
        self.tensors().iter().map(|t| t.len() as u64).sum()
    }
}

#[derive(Debug, Clone)]
struct Norm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl Norm {
    fn load(name: &str, eps: f64, loader: &Loader<'_>) -> Result<Self> {
        let part = |part: &str| loader.tensor(&format!("{name}.LayerNorm.{part}"));
        Ok(Self { weight: part("weight")?, bias: part("bias")?, eps })
    }

    fn parts(&self) -> (&Tensor, &Tensor, f64) {
        (&self.weight, &self.bias, self.eps)
    }

    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        e2llm_kernels::layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}

#[derive(Debug, Clone)]
struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    attention_out: Linear,
    attention_norm: Norm,
    inner: Linear,
    outer: Linear,
    norm: Norm,
    heads: usize,
}

impl Layer {
    fn load(c: &BertConfig, i: usize, loader: &mut Loader<'_>) -> Result<Self> {
        let [query, key, value, attention_out, inner, outer] = layer_linears(c, i);
        let norm = |loader: &Loader<'_>, name: &str| {
            Norm::load(&format!("encoder.layer.{i}.{name}"), c.layer_norm_eps, loader)
        };
        Ok(Self {
            query: loader.linear(&query)?,
            key: loader.linear(&key)?,
            value: loader.linear(&value)?,
            attention_out: loader.linear(&attention_out)?,
            attention_norm: norm(loader, "attention.output")?,
            inner: loader.linear(&inner)?,
            outer: loader.linear(&outer)?,
            norm: norm(loader, "output")?,
            heads: c.num_attention_heads,
        })
    }

    fn linears(&self) -> [&Linear; 6] {
        [&self.query, &self.key, &self.value, &self.attention_out, &self.inner, &self.outer]
    }

    fn linears_mut(&mut self) -> [&mut Linear; 6] {
        let Self { query, key, value, attention_out, inner, outer, .. } = self;
        [query, key, value, attention_out, inner, outer]
    }

    /// The layer as a part of one operation, where it can be.
    fn whole(&self, x: &Tensor) -> Option<e2llm_kernels::EncoderLayer<'_>> {
        let head_dim = x.dims().last()? / self.heads.max(1);
        Some(e2llm_kernels::EncoderLayer {
            attention_norm: self.attention_norm.parts(),
            norm: self.norm.parts(),
            linears: adapted(x, head_dim, &self.linears())?.try_into().ok()?,
            heads: self.heads,
        })
    }

    fn lora_tensors(&self) -> Vec<Tensor> {
        let loras = self.linears().into_iter().filter_map(Linear::lora);
        loras.flat_map(|l| [l.a.clone(), l.b.clone()]).collect()
    }

    fn with_lora_tensors(&self, tensors: &[Tensor]) -> candle_core::Result<Self> {
        let mut copy = self.clone();
        let mut next = tensors.iter().cloned();
        for linear in copy.linears_mut() {
            *linear = linear.with_lora_tensors(&mut next)?;
        }
        Ok(copy)
    }

    fn forward(&self, x: &Tensor, lengths: &[usize]) -> candle_core::Result<Tensor> {
        let (c, l, h) = x.dims3()?;
        let d = h / self.heads;
        let split = |linear: &Linear| linear.forward(x)?.reshape((c, l, self.heads, d))?.transpose(1, 2);
        let (q, k, v) = (split(&self.query)?, split(&self.key)?, split(&self.value)?);
        // Chunks of one length need no mask.
        let mask = if lengths.iter().all(|n| *n == l) { Mask::None } else { Mask::Keys(lengths) };
        let o = e2llm_kernels::attention(&q, &k, &v, mask, 1.0 / (d as f64).sqrt())?;
        let o = o.transpose(1, 2)?.reshape((c, l, h))?;
        let x = self.attention_norm.forward(&residual(&self.attention_out.forward(&o)?, x)?)?;
        let y = e2llm_kernels::gelu(&self.inner.forward(&x)?)?;
        self.norm.forward(&residual(&self.outer.forward(&y)?, &x)?)
    }
}

/// An encoder of the BERT family.
#[derive(Debug, Clone)]
pub struct BertEncoder {
    config: BertConfig,
    words: Weight,
    positions: Tensor,
    /// Row 0 of the segment table: texts are never paired here.
    segment: Tensor,
    norm: Norm,
    layers: Vec<Layer>,
    device: Device,
    dtype: DType,
    checkpointing: bool,
}

impl BertEncoder {
    /// Builds an encoder from checked weights, with the adapters of `lora` where given.
    ///
    /// # Errors
    /// Tensors that do not fit the configuration (all of them), adapters that are missing.
    pub fn load(
        config: &BertConfig,
        weights: &Weights,
        lora: Option<LoraSource<'_>>,
        device: &Device,
        precision: Precision,
    ) -> Result<Self> {
        weights.check(&config.tensors(), is_ignored)?;
        if let Some(lora) = &lora {
            let all = linears(config);
            lora.config.check(all.iter().map(|l| l.module.as_str()))?;
        }
        let mut loader = Loader::new(weights, lora, device, precision)?;
        let layers = (0..config.num_hidden_layers)
            .map(|i| Layer::load(config, i, &mut loader))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            words: loader.weight("embeddings.word_embeddings.weight")?,
            positions: loader.tensor("embeddings.position_embeddings.weight")?,
            segment: loader.tensor("embeddings.token_type_embeddings.weight")?.narrow(0, 0, 1)?,
            norm: Norm::load("embeddings", config.layer_norm_eps, &loader)?,
            layers,
            config: config.clone(),
            device: device.clone(),
            dtype: precision.activations(),
            checkpointing: false,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &BertConfig {
        &self.config
    }

    /// Where the model is.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Element type of the states.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Whether each layer is computed again in the backward pass instead of being kept.
    pub fn set_checkpointing(&mut self, on: bool) {
        self.checkpointing = on;
    }

    /// Last hidden states of several texts in one pass, padded on the right: `[C, L, E]`, and the texts' lengths.
    ///
    /// What stands behind a text's length means nothing.
    ///
    /// # Errors
    /// No text, an empty one, one longer than the window, ids beyond the vocabulary.
    pub fn forward(&self, ids: &[Vec<u32>]) -> candle_core::Result<(Tensor, Vec<usize>)> {
        let lengths: Vec<usize> = ids.iter().map(Vec::len).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        if lengths.contains(&0) || longest == 0 {
            candle_core::bail!("the encoder got an empty text");
        }
        if longest > self.config.window() {
            candle_core::bail!(
                "a text of {longest} tokens, the encoder's window is {}",
                self.config.window()
            );
        }
        let mut flat = Vec::with_capacity(ids.len() * longest);
        for row in ids {
            if let Some(id) = row.iter().find(|id| **id as usize >= self.config.vocab_size) {
                candle_core::bail!("token {id} is beyond the vocabulary of {}", self.config.vocab_size);
            }
            flat.extend_from_slice(row);
            flat.resize(flat.len() + longest - row.len(), self.config.pad_token_id);
        }
        let index = Tensor::from_vec(flat, ids.len() * longest, &self.device)?;
        let mut x = self.embed_rows(&index, longest)?.reshape((ids.len(), longest, ()))?;
        if let Some(layers) = self.layers.iter().map(|l| l.whole(&x)).collect::<Option<Vec<_>>>() {
            let batch = Batch::new(&x, Some(&lengths))?;
            x = e2llm_kernels::EncoderLayer::forward(&layers, &x, batch.lengths(), !self.checkpointing)?;
            return Ok((x, lengths));
        }
        for layer in &self.layers {
            x = if self.checkpointing {
                checkpointed(layer, &x, &lengths)?
            } else {
                layer.forward(&x, &lengths)?
            };
        }
        Ok((x, lengths))
    }

    /// Embeddings of tokens in rows of `longest`, normalised: `[n]` to `[n, E]`.
    fn embed_rows(&self, index: &Tensor, longest: usize) -> candle_core::Result<Tensor> {
        let positions = self.positions.narrow(0, self.config.position_offset(), longest)?;
        let places = positions.broadcast_add(&self.segment)?;
        #[cfg(feature = "cuda")]
        if let Some(words) = self.words.frozen().filter(|_| self.device.is_cuda())
            && let Some(x) = e2llm_kernels::embed_norm(words, index, &places, self.norm.parts())?
        {
            return Ok(x);
        }
        let words = self.words.rows(index)?.to_dtype(self.dtype)?;
        let words = words.reshape(((), longest, self.config.hidden_size))?;
        let x = self.norm.forward(&residual(&words, &places.broadcast_as(words.shape())?)?)?;
        x.flatten_to(1)
    }

    /// Sentence embeddings `[C, E]`: means over each text's tokens, normalised to length 1.
    ///
    /// # Errors
    /// As [`BertEncoder::forward`].
    pub fn embed(&self, ids: &[Vec<u32>]) -> candle_core::Result<Tensor> {
        let (states, lengths) = self.forward(ids)?;
        let mut rows = Vec::with_capacity(lengths.len());
        for (i, n) in lengths.iter().enumerate() {
            rows.push(states.get(i)?.narrow(0, 0, *n)?.to_dtype(DType::F32)?.mean(0)?);
        }
        let means = Tensor::stack(&rows, 0)?;
        means.broadcast_div(&means.sqr()?.sum_keepdim(1)?.sqrt()?.maximum(1e-12)?)
    }

    /// Adds every adapter to its weight (which becomes dense), for faster inference.
    ///
    /// # Errors
    /// Any of the additions.
    pub fn merge_lora(&mut self) -> candle_core::Result<()> {
        self.layers.iter_mut().flat_map(Layer::linears_mut).try_for_each(Linear::merge_lora)
    }

    /// Dense linear weights by HF name with the adapters added: what differs from the model's own file.
    ///
    /// # Errors
    /// Any of dequantising and adding.
    pub fn merged_linears(&self) -> candle_core::Result<BTreeMap<String, Tensor>> {
        let mut all = BTreeMap::new();
        for (i, layer) in self.layers.iter().enumerate() {
            for (spec, linear) in layer_linears(&self.config, i).iter().zip(layer.linears()) {
                if linear.lora().is_some() {
                    all.insert(format!("{}.weight", spec.module), linear.merged_weight()?);
                }
            }
        }
        Ok(all)
    }
}

/// One layer whose inner activations are not kept. Its adapters are inputs beside `x`, so that they get gradients.
fn checkpointed(layer: &Layer, x: &Tensor, lengths: &[usize]) -> candle_core::Result<Tensor> {
    let loras = layer.lora_tensors();
    let inputs: Vec<&Tensor> = std::iter::once(x).chain(&loras).collect();
    let (layer, lengths) = (layer.clone(), lengths.to_vec());
    e2llm_kernels::checkpoint(&inputs, move |inputs| {
        layer.with_lora_tensors(&inputs[1..])?.forward(&inputs[0], &lengths)
    })
}
