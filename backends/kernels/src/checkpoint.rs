//! Activation checkpointing: memory for one more forward pass.

use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Tensor, Var};

use crate::node::{self, Delivery, Node};

type Function = Box<dyn Fn(&[Tensor]) -> Result<Tensor> + Send + Sync>;

/// Runs `f` on `inputs` without keeping what it computes inside; the backward pass runs it again.
///
/// Gradients reach every tensor in `inputs` and **nothing else**: a trained tensor that `f` uses (LoRA matrices, the
/// weights of a norm) must be one of `inputs`, and `f` must take it from its argument instead of capturing it. A
/// captured `Var` would silently get no gradient. Frozen tensors may be captured. `f` must compute the same values
/// every time it is called. If no input is tracked, this is a plain call of `f`.
///
/// There may be any number of inputs, of different element types; an integer input is passed through.
///
/// # Errors
/// Whatever `f` returns, here or in the backward pass.
pub fn checkpoint(
    inputs: &[&Tensor],
    f: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    let tracked = node::tracked(inputs);
    node::apply(inputs, Checkpoint { f: Box::new(f), tracked }, false, Delivery::Graph)
}

struct Checkpoint {
    f: Function,
    tracked: Vec<bool>,
}

impl Node for Checkpoint {
    type Kept = ();

    fn forward(&self, inputs: &[Tensor], _: bool) -> Result<(Tensor, Option<()>)> {
        Ok(((self.f)(inputs)?, None))
    }

    /// The backward pass runs the function itself.
    fn again(&self, _: &[Tensor]) -> Result<()> {
        Ok(())
    }

    /// Runs the function with gradients, starting from the gradient `g` of its output.
    fn backward(&self, inputs: &[Tensor], (): (), g: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let mut arguments = Vec::with_capacity(inputs.len());
        for (input, &tracked) in inputs.iter().zip(&self.tracked) {
            arguments.push(if tracked { Var::from_tensor(input)?.into_inner() } else { input.clone() });
        }
        let output = (self.f)(&arguments)?;
        let mut store = node::backward(&output.apply_op1(Seed(g.clone()))?)?;
        Ok(arguments.iter().map(|a| store.remove(a)).collect())
    }
}

/// Starts a backward pass from a given gradient instead of from ones.
struct Seed(Tensor);

impl CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        "seed"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.]), Shape::from(())))
    }

    fn cuda_fwd(&self, s: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        use candle_core::backend::{BackendDevice, BackendStorage};
        Ok((s.device().zeros_impl(&Shape::from(()), candle_core::DType::F32)?, Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}
