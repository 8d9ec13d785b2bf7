//! When all layers of a pass run as one operation instead of as a graph of small ones.

use crate::linear::Linear;
use candle_core::{Result, Tensor};
use e2llm_kernels::Adapted;

/// Widest rows and heads that the GPU's layers hold.
const WIDEST: usize = 4096;
const WIDEST_HEAD: usize = 128;

/// Whether a layer with heads of `head_dim` can run that way for `x`: on a GPU in bf16.
fn fit(x: &Tensor, head_dim: usize) -> bool {
    let width = x.dims().last().copied().unwrap_or(0);
    let fits_gpu = x.dtype() == candle_core::DType::BF16
        && width <= WIDEST
        && head_dim <= WIDEST_HEAD
        && head_dim.is_multiple_of(16);
    x.device().is_cpu() || x.device().is_cuda() && fits_gpu
}

/// The linears of a layer as a part of one operation for `x`, where it can be one: where their weights are dense and frozen.
pub(crate) fn adapted(x: &Tensor, head_dim: usize, linears: &[&Linear]) -> Option<Vec<Adapted>> {
    if !fit(x, head_dim) {
        return None;
    }
    linears.iter().copied().map(Linear::adapted).collect()
}

/// The lengths of a batch's rows where the layers are, put there once for all of them.
pub(crate) struct Batch(Option<Tensor>);

impl Batch {
    /// For `x` (`[B, T, ..]`); nothing where all rows are full.
    pub(crate) fn new(x: &Tensor, lengths: Option<&[usize]>) -> Result<Self> {
        let t = x.dim(1)?;
        let Some(lengths) = lengths.filter(|l| l.iter().any(|n| *n < t)) else {
            return Ok(Self(None));
        };
        let lengths: Vec<u32> = lengths.iter().map(|&n| n as u32).collect();
        Ok(Self(Some(Tensor::new(lengths, x.device())?)))
    }

    pub(crate) fn lengths(&self) -> Option<&Tensor> {
        self.0.as_ref()
    }
}
