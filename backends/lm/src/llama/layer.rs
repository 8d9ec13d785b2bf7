//! A layer, and the ways in which its positions attend.

use super::tensors::layer_linears;
#[cfg(feature = "cuda")]
use crate::CrossKeys;
use crate::batch_cache::BatchCache;
use crate::block_layers::adapted;
use crate::config::LlamaConfig;
use crate::cross_attention::CrossAttention;
use crate::linear::Linear;
use crate::loader::Loader;
use crate::rope::Rope;
use crate::shifted::ShiftedGroups;
use crate::stack::Stack;
use crate::{Heads, KvCache, Memory, Result, Source};
use candle_core::Tensor;
use e2llm_kernels::{Mask, residual};

/// [`e2llm_kernels::rms_norm`] with a weight that may be wider than the activations (a float32 master).
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> candle_core::Result<Tensor> {
    e2llm_kernels::rms_norm(x, &weight.to_dtype(x.dtype())?, eps)
}

#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub(super) input_norm: Tensor,
    pub(super) post_norm: Tensor,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    gate: Linear,
    up: Linear,
    down: Linear,
    /// Norms of each head's q and k (Qwen3).
    pub(super) head_norms: Option<(Tensor, Tensor)>,
    /// Attention to another model's states, behind that to the sequence's own.
    pub(super) cross: Option<CrossAttention>,
    head_dim: usize,
    eps: f64,
}

impl Layer {
    pub(super) fn load(c: &LlamaConfig, i: usize, loader: &mut Loader<'_>) -> Result<Self> {
        let norm = |loader: &mut Loader<'_>, name: &str| {
            loader.trainable_tensor(&format!("model.layers.{i}.{name}.weight"))
        };
        let [q, k, v, o, gate, up, down] = layer_linears(c, i);
        let head_norms = if c.qk_norm {
            Some((norm(loader, "self_attn.q_norm")?, norm(loader, "self_attn.k_norm")?))
        } else {
            None
        };
        let (mut attention, mut inner) =
            (Stack::new(q.outputs + k.outputs + v.outputs), Stack::new(gate.outputs + up.outputs));
        Ok(Self {
            input_norm: norm(loader, "input_layernorm")?,
            post_norm: norm(loader, "post_attention_layernorm")?,
            q: loader.linear_in(&q, &mut attention, 0)?,
            k: loader.linear_in(&k, &mut attention, q.outputs)?,
            v: loader.linear_in(&v, &mut attention, q.outputs + k.outputs)?,
            o: loader.linear(&o)?,
            gate: loader.linear_in(&gate, &mut inner, 0)?,
            up: loader.linear_in(&up, &mut inner, gate.outputs)?,
            down: loader.linear(&down)?,
            head_norms,
            cross: None,
            head_dim: c.head_dim,
            eps: c.rms_norm_eps,
        })
    }

    pub(super) fn linears(&self) -> [&Linear; 7] {
        [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down]
    }

    pub(super) fn linears_mut(&mut self) -> [&mut Linear; 7] {
        let Self { q, k, v, o, gate, up, down, .. } = self;
        [q, k, v, o, gate, up, down]
    }

    /// Adds every adapter to its weight.
    pub(super) fn merge_lora(&mut self) -> candle_core::Result<()> {
        let Self { q, k, v, o, gate, up, down, .. } = self;
        Linear::merge_loras(&mut [q, k, v])?;
        Linear::merge_loras(&mut [gate, up])?;
        o.merge_lora()?;
        down.merge_lora()
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

    /// The layer as a part of one operation, where it can be.
    pub(super) fn whole(&self, x: &Tensor) -> Option<e2llm_kernels::DecoderLayer<'_>> {
        let trained = x.device().is_cpu() && self.norms().iter().any(|n| n.track_op());
        let graph = trained || self.head_norms.is_some() || self.cross.is_some();
        if graph {
            return None;
        }
        let linears: [e2llm_kernels::Adapted; 7] =
            adapted(x, self.head_dim, &self.linears())?.try_into().ok()?;
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

    /// The layer as a GPU reads new positions with it, and with the keys and values of another model's states where there are
    /// any; nothing where it has updates of its own.
    #[cfg(feature = "cuda")]
    pub(super) fn cached<'a>(
        &'a self,
        states: Option<&'a CrossKeys>,
    ) -> Option<e2llm_kernels::CachedLayer<'a>> {
        let cross = match (&self.cross, states) {
            (Some(cross), Some(states)) => Some(cross.whole(states)?),
            _ => None,
        };
        let linears: Option<Vec<_>> = self.linears().into_iter().map(Linear::plain).collect();
        Some(e2llm_kernels::CachedLayer {
            input_norm: &self.input_norm,
            post_norm: &self.post_norm,
            linears: linears.filter(|_| self.head_norms.is_none())?.try_into().ok()?,
            cross,
            eps: self.eps,
        })
    }

    /// `[B, T, H * d]` to `[B, H, T, d]`.
    fn split(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let (b, t, width) = x.dims3()?;
        x.reshape((b, t, width / self.head_dim, self.head_dim))?.transpose(1, 2)
    }

    /// Puts the keys and values of positions `x` (`[B, T, D]`) behind what `cache` holds of layer `i`, and does no more: nobody
    /// asks what comes of them.
    pub(super) fn remember(
        &self,
        x: &Tensor,
        (cos, sin): (&Tensor, &Tensor),
        cache: &mut KvCache,
        i: usize,
    ) -> candle_core::Result<()> {
        let y = rms_norm(x, &self.input_norm, self.eps)?;
        let mut k = self.split(&self.k.forward(&y)?)?;
        let v = self.split(&self.v.forward(&y)?)?;
        if let Some((_, k_norm)) = &self.head_norms {
            k = rms_norm(&k, k_norm, self.eps)?;
        }
        cache.append(i, &e2llm_kernels::rope(&k, cos, sin)?, &v)?;
        Ok(())
    }

    pub(super) fn forward(
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
                ready = memory.cross().and_then(|keys| keys.get(layer).cloned());
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
        let mut x = residual(x, &self.o.forward(&o)?)?;
        if let Some(cross) = &self.cross {
            if let Some(source) = source {
                let keys = cross.keys(&source.states)?;
                x = residual(&x, &cross.forward(&x, &keys, Some(&source.lengths))?)?;
            } else if let Some(keys) = ready {
                x = residual(&x, &cross.forward(&x, &keys, None)?)?;
            }
        }
        let y = rms_norm(&x, &self.post_norm, self.eps)?;
        let y = e2llm_kernels::silu_mul(&self.gate.forward(&y)?, &self.up.forward(&y)?)?;
        residual(&x, &self.down.forward(&y)?)
    }
}

/// What a layer's positions see.
pub(super) enum Attend<'a> {
    /// Each other, from the first position on.
    Block { cos: &'a Tensor, sin: &'a Tensor, mask: Mask<'a> },
    /// Those of their groups.
    Groups { cos: &'a Tensor, sin: &'a Tensor, groups: &'a ShiftedGroups },
    /// Each other and what is remembered.
    Through { memory: &'a mut dyn Memory, layer: usize, rope: &'a Rope },
    /// Each the sequence of its own that it is the next position of.
    Rows { cos: &'a Tensor, sin: &'a Tensor, cache: &'a BatchCache, layer: usize },
}

/// How the positions of a whole batch attend.
pub(super) fn attend<'a>(
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
pub(super) fn checkpointed(
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
