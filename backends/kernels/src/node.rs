//! Parts of a model that are one node of candle's graph, with any number of inputs and a backward pass of their own.

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor, bail,
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A function of several tensors with its gradients.
pub(crate) trait Node: Send + Sync + 'static {
    /// What the backward pass needs of the forward pass beside its inputs.
    type Kept: Send;

    /// The value for detached `inputs`; the same every time.
    fn forward(&self, inputs: &[Tensor]) -> Result<(Tensor, Self::Kept)>;

    /// What was not kept.
    fn again(&self, inputs: &[Tensor]) -> Result<Self::Kept> {
        Ok(self.forward(inputs)?.1)
    }

    /// Gradients of the inputs, given that of the value.
    fn backward(&self, inputs: &[Tensor], kept: Self::Kept, g: &Tensor) -> Result<Vec<Option<Tensor>>>;
}

/// Which inputs take a gradient.
pub(crate) fn tracked(inputs: &[&Tensor]) -> Vec<bool> {
    inputs.iter().map(|t| t.track_op() && t.dtype().is_float()).collect()
}

/// The value of a node. Unless `keep`, the backward pass runs the forward pass again for what it needs.
///
/// # Errors
/// Whatever the node returns, here or in the backward pass.
pub(crate) fn apply<N: Node>(inputs: &[&Tensor], node: N, keep: bool) -> Result<Tensor> {
    let detached: Vec<Tensor> = inputs.iter().map(|t| t.detach()).collect();
    let (output, kept) = node.forward(&detached)?;
    let tracked = tracked(inputs);
    if !tracked.contains(&true) {
        return Ok(output);
    }
    let kept = Mutex::new(keep.then_some(kept));
    let gradients = Mutex::new(vec![None; inputs.len()]);
    let run: Arc<dyn Pending> = Arc::new(Run { node, inputs: detached, kept, gradients });
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

/// One call of a node, waiting for its backward pass.
struct Run<N: Node> {
    node: N,
    inputs: Vec<Tensor>,
    kept: Mutex<Option<N::Kept>>,
    gradients: Mutex<Vec<Option<Tensor>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

trait Pending: Send + Sync {
    fn backward(&self, g: &Tensor) -> Result<()>;
    fn take(&self, index: usize) -> Option<Tensor>;
}

impl<N: Node> Pending for Run<N> {
    fn backward(&self, g: &Tensor) -> Result<()> {
        let kept = lock(&self.kept).take();
        let kept = match kept {
            Some(kept) => kept,
            None => self.node.again(&self.inputs)?,
        };
        *lock(&self.gradients) = self.node.backward(&self.inputs, kept, g)?;
        Ok(())
    }

    fn take(&self, index: usize) -> Option<Tensor> {
        lock(&self.gradients).get_mut(index)?.take()
    }
}

/// The value, tied to the chain.
///
/// It is taken out by the forward pass, so that the graph does not hold it a second time.
struct Output {
    run: Arc<dyn Pending>,
    value: Mutex<Option<Tensor>>,
}

impl Output {
    fn take(&self) -> Result<Tensor> {
        match lock(&self.value).take() {
            Some(value) => Ok(value),
            None => bail!("block: forward ran twice"),
        }
    }
}

impl CustomOp1 for Output {
    fn name(&self) -> &'static str {
        "block"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let value = self.take()?;
        let (storage, layout) = value.storage_and_layout();
        match &*storage {
            Storage::Cpu(s) => Ok((s.try_clone(layout)?, layout.shape().clone())),
            _ => bail!("block: the inputs are on the cpu but the output is not"),
        }
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        let value = self.take()?;
        let (storage, layout) = value.storage_and_layout();
        match &*storage {
            Storage::Cuda(s) => Ok((s.try_clone(layout)?, layout.shape().clone())),
            _ => bail!("block: the inputs are on a gpu but the output is not"),
        }
    }

    fn bwd(&self, chain: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        self.run.backward(g)?;
        Ok(Some(chain.zeros_like()?))
    }
}

/// A node of the chain; its value is never read.
struct Link {
    run: Arc<dyn Pending>,
    first: usize,
    second: Option<usize>,
}

impl CustomOp2 for Link {
    fn name(&self) -> &'static str {
        "block_link"
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
        "block_link"
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
