//! Parts of a model that are one node of candle's graph, with any number of inputs and a backward pass of their own.

use candle_core::TensorId;
use candle_core::backend::BackendStorage;
use candle_core::backprop::GradStore;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor, bail,
};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A function of several tensors with its gradients.
pub(crate) trait Node: Send + Sync + 'static {
    /// What the backward pass needs of the forward pass beside its inputs.
    type Kept: Send;

    /// The value for detached `inputs`, the same every time, and if `keep` what the backward pass needs.
    fn forward(&self, inputs: &[Tensor], keep: bool) -> Result<(Tensor, Option<Self::Kept>)>;

    /// What was not kept.
    fn again(&self, inputs: &[Tensor]) -> Result<Self::Kept> {
        match self.forward(inputs, true)?.1 {
            Some(kept) => Ok(kept),
            None => bail!("block: nothing was kept"),
        }
    }

    /// Gradients of the inputs, given that of the value.
    fn backward(&self, inputs: &[Tensor], kept: Self::Kept, g: &Tensor) -> Result<Vec<Option<Tensor>>>;
}

/// How the gradients of a node's variables reach the store.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// Through candle's graph, which adds each of them to zeros.
    Graph,
    /// By [`backward`] itself, without any work.
    Direct,
}

thread_local! {
    /// What nodes have delivered directly during the [`backward`] of this thread.
    static DELIVERED: RefCell<Option<HashMap<TensorId, Tensor>>> = const { RefCell::new(None) };
}

/// Gradients of a scalar, as [`Tensor::backward`], which does not work where whole layers of a GPU are trained: those hand the
/// gradients of their variables over directly instead of having candle add each of them to zeros.
///
/// # Errors
/// Whatever a backward pass returns.
pub fn backward(loss: &Tensor) -> Result<GradStore> {
    /// Puts back what an outer pass has been given, however this one ends.
    struct Outer(Option<HashMap<TensorId, Tensor>>);
    impl Drop for Outer {
        fn drop(&mut self) {
            DELIVERED.set(self.0.take());
        }
    }
    let _outer = Outer(DELIVERED.replace(Some(HashMap::new())));
    let mut store = loss.backward()?;
    #[expect(
        clippy::iter_over_hash_type,
        reason = "each gradient is put to its own variable, in whatever order"
    )]
    for (id, gradient) in DELIVERED.take().unwrap_or_default() {
        let sum = match store.get_id(id) {
            Some(other) => (other + gradient)?,
            None => gradient,
        };
        store.insert_id(id, sum);
    }
    Ok(store)
}

fn deliver(id: TensorId, gradient: Tensor) -> Result<()> {
    DELIVERED.with_borrow_mut(|delivered| {
        let Some(delivered) = delivered else {
            bail!("layers that are trained as a whole need e2llm_kernels::backward instead of candle's");
        };
        let sum = match delivered.remove(&id) {
            Some(other) => (other + gradient)?,
            None => gradient,
        };
        delivered.insert(id, sum);
        Ok(())
    })
}

/// Which inputs take a gradient.
pub(crate) fn tracked(inputs: &[&Tensor]) -> Vec<bool> {
    inputs.iter().map(|t| t.track_op() && t.dtype().is_float()).collect()
}

/// The value of a node. Unless `keep`, the backward pass runs the forward pass again for what it needs.
///
/// # Errors
/// Whatever the node returns, here or in the backward pass.
pub(crate) fn apply<N: Node>(inputs: &[&Tensor], node: N, keep: bool, delivery: Delivery) -> Result<Tensor> {
    let detached: Vec<Tensor> = inputs.iter().map(|t| t.detach()).collect();
    let tracked = tracked(inputs);
    let train = tracked.contains(&true);
    let (output, kept) = node.forward(&detached, train && keep)?;
    if !train {
        return Ok(output);
    }
    let is_direct = |i: usize| delivery == Delivery::Direct && inputs[i].is_variable();
    let of_inputs = (0..inputs.len()).filter(|&i| tracked[i]);
    let (direct, mut linked): (Vec<usize>, Vec<usize>) = of_inputs.partition(|&i| is_direct(i));
    if linked.is_empty() {
        // Something must tie the value to the graph.
        linked.extend(direct.first());
    }
    let run: Arc<dyn Pending> = Arc::new(Run {
        node,
        inputs: detached,
        kept: Mutex::new(kept),
        gradients: Mutex::new(vec![None; inputs.len()]),
        direct: direct.into_iter().map(|i| (i, inputs[i].id())).collect(),
    });
    let value = Mutex::new(Some(output.detach().contiguous()?));
    if let [only] = linked[..] {
        return inputs[only].apply_op1(Output { run, value, input: Some(only) });
    }
    // candle's operations take up to three arguments, so a chain of one-element nodes ties the inputs to the output.
    // The backward pass visits the output first, which fills `gradients`, and the nodes of the chain after it, each
    // of which hands the gradients of its own two inputs to candle.
    let mut chain = Tensor::zeros(1, candle_core::DType::F32, output.device())?;
    for pair in linked.chunks(2) {
        let (first, second) = (pair[0], pair.get(1).copied());
        let link = Link { run: run.clone(), first, second };
        chain = match second {
            Some(second) => inputs[first].apply_op3(inputs[second], &chain, link)?,
            None => inputs[first].apply_op2(&chain, link)?,
        };
    }
    chain.apply_op1(Output { run, value, input: None })
}

