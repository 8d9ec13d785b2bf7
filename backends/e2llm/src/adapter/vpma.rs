//! Pooling by multi-head attention (Set Transformer, Lee et al. 2019) into the decoder's width.
//!
//! k learned seeds `S`, D wide, attend over a chunk's E-wide token states. Scores are scaled by `1 / sqrt(D)`
//! (the full width, not the head's), the residual is the unprojected seed, and the row-wise feed-forward is one
//! linear with ReLU and a residual; each is followed by a LayerNorm:
//! `o = ln0(S + attention(fc_q S, fc_k x, fc_v x))`, `y = ln1(o + relu(fc_o o))`.
//!
//! The bias of `fc_k` adds the same number to all scores of a seed, which softmax does not see: it is left out of the
//! keys, so that its gradient is zero as it should be and not the noise of summing what cancels.
//!
//! Neither keys nor values are made, which would be D wide for every token: a score is `(fc_k^T q) x`, whose first factor is the
//! same for all chunks, and since weights sum to 1, a weighted mean of values is `fc_v` of the weighted mean of `x`. That
//! leaves k times the number of heads products with each token in the place of 2 D. Scores are float32.

use super::Dense;
use super::layers::{LayerNorm, like};
use candle_core::{D, DType, Result, Tensor};
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
        let (c, l, e) = x.dims3()?;
        let seeds = like(&self.seeds, x)?;
        let (_, k, d) = seeds.dims3()?;
        let (h, wide) = (self.heads, if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 });
        // Weights of tokens, `[C, heads k, L]`.
        let q = self.query.forward(&seeds)?.broadcast_add(&self.key.zero_bias(&seeds)?)?.to_dtype(wide)?;
        let q = (q.reshape((k, h, d / h))?.transpose(0, 1)?.contiguous()? / (d as f64).sqrt())?;
        let q = q.matmul(&self.key.heads(h, &q)?)?.reshape((h * k, e))?;
        let scores = scores(&q, &x.reshape((c * l, e))?)?.reshape((h * k, c, l))?;
        let weights = softmax(&masked(scores, lengths)?)?.to_dtype(x.dtype())?;
        let weights = weights.transpose(0, 1)?.contiguous()?;
        // Means of states, one for each head and seed, and their values.
        let means = weights.matmul(&x.contiguous()?)?.reshape((c, h, k, e))?;
        let means = means.transpose(0, 1)?.contiguous()?.reshape((h, c * k, e))?;
        let o = means.matmul(&self.value.heads(h, x)?.transpose(1, 2)?)?;
        let o = o.reshape((h, c, k, d / h))?.permute((1, 2, 0, 3))?.reshape((c, k, d))?;
        let o = o.broadcast_add(&self.value.bias(x)?)?;
        let o = self.norm0.forward(&o.broadcast_add(&seeds)?)?;
        self.norm1.forward(&(&o + self.feed_forward.forward(&o)?.relu()?)?)
    }
}

/// `q x^T` in the element type of `q`.
fn scores(q: &Tensor, x: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda()
        && let Some(scores) = e2llm_kernels::float_scores(q, x)?
    {
        return Ok(scores);
    }
    q.matmul(&x.to_dtype(q.dtype())?.t()?)
}

/// `scores` (`[.., C, L]`) without what stands behind the chunks' lengths.
fn masked(scores: Tensor, lengths: &[usize]) -> Result<Tensor> {
    let l = scores.dim(D::Minus1)?;
    if lengths.iter().all(|n| *n == l) {
        return Ok(scores);
    }
    let hidden =
        |n: &usize| (0..l).map(|i| if i < *n { 0f32 } else { f32::NEG_INFINITY }).collect::<Vec<_>>();
    let mask = Tensor::from_vec(
        lengths.iter().flat_map(hidden).collect::<Vec<_>>(),
        (1, lengths.len(), l),
        scores.device(),
    )?;
    scores.broadcast_add(&mask.to_dtype(scores.dtype())?)
}

/// Over the last dimension.
fn softmax(x: &Tensor) -> Result<Tensor> {
    let top = x.max_keepdim(D::Minus1)?.detach();
    let parts = x.broadcast_sub(&top)?.exp()?;
    parts.broadcast_div(&parts.sum_keepdim(D::Minus1)?)
}
