//! Trained layers: unlike the frozen ones of the base models they need gradients of their weights.

use candle_core::{Result, Tensor};
use e2llm_lm::{LmError, Params, TensorSpec};

/// `y = W x + b`, both trained.
#[derive(Debug, Clone)]
pub(super) struct Dense {
    weight: Tensor, // [out, in]
    bias: Tensor,   // [out]
}

impl Dense {
    pub(super) fn specs(name: &str, outputs: usize, inputs: usize) -> [TensorSpec; 2] {
        [
            TensorSpec::new(format!("{name}.weight"), vec![outputs, inputs]),
            TensorSpec::new(format!("{name}.bias"), vec![outputs]),
        ]
    }

    pub(super) fn load(
        name: &str,
        outputs: usize,
        inputs: usize,
        params: &mut Params,
    ) -> std::result::Result<Self, LmError> {
        let weight = params.get(&format!("{name}.weight"), &[outputs, inputs])?;
        let bias = params.get(&format!("{name}.bias"), &[outputs])?;
        Ok(Self { weight, bias })
    }

    /// `[.., in]` to `[.., out]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        e2llm_kernels::trained_linear(x, &self.weight, &self.bias)
    }

    /// The weight of `heads` equal parts of the output, `[heads, out / heads, in]`, in the element type of `x`.
    pub(super) fn heads(&self, heads: usize, x: &Tensor) -> Result<Tensor> {
        let (out, inner) = self.weight.dims2()?;
        like(&self.weight, x)?.reshape((heads, out / heads, inner))
    }

    /// The bias `[out]`, in the element type of `x`.
    pub(super) fn bias(&self, x: &Tensor) -> Result<Tensor> {
        like(&self.bias, x)
    }

    /// Zeros `[out]` that depend on the bias: whatever they are added to leaves its gradient zero, and not missing.
    pub(super) fn zero_bias(&self, x: &Tensor) -> Result<Tensor> {
        // A product with a tensor: candle ends the graph at a product with the number 0.
        let bias = like(&self.bias, x)?;
        &bias * bias.zeros_like()?
    }
}

/// LayerNorm with torch's default epsilon.
#[derive(Debug, Clone)]
pub(super) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
}

impl LayerNorm {
    const EPS: f64 = 1e-5;

    pub(super) fn specs(name: &str, width: usize) -> [TensorSpec; 2] {
        [
            TensorSpec::new(format!("{name}.weight"), vec![width]),
            TensorSpec::new(format!("{name}.bias"), vec![width]),
        ]
    }

    pub(super) fn load(name: &str, width: usize, params: &mut Params) -> std::result::Result<Self, LmError> {
        let weight = params.get(&format!("{name}.weight"), &[width])?;
        let bias = params.get(&format!("{name}.bias"), &[width])?;
        Ok(Self { weight, bias })
    }

    /// `[.., width]`, normalised over the last dimension.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        e2llm_kernels::layer_norm(x, &like(&self.weight, x)?, &like(&self.bias, x)?, Self::EPS)
    }
}

/// A trained tensor in the element type of the activations: variables may be kept in float32 beside bf16
/// activations. The cast is part of the graph.
pub(super) fn like(weight: &Tensor, x: &Tensor) -> Result<Tensor> {
    weight.to_dtype(x.dtype())
}
