//! Attention of a decoder's layers to the states of another model (CEPE, Yen et al. 2024, arXiv 2402.16617).
//!
//! In every layer, between self-attention and feed-forward: `x + O softmax(q k^T / sqrt(d)) v` with `q = Q norm(x)` and
//! `k = K s`, `v = V s` of the states s, in the decoder's own heads and without positions, as the authors' code has it.
//! Where `O` is zero, nothing is added: the decoder is what it was.

use crate::config::{LlamaConfig, TensorSpec};
use crate::{Heads, KvCache, Memory, Params, Result, Rope};
use candle_core::{D, Tensor, bail};
use e2llm_kernels::Mask;
use std::sync::Arc;

impl LlamaConfig {
    /// The tensors of cross-attention to states of `width`, names behind `prefix` (`decoder.`), layer by layer.
    pub fn cross_attention_tensors(&self, width: usize, prefix: &str) -> Vec<TensorSpec> {
        (0..self.num_hidden_layers).flat_map(|i| specs(self, width, prefix, i)).collect()
    }
}

/// Norm, q, k, v and o of layer `i`.
fn specs(c: &LlamaConfig, width: usize, prefix: &str, i: usize) -> [TensorSpec; 5] {
    let h = c.hidden_size;
    let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
    let shapes = [
        ("layernorm", vec![h]),
        ("q_proj", vec![q, h]),
        ("k_proj", vec![kv, width]),
        ("v_proj", vec![kv, width]),
        ("o_proj", vec![h, q]),
    ];
    shapes.map(|(name, shape)| {
        TensorSpec::new(format!("{prefix}model.layers.{i}.cross_attn.{name}.weight"), shape)
    })
}

/// What the decoder's cross-attention reads.
#[derive(Debug, Clone)]
pub struct Source {
    /// States of another model, `[B, L, E]`.
    pub states: Tensor,
    /// How many of them each row of the batch has; one that has none reads nothing.
    pub lengths: Vec<usize>,
}

/// Keys and values that a layer made of states, `[B, Hkv, L, d]`.
pub type CrossKeys = (Tensor, Tensor);

/// Cross-attention of one layer. Its tensors may be wider than the activations: they are cast inside the graph.
#[derive(Debug, Clone)]
pub(crate) struct CrossAttention {
    norm: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    head_dim: usize,
    eps: f64,
}

impl CrossAttention {
    pub(crate) fn load(
        c: &LlamaConfig,
        (width, prefix, i): (usize, &str, usize),
        params: &mut Params,
    ) -> Result<Self> {
        let [norm, q, k, v, o] = specs(c, width, prefix, i);
        let mut get = |spec: TensorSpec| params.get(&spec.name, &spec.shape);
        Ok(Self {
            norm: get(norm)?,
            q: get(q)?,
            k: get(k)?,
            v: get(v)?,
            o: get(o)?,
            head_dim: c.head_dim,
            eps: c.rms_norm_eps,
        })
    }

    /// As a GPU's whole layers read it, with keys and values that were made; nothing while it is trained.
    #[cfg(feature = "cuda")]
    pub(crate) fn whole<'a>(&'a self, (keys, values): &'a CrossKeys) -> Option<e2llm_kernels::Cross<'a>> {
        let Self { norm, q, o, .. } = self;
        let frozen = [norm, q, o].into_iter().all(|t| !t.track_op());
        frozen.then_some(e2llm_kernels::Cross { norm, q, o, keys, values })
    }

    /// Its tensors in a fixed order, and a copy with others in their place.
    pub(crate) fn tensors(&self) -> [Tensor; 5] {
        [&self.norm, &self.q, &self.k, &self.v, &self.o].map(Clone::clone)
    }

    pub(crate) fn with_tensors(&self, next: &mut impl Iterator<Item = Tensor>) -> candle_core::Result<Self> {
        let mut copy = self.clone();
        for tensor in [&mut copy.norm, &mut copy.q, &mut copy.k, &mut copy.v, &mut copy.o] {
            let Some(other) = next.next() else { bail!("too few tensors for a layer's cross-attention") };
            *tensor = other;
        }
        Ok(copy)
    }

    /// `[B, T, H * d]` to `[B, H, T, d]`.
    fn split(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let (b, t, width) = x.dims3()?;
        x.reshape((b, t, width / self.head_dim, self.head_dim))?.transpose(1, 2)
    }

    /// Keys and values of states `[B, L, E]`.
    pub(crate) fn keys(&self, states: &Tensor) -> candle_core::Result<CrossKeys> {
        Ok((self.split(&product(states, &self.k)?)?, self.split(&product(states, &self.v)?)?))
    }

    /// What is added to `x` (`[B, T, D]`).
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        (k, v): &CrossKeys,
        lengths: Option<&[usize]>,
    ) -> candle_core::Result<Tensor> {
        let y = e2llm_kernels::rms_norm(x, &self.norm.to_dtype(x.dtype())?, self.eps)?;
        let q = self.split(&product(&y, &self.q)?)?;
        let scale = 1.0 / (self.head_dim as f64).sqrt();
        let o = e2llm_kernels::attention_rows(&q, k, v, lengths.map_or(Mask::None, Mask::Keys), scale)?;
        product(&o, &self.o)
    }
}

/// `x w^T` with gradients to both.
fn product(x: &Tensor, w: &Tensor) -> candle_core::Result<Tensor> {
    let (outputs, inputs) = w.dims2()?;
    let mut shape = x.dims().to_vec();
    let rows = x.elem_count() / x.dim(D::Minus1)?.max(1);
    if let Some(last) = shape.last_mut() {
        *last = outputs;
    }
    x.reshape((rows, inputs))?.matmul(&w.to_dtype(x.dtype())?.t()?)?.reshape(shape)
}

/// A [`KvCache`] of a decoder that also reads the states of another model, whose keys and values are made once.
#[derive(Debug, Clone)]
pub struct CrossMemory {
    own: KvCache,
    keys: Arc<Vec<CrossKeys>>,
}

impl CrossMemory {
    /// An empty memory beside what [`Llama::cross_keys`](crate::Llama::cross_keys) made of the states.
    pub fn new(own: KvCache, keys: Arc<Vec<CrossKeys>>) -> Self {
        Self { own, keys }
    }
}

impl Memory for CrossMemory {
    fn offset(&self) -> usize {
        self.own.offset()
    }

    fn attend(&mut self, layer: usize, heads: &Heads, rope: &Rope) -> candle_core::Result<Tensor> {
        self.own.attend(layer, heads, rope)
    }

    fn cross(&self) -> Option<Arc<Vec<CrossKeys>>> {
        Some(Arc::clone(&self.keys))
    }

    fn behind(&mut self) -> Option<&mut KvCache> {
        Some(&mut self.own)
    }

    fn advance(&mut self, t: usize) {
        self.own.advance(t);
    }

    fn fork(&self) -> candle_core::Result<Box<dyn Memory>> {
        Ok(Box::new(self.clone()))
    }
}
