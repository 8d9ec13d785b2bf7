//! A linear layer, dense or quantised and mostly frozen, with an optional low-rank update.

use crate::quantised::QuantisedMatrix;
use crate::stack::Stack;
use candle_core::quantized::QTensor;
use candle_core::{D, DType, Device, Result, Tensor, bail};
use std::sync::Arc;

/// A low-rank update `scaling * B A x`.
#[derive(Debug, Clone)]
pub struct Lora {
    /// `[r, in]`.
    pub a: Tensor,
    /// `[out, r]`.
    pub b: Tensor,
    /// `lora_alpha / r`.
    pub scaling: f64,
}

#[derive(Debug, Clone)]
pub(crate) enum Weight {
    Dense(Tensor),
    /// On the CPU, in blocks this crate multiplies itself.
    Blocks(Arc<QuantisedMatrix>),
    /// Any other kind, multiplied by candle.
    Quantised(Arc<QTensor>),
}

impl Weight {
    /// A quantised matrix in whichever form is fastest here.
    pub(crate) fn quantised(tensor: QTensor) -> Result<Self> {
        Ok(match QuantisedMatrix::new(&tensor)? {
            Some(matrix) => Self::Blocks(Arc::new(matrix)),
            None => Self::Quantised(Arc::new(tensor)),
        })
    }

    /// `x W^T + bias`: `[.., in]` to `[.., out]`.
    pub(crate) fn forward(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        match self {
            // A master weight may be wider than the activations.
            Self::Dense(w) if w.track_op() => e2llm_kernels::dense_linear(x, &w.to_dtype(x.dtype())?, bias),
            Self::Dense(w) => e2llm_kernels::linear(x, w, bias),
            Self::Blocks(q) => with_bias(q.forward(x)?, bias),
            Self::Quantised(q) => with_bias(x.contiguous()?.apply_op1_no_bwd(q.as_ref())?, bias),
        }
    }

    /// Rows by index: `[n]` to `[n, in]`.
    pub(crate) fn rows(&self, ids: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(w) => w.index_select(ids, 0),
            Self::Blocks(q) => q.select(ids),
            Self::Quantised(q) => q.embedding(ids),
        }
    }

    /// The matrix, where it is dense and frozen.
    pub(crate) fn frozen(&self) -> Option<&Tensor> {
        match self {
            Self::Dense(w) if !w.track_op() => Some(w),
            _ => None,
        }
    }

    /// Whether gradients reach the matrix itself.
    pub(crate) fn is_trained(&self) -> bool {
        matches!(self, Self::Dense(w) if w.track_op())
    }

    /// Rows by id, cast to `dtype`: `[n]` to `[n, in]`, with the gradient of a trained matrix.
    pub(crate) fn embed(&self, ids: &[u32], device: &Device, dtype: DType) -> Result<Tensor> {
        let rows = match self {
            Self::Dense(w) if w.track_op() => e2llm_kernels::embedding(w, ids)?,
            _ => self.rows(&Tensor::new(ids, device)?)?,
        };
        rows.to_dtype(dtype)
    }

    pub(crate) fn dense(&self) -> Result<Tensor> {
        match self {
            Self::Dense(w) => Ok(w.clone()),
            Self::Blocks(q) => q.dequantise(),
            Self::Quantised(q) => q.dequantize(&q.device()),
        }
    }
}

fn with_bias(y: Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

/// `y = W x + b + scaling * B A x` with frozen `b`, and `W` unless it is a variable.
///
/// A quantised `W` has no backward pass; loading refuses to train through one.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
    lora: Option<Lora>,
}

impl Linear {
    /// A layer with dense weight `[out, in]` and bias `[out]`.
    pub fn dense(weight: Tensor, bias: Option<Tensor>, lora: Option<Lora>) -> Self {
        Self { weight: Weight::Dense(weight), bias, lora }
    }

    pub(crate) fn new(weight: Weight, bias: Option<Tensor>, lora: Option<Lora>) -> Self {
        Self { weight, bias, lora }
    }

