//! Linear, exact GELU, linear: the pooled states into the decoder's width.

use super::Dense;
use candle_core::{Result, Tensor};
use e2llm_lm::{LmError, Params, TensorSpec};

#[derive(Debug, Clone)]
pub(super) struct Mlp {
    first: Dense,
    second: Dense,
}

impl Mlp {
    const FIRST: &str = "adapter.mlp.0";
    const SECOND: &str = "adapter.mlp.2"; // the GELU is number 1

    pub(super) fn specs(e: usize, d: usize) -> Vec<TensorSpec> {
        [Dense::specs(Self::FIRST, d, e), Dense::specs(Self::SECOND, d, d)].concat()
    }

    pub(super) fn load(e: usize, d: usize, params: &mut Params) -> std::result::Result<Self, LmError> {
        Ok(Self {
            first: Dense::load(Self::FIRST, d, e, params)?,
            second: Dense::load(Self::SECOND, d, d, params)?,
        })
    }

    /// `[C, k, E]` to `[C, k, D]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.second.forward(&e2llm_kernels::gelu(&self.first.forward(x)?)?)
    }
}
