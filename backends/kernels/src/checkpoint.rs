//! Activation checkpointing: memory for one more forward pass.

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor, Var,
    bail,
};
use std::sync::{Arc, Mutex, PoisonError};

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
    let detached: Vec<Tensor> = inputs.iter().map(|t| t.detach()).collect();
    let output = f(&detached)?;
    let tracked: Vec<bool> = inputs.iter().map(|t| t.track_op() && t.dtype().is_float()).collect();
    if !tracked.contains(&true) {
        return Ok(output);
    }
    let run = Arc::new(Run {
        f: Box::new(f),
        inputs: detached,
        tracked: tracked.clone(),
        gradients: Mutex::new(vec![None; inputs.len()]),
    });
    // candle's operations take up to three arguments, so a chain of one-element nodes ties the inputs to the output.
    // The backward pass visits the output first, which fills `gradients`, and the nodes of the chain after it, each
    // of which hands the gradients of its own two inputs to candle.
    let mut chain = Tensor::zeros(1, candle_core::DType::F32, output.device())?;
    let indices: Vec<usize> = (0..inputs.len()).filter(|&i| tracked[i]).collect();
    for pair in indices.chunks(2) {
        let (first, second) = (pair[0], pair.get(1).copied());
        let link = Link { run: run.clone(), first, second };
        chain = match second {
            Some(second) => inputs[first].apply_op3(inputs[second], &chain, link)?,
            None => inputs[first].apply_op2(&chain, link)?,
        };
    }
    chain.apply_op1(Output { run, value: Mutex::new(Some(output.detach().contiguous()?)) })
}

/// One checkpointed call: what the backward pass needs to run it again.
struct Run {
    f: Function,
    inputs: Vec<Tensor>,
    tracked: Vec<bool>,
    gradients: Mutex<Vec<Option<Tensor>>>,
}

impl Run {
    /// Runs the function with gradients, starting from the gradient `g` of its output.
    fn again(&self, g: &Tensor) -> Result<()> {
        let mut arguments = Vec::with_capacity(self.inputs.len());
        for (input, &tracked) in self.inputs.iter().zip(&self.tracked) {
            arguments.push(if tracked { Var::from_tensor(input)?.into_inner() } else { input.clone() });
        }
        let output = (self.f)(&arguments)?;
        let mut store = output.apply_op1(Seed(g.clone()))?.backward()?;
        let found = arguments.iter().map(|a| store.remove(a)).collect();
        *self.gradients.lock().unwrap_or_else(PoisonError::into_inner) = found;
        Ok(())
    }

    fn take(&self, index: usize) -> Option<Tensor> {
        self.gradients.lock().unwrap_or_else(PoisonError::into_inner)[index].take()
    }
}

/// The result of the checkpointed call, tied to the chain.
///
/// The value is taken out by the forward pass, so that the graph does not hold it a second time.
struct Output {
    run: Arc<Run>,
    value: Mutex<Option<Tensor>>,
}

impl Output {
    fn take(&self) -> Result<Tensor> {
        match self.value.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(value) => Ok(value),
            None => bail!("checkpoint: forward ran twice"),
        }
    }
}

impl CustomOp1 for Output {
    fn name(&self) -> &'static str {
        "checkpoint"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let value = self.take()?;
        let (storage, layout) = value.storage_and_layout();
        match &*storage {
            Storage::Cpu(s) => Ok((s.try_clone(layout)?, layout.shape().clone())),
            _ => bail!("checkpoint: the inputs are on the cpu but the output is not"),
        }
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        let value = self.take()?;
        let (storage, layout) = value.storage_and_layout();
        match &*storage {
            Storage::Cuda(s) => Ok((s.try_clone(layout)?, layout.shape().clone())),
            _ => bail!("checkpoint: the inputs are on a gpu but the output is not"),
        }
    }

    fn bwd(&self, chain: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        self.run.again(g)?;
        Ok(Some(chain.zeros_like()?))
    }
}

/// A node of the chain; its value is never read.
struct Link {
    run: Arc<Run>,
    first: usize,
    second: Option<usize>,
}

impl CustomOp2 for Link {
    fn name(&self) -> &'static str {
        "checkpoint_link"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        chain: &CpuStorage,
        l: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok((chain.try_clone(l)?, l.shape().clone()))
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        chain: &CudaStorage,
        l: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        Ok((chain.try_clone(l)?, l.shape().clone()))
    }

    fn bwd(
        &self,
        _: &Tensor,
        chain: &Tensor,
        _: &Tensor,
        _: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((self.run.take(self.first), chain.track_op().then(|| chain.zeros_like()).transpose()?))
    }
}

impl CustomOp3 for Link {
    fn name(&self) -> &'static str {
        "checkpoint_link"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        chain: &CpuStorage,
        l: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok((chain.try_clone(l)?, l.shape().clone()))
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        chain: &CudaStorage,
        l: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        Ok((chain.try_clone(l)?, l.shape().clone()))
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        chain: &Tensor,
        _: &Tensor,
        _: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let second = self.second.and_then(|i| self.run.take(i));
        Ok((self.run.take(self.first), second, chain.track_op().then(|| chain.zeros_like()).transpose()?))
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
        use candle_core::backend::BackendDevice;
        Ok((s.device().zeros_impl(&Shape::from(()), candle_core::DType::F32)?, Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}
