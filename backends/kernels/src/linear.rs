//! Linear layer with a frozen weight.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};

use crate::element::{for_dtype, storage};
use crate::host;
use crate::host_product::{Term, rows_times_columns, rows_times_rows};

/// `x weight^T + bias` with frozen `weight` and `bias`.
///
/// `x` is `[.., in]`, `weight` `[out, in]`, `bias` `[out]`; the result is `[.., out]`. The backward pass returns the
/// gradient of `x` and nothing else, whatever the other two are: candle's own product computes and keeps the
/// gradient of a frozen weight, which for LoRA is more work than everything that is trained. A trained matrix goes
/// through [`Tensor::matmul`].
///
/// # Errors
/// If sizes, element types or devices do not fit together.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let _timer = crate::profile::timer(crate::profile::Kind::Product);
    let (out, inner) = weight.dims2()?;
    let Some((&last, leading)) = x.dims().split_last() else { bail!("linear: x is a scalar") };
    if last != inner {
        bail!("linear: x of shape {:?} does not fit weight {:?}", x.shape(), weight.shape());
    }
    if let Some(bias) = bias
        && bias.dims() != [out]
    {
        bail!("linear: bias of shape {:?} does not fit weight {:?}", bias.shape(), weight.shape());
    }
    for t in [Some(weight), bias].into_iter().flatten() {
        if t.dtype() != x.dtype() {
            bail!("linear: x is {:?} but a parameter is {:?}", x.dtype(), t.dtype());
        }
    }
    let mut shape = leading.to_vec();
    shape.push(out);
    let op = Linear {
        weight: weight.detach().contiguous()?,
        bias: bias.map(|b| b.detach().contiguous()).transpose()?,
        shape: shape.into(),
    };
    x.contiguous()?.apply_op1(op)
}

struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    shape: Shape,
}

impl CustomOp1 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (weight, weight_layout) = self.weight.storage_and_layout();
        let (n, k) = self.weight.dims2()?;
        for_dtype!("linear", self.weight.dtype(), T => {
            let x = host::slice::<T>(x, layout)?;
            let w = host::slice::<T>(host::cpu(&weight)?, weight_layout)?;
            let bias = self.bias.as_ref().map(host::to_vec::<T>).transpose()?;
            let y = rows_times_columns(&[Term::new(x, w, k)], bias.as_deref(), n);
            Ok((storage(y), self.shape.clone()))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        let (n, k) = self.weight.dims2()?;
        let m = self.shape.elem_count() / n.max(1);
        let (weight, weight_layout) = self.weight.storage_and_layout();
        let rows = Layout::contiguous_with_offset((m, k), layout.start_offset());
        let weight = crate::cuda::gpu(&weight)?;
        let mut y = x.matmul(weight, (1, m, n, k), &rows, &weight_layout.transpose(0, 1)?)?;
        if let Some(bias) = &self.bias {
            crate::cuda::rows::add_bias(&mut y, bias)?;
        }
        Ok((y, self.shape.clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let (n, k) = self.weight.dims2()?;
        let g = g.contiguous()?.reshape(((), n))?;
        let dx = match (x.device().is_cpu(), x.dtype()) {
            (true, DType::BF16) => {
                // candle would widen the whole weight.
                let (gs, gl) = g.storage_and_layout();
                let (ws, wl) = self.weight.storage_and_layout();
                let g = host::slice::<half::bf16>(host::cpu(&gs)?, gl)?;
                let w = host::slice::<half::bf16>(host::cpu(&ws)?, wl)?;
                Tensor::from_vec(rows_times_rows(&[Term::new(g, w, n)], k), x.shape(), x.device())?
            }
            _ => g.matmul(&self.weight)?.reshape(x.shape())?,
        };
        Ok(Some(dx))
    }
}