/// One call of a node, waiting for its backward pass.
struct Run<N: Node> {
    node: N,
    inputs: Vec<Tensor>,
    kept: Mutex<Option<N::Kept>>,
    gradients: Mutex<Vec<Option<Tensor>>>,
    /// Variables that are not linked to the value.
    direct: Vec<(usize, TensorId)>,
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
        let mut gradients = self.node.backward(&self.inputs, kept, g)?;
        for &(i, id) in &self.direct {
            if let Some(gradient) = gradients.get_mut(i).and_then(Option::take) {
                deliver(id, gradient)?;
            }
        }
        *lock(&self.gradients) = gradients;
        Ok(())
    }

    fn take(&self, index: usize) -> Option<Tensor> {
        lock(&self.gradients).get_mut(index)?.take()
    }
}

/// The value, tied to the one input that is linked or to the chain.
///
/// It is taken out by the forward pass, so that the graph does not hold it a second time.
struct Output {
    run: Arc<dyn Pending>,
    value: Mutex<Option<Tensor>>,
    /// The one input, where there is no chain.
    input: Option<usize>,
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

    fn bwd(&self, to: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        self.run.backward(g)?;
        match self.input {
            Some(i) => Ok(self.run.take(i)),
            None => Ok(Some(to.zeros_like()?)),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    /// `x w`, element by element.
    struct Times;

    impl Node for Times {
        type Kept = ();

        fn forward(&self, inputs: &[Tensor], _: bool) -> Result<(Tensor, Option<()>)> {
            Ok(((&inputs[0] * &inputs[1])?, Some(())))
        }

        fn backward(&self, inputs: &[Tensor], (): (), g: &Tensor) -> Result<Vec<Option<Tensor>>> {
            Ok(vec![Some((g * &inputs[1])?), Some((g * &inputs[0])?)])
        }
    }

    fn loss(x: &Tensor, w: &Tensor, delivery: Delivery) -> Result<Tensor> {
        let y = apply(&[x, w], Times, true, delivery)?;
        // The variable a second time, and outside of nodes.
        (apply(&[&y, w], Times, true, delivery)? + w)?.sum_all()
    }

    #[test]
    fn delivered_gradients_are_those_of_the_graph() -> Result<()> {
        let w = Var::new(&[2f64, -3.], &Device::Cpu)?;
        for x in [Tensor::new(&[5f64, 7.], &Device::Cpu)?, Var::new(&[5f64, 7.], &Device::Cpu)?.into_inner()]
        {
            let graph = loss(&x, &w, Delivery::Graph)?.backward()?;
            let direct = backward(&loss(&x, &w, Delivery::Direct)?)?;
            let values = |store: &GradStore, t: &Tensor| store.get(t).map(Tensor::to_vec1::<f64>).transpose();
            assert_eq!(values(&direct, &w)?, Some(vec![2. * 2. * 5. + 1., 2. * -3. * 7. + 1.]));
            assert_eq!(values(&direct, &w)?, values(&graph, &w)?);
            assert_eq!(values(&direct, &x)?, values(&graph, &x)?);
            assert_eq!(values(&direct, &x)?.is_some(), x.is_variable());
        }
        Ok(())
    }

    #[test]
    fn candles_own_pass_is_refused_where_gradients_are_delivered() -> Result<()> {
        let w = Var::new(&[2f64, -3.], &Device::Cpu)?;
        let loss = loss(&w.as_tensor().copy()?, &w, Delivery::Direct)?;
        let error = loss.backward().err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("e2llm_kernels::backward"), "{error}");
        Ok(())
    }
}