    /// Applies the layer: `[.., in]` to `[.., out]`.
    ///
    /// # Errors
    /// Shapes or element types that do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let _timer = e2llm_kernels::profile::timer(e2llm_kernels::profile::Kind::Product);
        let Some(lora) = &self.lora else {
            return self.weight.forward(x, self.bias.as_ref());
        };
        // Variables may be kept wider than the activations (float32 master weights): cast inside the graph.
        let (a, b) = (lora.a.to_dtype(x.dtype())?, lora.b.to_dtype(x.dtype())?);
        if let Weight::Dense(w) = &self.weight
            && !w.track_op()
            && w.device().is_cpu()
        {
            return e2llm_kernels::lora_linear(x, w, self.bias.as_ref(), (&a, &b), lora.scaling);
        }
        let y = self.weight.forward(x, self.bias.as_ref())?;
        let rows = x.elem_count() / x.dim(D::Minus1)?;
        let x = x.reshape((rows, x.dim(D::Minus1)?))?;
        let low = (x.matmul(&a.t()?)? * lora.scaling)?;
        let update = low.matmul(&b.t()?)?.reshape(y.shape())?;
        y + update
    }

    /// The layer in the form that whole layers are made of, if it fits there.
    pub(crate) fn adapted(&self) -> Option<e2llm_kernels::Adapted> {
        if self.weight.is_trained() {
            return None;
        }
        let Weight::Dense(weight) = &self.weight else { return None };
        let lora = self.lora.as_ref().map(|l| (l.a.clone(), l.b.clone(), l.scaling));
        let adapted = e2llm_kernels::Adapted { weight: weight.clone(), bias: self.bias.clone(), lora };
        adapted.is_supported().then_some(adapted)
    }

    /// The frozen weight of a dense layer with neither bias nor update.
    pub(crate) fn frozen_weight(&self) -> Option<&Tensor> {
        self.weight.frozen().filter(|_| self.bias.is_none() && self.lora.is_none())
    }

    /// The frozen weight and the bias of a dense layer without an update.
    #[cfg(feature = "cuda")]
    pub(crate) fn plain(&self) -> Option<e2llm_kernels::Plain<'_>> {
        match &self.weight {
            Weight::Dense(weight) if self.lora.is_none() && !self.weight.is_trained() => {
                Some(e2llm_kernels::Plain { weight, bias: self.bias.as_ref() })
            }
            _ => None,
        }
    }

    /// The low-rank update, where there is one.
    pub fn lora(&self) -> Option<&Lora> {
        self.lora.as_ref()
    }

    pub(crate) fn set_lora(&mut self, lora: Option<Lora>) {
        self.lora = lora;
    }

    /// The same layer with other tensors in its low-rank update; unchanged where it has none.
    pub(crate) fn with_lora_tensors(&self, next: &mut impl Iterator<Item = Tensor>) -> Result<Self> {
        let mut copy = self.clone();
        if let Some(lora) = &mut copy.lora {
            match (next.next(), next.next()) {
                (Some(a), Some(b)) => (lora.a, lora.b) = (a, b),
                _ => bail!("too few tensors for the low-rank updates of a layer"),
            }
        }
        Ok(copy)
    }

    /// Adds the low-rank update to the weight, which becomes dense, and forgets it.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn merge_lora(&mut self) -> Result<()> {
        if let Some(lora) = self.lora.take() {
            self.weight = Weight::Dense(merged(&self.weight.dense()?, &lora)?);
        }
        Ok(())
    }

    /// As [`Linear::merge_lora`], of linears that read the same input. On a GPU the new weights stand one below the other, if all
    /// are new: one without an update may be another model's as well, and a copy would be held beside it.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub(crate) fn merge_loras(linears: &mut [&mut Self]) -> Result<()> {
        let all_new = linears.iter().all(|l| l.lora.is_some());
        let rows =
            linears.iter().filter_map(|l| l.lora.as_ref()).map(|l| l.b.dim(0)).sum::<Result<usize>>()?;
        let (mut stack, mut row) = (Stack::new(rows), 0);
        for linear in linears {
            linear.merge_lora()?;
            if let Weight::Dense(weight) = &linear.weight
                && all_new
                && weight.device().is_cuda()
                && !weight.track_op()
            {
                let outputs = weight.dim(0)?;
                linear.weight = Weight::Dense(stack.put(weight, row)?);
                row += outputs;
            }
        }
        Ok(())
    }

    /// The dense weight `[out, in]` with the update added.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn merged_weight(&self) -> Result<Tensor> {
        let weight = self.weight.dense()?;
        self.lora.as_ref().map_or(Ok(weight.clone()), |lora| merged(&weight, lora))
    }

    /// The bias `[out]`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }
}

/// `W + scaling * B A`, summed in float32 at least.
fn merged(weight: &Tensor, lora: &Lora) -> Result<Tensor> {
    let wide = if weight.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let update = (lora.b.to_dtype(wide)?.matmul(&lora.a.to_dtype(wide)?)? * lora.scaling)?;
    (weight.to_dtype(wide)? + update)?.to_dtype(weight.dtype())
}
