//! The optimiser step and sums of squares.

use candle_core::cuda_backend::cudarc::driver::{CudaViewMut, DevicePtr, DeviceRepr, PushKernelArg};
use candle_core::{CudaDevice, DType, Device, Result, Tensor, backend::BackendStorage, bail};

use super::{Module, alloc, blocks, for_gpu_dtype, function, gpu, grid, kernel, launch, over, view};
use crate::optimizer::{Factors, Update};

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

/// The address of a float32 tensor's first element.
fn address(t: &Tensor, dev: &CudaDevice) -> Result<u64> {
    let (storage, layout) = t.storage_and_layout();
    let data = view::<f32>(gpu(&storage)?, layout)?;
    Ok(data.device_ptr(&dev.cuda_stream()).0)
}

/// Whether one launch can do for all of these: contiguous and float32 on one device.
pub(crate) fn alike<'a>(tensors: impl IntoIterator<Item = &'a Tensor>, dev: &CudaDevice) -> bool {
    let device = Device::Cuda(dev.clone());
    let fits = |t: &Tensor| t.dtype() == DType::F32 && t.is_contiguous() && t.device().same_device(&device);
    tensors.into_iter().all(fits)
}

/// One AdamW step of tensors that are [`alike`] and whose shapes have been compared; p, m and v are written to.
pub(crate) fn adamw_all(updates: &[Update<'_>], dev: &CudaDevice, factors: &Factors) -> Result<()> {
    const BLOCKS: usize = 16;
    let mut table = Vec::with_capacity(5 * updates.len());
    for u in updates {
        for t in [u.p, u.m, u.v, u.grad] {
            table.push(address(t, dev)?);
        }
        table.push(u.p.elem_count() as u64);
    }
    let table = dev.clone_htod(&table)?;
    let f = function(dev, OPTIMIZER, "", "", "adamw_all")?;
    let mut args = f.builder();
    args.arg(&table).arg(factors);
    launch(&mut args, grid((BLOCKS, updates.len(), 1), (256, 1), 0))
}

/// Sum of the squares of all elements of contiguous tensors on one device; waits for the device once.
pub(crate) fn sum_of_squares(tensors: &[Tensor], dev: &CudaDevice) -> Result<f64> {
    /// Partial sums per tensor.
    const PARTS: usize = 264;
    if tensors.is_empty() {
        return Ok(0.);
    }
    if alike(tensors, dev) {
        /// Partial sums per tensor where there are many.
        const FEW: usize = 16;
        let parts_each = if tensors.len() > FEW { FEW } else { PARTS };
        let mut table = Vec::with_capacity(2 * tensors.len());
        for t in tensors {
            table.extend([address(t, dev)?, t.elem_count() as u64]);
        }
        let table = dev.clone_htod(&table)?;
        let mut parts = alloc::<f32>(dev, parts_each * tensors.len())?;
        let f = function(dev, OPTIMIZER, "", "", "sum_of_squares_all")?;
        let mut args = f.builder();
        args.arg(&table).arg(&mut parts);
        launch(&mut args, grid((parts_each, tensors.len(), 1), (256, 1), 0))?;
        return Ok(dev.clone_dtoh(&parts)?.iter().map(|&x| f64::from(x)).sum());
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
