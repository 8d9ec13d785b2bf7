//! Pooling by multi-head attention (Set Transformer, Lee et al. 2019) into the decoder's width.
//!
//! k learned seeds `S`, D wide, attend over a chunk's E-wide token states. Scores are scaled by `1 / sqrt(D)`
//! (the full width, not the head's), the residual is the unprojected seed, and the row-wise feed-forward is one
//! linear with ReLU and a residual; each is followed by a LayerNorm:
//! `o = ln0(S + attention(fc_q S, fc_k x, fc_v x))`, `y = ln1(o + relu(fc_o o))`.
//!
//! The bias of `fc_k` adds the same number to all scores of a seed, which softmax does not see: it is left out of the
//! keys, so that its gradient is zero as it should be and not the noise of summing what cancels.

use super::Dense;
use super::layers::{LayerNorm, like};
use candle_core::{Result, Tensor};
use e2llm_kernels::Mask;
use e2llm_lm::{LmError, Params, TensorSpec};

#[derive(Debug, Clone)]
pub(super) struct Vpma {
    heads: usize,
    seeds: Tensor, // [1, k, D]
    query: Dense,
    key: Dense,
    value: Dense,
    feed_forward: Dense,
    norm0: LayerNorm,
    norm1: LayerNorm,
}

impl Vpma {
    pub(super) fn specs(e: usize, d: usize, k: usize) -> Vec<TensorSpec> {
        let mut specs = vec![TensorSpec::new("adapter.S", vec![1, k, d])];
        specs.extend(Dense::specs("adapter.fc_q", d, d));
        specs.extend(Dense::specs("adapter.fc_k", d, e));
        specs.extend(Dense::specs("adapter.fc_v", d, e));
        specs.extend(Dense::specs("adapter.fc_o", d, d));
        specs.extend(LayerNorm::specs("adapter.ln0", d));
        specs.extend(LayerNorm::specs("adapter.ln1", d));
        specs
    }

    pub(super) fn load(
        e: usize,
        d: usize,
        heads: usize,
        k: usize,
        params: &mut Params,
    ) -> std::result::Result<Self, LmError> {
        if heads == 0 || !d.is_multiple_of(heads) {
            let message =
                format!("`vpma_num_heads` is {heads}, which does not divide the decoder's width {d}");
            return Err(LmError::Input(message));
        }
        Ok(Self {
            heads,
            seeds: params.get("adapter.S", &[1, k, d])?,
            query: Dense::load("adapter.fc_q", d, d, params)?,
            key: Dense::load("adapter.fc_k", d, e, params)?,
            value: Dense::load("adapter.fc_v", d, e, params)?,
            feed_forward: Dense::load("adapter.fc_o", d, d, params)?,
            norm0: LayerNorm::load("adapter.ln0", d, params)?,
            norm1: LayerNorm::load("adapter.ln1", d, params)?,
        })
    }

    /// `[C, L, E]` to `[C, k, D]`.
    pub(super) fn forward(&self, x: &Tensor, lengths: &[usize]) -> Result<Tensor> {
        let (c, ..) = x.dims3()?;
        let seeds = like(&self.seeds, x)?;
        let (_, k, d) = seeds.dims3()?;
        let split = |t: &Tensor| -> Result<Tensor> {
            let (n, length, _) = t.dims3()?;
            t.reshape((n, length, self.heads, d / self.heads))?.transpose(1, 2)
        };
        let q = self.query.forward(&seeds)?.broadcast_add(&self.key.zero_bias(x)?)?;
        let q = split(&q)?.broadcast_as((c, self.heads, k, d / self.heads))?;
        let (keys, values) = (split(&self.key.product(x)?)?, split(&self.value.forward(x)?)?);
        let scale = 1.0 / (d as f64).sqrt();
        let o = e2llm_kernels::attention(&q, &keys, &values, Mask::Keys(lengths), scale)?;
        let o = o.transpose(1, 2)?.reshape((c, k, d))?;
        let o = self.norm0.forward(&o.broadcast_add(&seeds)?)?;
        self.norm1.forward(&(&o + self.feed_forward.forward(&o)?.relu()?)?)
    }
}
