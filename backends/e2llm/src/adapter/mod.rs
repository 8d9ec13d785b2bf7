//! From the encoder's token states to soft tokens in the decoder's embedding space.
//!
//! All adapters take `x: [C, L, E]`, the states of C chunks padded on the right to L tokens, and the number of
//! real tokens of each chunk; they give `[C, k, D]`. Every operation has a backward pass for all that is trained.

mod layers;
mod mean;
mod mlp;
mod vpma;

use crate::config::{AdapterKind, E2llmConfig};
use candle_core::{Result, Tensor};
use e2llm_lm::{LmError, Params, TensorSpec};
use layers::Dense;
use mlp::Mlp;
use vpma::Vpma;

/// An adapter with its trained tensors.
#[derive(Debug, Clone)]
pub struct Adapter(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Vpma(Vpma),
    Cls(Mlp),
    Mean { mlp: Mlp, k: usize },
}

impl Adapter {
    /// The tensors an adapter has between an encoder `e` and a decoder `d` wide.
    pub fn specs(config: &E2llmConfig, e: usize, d: usize) -> Vec<TensorSpec> {
        match config.adapter {
            AdapterKind::Vpma => Vpma::specs(e, d, config.soft_tokens_per_chunk),
            AdapterKind::Cls | AdapterKind::Mean => Mlp::specs(e, d),
        }
    }

    /// Builds the adapter out of its tensors (`adapter.*`).
    ///
    /// # Errors
    /// Tensors missing or mis-shaped; heads that do not divide the decoder's width.
    pub fn load(
        config: &E2llmConfig,
        e: usize,
        d: usize,
        params: &mut Params,
    ) -> std::result::Result<Self, LmError> {
        let k = config.soft_tokens_per_chunk;
        Ok(Self(match config.adapter {
            AdapterKind::Vpma => Kind::Vpma(Vpma::load(e, d, config.vpma_num_heads, k, params)?),
            AdapterKind::Cls => Kind::Cls(Mlp::load(e, d, params)?),
            AdapterKind::Mean => Kind::Mean { mlp: Mlp::load(e, d, params)?, k },
        }))
    }

    /// Soft tokens `[C, k, D]` of the states `x: [C, L, E]`, of which chunk `i` has `lengths[i]` real ones.
    ///
    /// # Errors
    /// Shapes that do not fit; a chunk without tokens.
    pub fn forward(&self, x: &Tensor, lengths: &[usize]) -> Result<Tensor> {
        if x.dims3()?.0 != lengths.len() || lengths.contains(&0) {
            candle_core::bail!("states {:?} do not fit chunks of {lengths:?} tokens", x.dims());
        }
        match &self.0 {
            Kind::Vpma(vpma) => vpma.forward(x, lengths),
            Kind::Cls(mlp) => mlp.forward(&x.narrow(1, 0, 1)?),
            Kind::Mean { mlp, k } => mlp.forward(&mean::span_means(x, lengths, *k)?),
        }
    }
}
