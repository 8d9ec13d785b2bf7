//! When a layer runs as one operation on a GPU instead of as a graph of small ones.

use crate::linear::Linear;
use candle_core::{DType, Result, Tensor};

/// Widest rows and heads that the GPU's layers hold.
const WIDEST: usize = 2048;
const WIDEST_HEAD: usize = 128;

/// Whether a layer with heads of `head_dim` can run that way for `x`, and gains by it: training in bf16.
pub(crate) fn fit(x: &Tensor, head_dim: usize, linears: &[&Linear]) -> bool {
    let trained = linears.iter().filter_map(|l| l.lora()).any(|l| l.a.track_op() || l.b.track_op());
    let width = x.dims().last().copied().unwrap_or(0);
    x.device().is_cuda()
        && x.dtype() == DType::BF16
        && (trained || x.track_op())
        && width <= WIDEST
        && head_dim <= WIDEST_HEAD
        && head_dim.is_multiple_of(16)
}

/// The lengths of a batch's rows on the GPU, put there once for all layers.
pub(crate) struct Batch(Option<Tensor>);

impl Batch {
    /// For `x` (`[B, T, ..]`); nothing where all rows are full or the GPU does not need it.
    pub(crate) fn new(x: &Tensor, lengths: Option<&[usize]>) -> Result<Self> {
        let t = x.dim(1)?;
        let Some(lengths) = lengths.filter(|l| x.device().is_cuda() && l.iter().any(|n| *n < t)) else {
            return Ok(Self(None));
        };
        let lengths: Vec<u32> = lengths.iter().map(|&n| n as u32).collect();
        Ok(Self(Some(Tensor::new(lengths, x.device())?)))
    }

    pub(crate) fn lengths(&self) -> Option<&Tensor> {
        self.0.as_ref()
    }
}
