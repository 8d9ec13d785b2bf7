//! The optimiser step and sums of squares.

use candle_core::cuda_backend::cudarc::driver::{CudaViewMut, DeviceRepr, PushKernelArg};
use candle_core::{CudaDevice, Result, Tensor, backend::BackendStorage, bail};

use super::{Module, alloc, blocks, for_gpu_dtype, gpu, kernel, launch, over, view};
use crate::optimizer::Factors;

const OPTIMIZER: Module = Module { name: "optimizer", source: include_str!("optimizer.cu") };

// SAFETY: `Factors` is `repr(C)` and holds nothing but floats, as the struct of the same name in the kernel source.
unsafe impl DeviceRepr for Factors {}

/// One AdamW step over contiguous buffers of equal length.
pub(crate) fn adamw(
    mut p: CudaViewMut<f32>,
    mut m: CudaViewMut<f32>,
    mut v: CudaViewMut<f32>,
    grad: &Tensor,
    factors: &Factors,
) -> Result<()> {
    let (gs, gl) = grad.storage_and_layout();
    let (dev, n) = (gpu(&gs)?.device(), grad.elem_count() as i64);
    for_gpu_dtype!("adamw_step", grad.dtype(), T => {
        let g = view::<T>(gpu(&gs)?, gl)?;
        let f = kernel::<T>(dev, OPTIMIZER, "adamw")?;
        let mut args = f.builder();
        args.arg(&mut p).arg(&mut m).arg(&mut v).arg(&g).arg(&n).arg(factors);
        launch(&mut args, over(grad.elem_count()))
    })
}

/// Sum of the squares of all elements of contiguous tensors on one device; waits for the device once.
pub(crate) fn sum_of_squares(tensors: &[Tensor], dev: &CudaDevice) -> Result<f64> {
    /// Partial sums per tensor.
    const PARTS: usize = 264;
    if tensors.is_empty() {
        return Ok(0.);
    }
    let mut parts = alloc::<f32>(dev, PARTS * tensors.len())?;
    for (i, t) in tensors.iter().enumerate() {
        let (s, l) = t.storage_and_layout();
        if !t.device().same_device(&candle_core::Device::Cuda(dev.clone())) {
            bail!("global_norm: tensors are on different devices");
        }
        for_gpu_dtype!("global_norm", t.dtype(), T => {
            let (x, n) = (view::<T>(gpu(&s)?, l)?, t.elem_count() as i64);
            let mut part = parts.slice_mut(i * PARTS..(i + 1) * PARTS);
            let f = kernel::<T>(dev, OPTIMIZER, "sum_of_squares")?;
            let mut args = f.builder();
            args.arg(&x).arg(&mut part).arg(&n);
            launch(&mut args, blocks(PARTS, 256))?;
        });
    }
    Ok(dev.clone_dtoh(&parts)?.iter().map(|&x| f64::from(x)).sum())
}
