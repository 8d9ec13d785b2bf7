//! The optimiser step and sums of squares.

use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaViewMut, DevicePtr, DeviceRepr, PushKernelArg,
};
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

/// Elements of the part of a tensor that one row of a table stands for, and the blocks that share it.
const PART: usize = 1 << 16;
const BLOCKS: usize = 4;

/// Rows of addresses and a number of elements, one for each [`PART`] of each list of float32 tensors of one size.
fn table<'a>(
    dev: &CudaDevice,
    lists: impl IntoIterator<Item = Vec<&'a Tensor>>,
) -> Result<(CudaSlice<u64>, usize)> {
    let (mut table, mut rows) = (Vec::new(), 0);
    for list in lists {
        let count = list.first().map_or(0, |t| t.elem_count());
        let addresses = list.iter().map(|t| address(t, dev)).collect::<Result<Vec<_>>>()?;
        for first in (0..count).step_by(PART) {
            table.extend(addresses.iter().map(|a| a + 4 * first as u64));
            table.push(PART.min(count - first) as u64);
            rows += 1;
        }
    }
    Ok((dev.clone_htod(&table)?, rows))
}

/// One AdamW step of tensors that are [`alike`] and whose shapes have been compared; p, m and v are written to.
pub(crate) fn adamw_all(updates: &[Update<'_>], dev: &CudaDevice, factors: &Factors) -> Result<()> {
    let (table, rows) = table(dev, updates.iter().map(|u| vec![u.p, u.m, u.v, u.grad]))?;
    if rows == 0 {
        return Ok(());
    }
    let f = function(dev, OPTIMIZER, "", "", "adamw_all")?;
    let mut args = f.builder();
    args.arg(&table).arg(factors);
    launch(&mut args, grid((rows * BLOCKS, 1, 1), (256, 1), 0))
}

/// Sum of the squares of all elements of contiguous tensors on one device; waits for the device once.
pub(crate) fn sum_of_squares(tensors: &[Tensor], dev: &CudaDevice) -> Result<f64> {
    /// Partial sums per tensor.
    const PARTS: usize = 264;
    if tensors.is_empty() {
        return Ok(0.);
    }
    if alike(tensors, dev) {
        let (table, rows) = table(dev, tensors.iter().map(|t| vec![t]))?;
        if rows == 0 {
            return Ok(0.);
        }
        let mut parts = alloc::<f32>(dev, rows * BLOCKS)?;
        let f = function(dev, OPTIMIZER, "", "", "sum_of_squares_all")?;
        let mut args = f.builder();
        args.arg(&table).arg(&mut parts);
        launch(&mut args, grid((rows * BLOCKS, 1, 1), (256, 1), 0))?;
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
