//! Cross-entropy.

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, PushKernelArg};
use candle_core::{CudaDevice, CudaStorage, Layout, Result, Tensor, backend::BackendStorage};

use super::{Module, alloc, blocks, for_gpu_dtype, function, gpu, kernel, launch, storage, tensor, view};

const LOSS: Module = Module { name: "loss", source: include_str!("loss.cu") };
const THREADS: u32 = 512;

/// The summed loss and each row's log-sum-exp.
pub(crate) fn cross_entropy(
    logits: (&CudaStorage, &Layout),
    targets: (&CudaStorage, &Layout),
) -> Result<(CudaStorage, Tensor)> {
    let dev = logits.0.device();
    let (n, v) = logits.1.shape().dims2()?;
    let targets = view::<u32>(targets.0, targets.1)?;
    let (mut lse, mut losses) = (alloc::<f32>(dev, n)?, alloc::<f32>(dev, n)?);
    let (rows, width) = (n as i64, v as i64);
    for_gpu_dtype!("cross_entropy", logits.0.dtype(), T => {
        let x = view::<T>(logits.0, logits.1)?;
        let f = kernel::<T>(dev, LOSS, "cross_entropy")?;
        let mut args = f.builder();
        args.arg(&x).arg(&targets).arg(&mut lse).arg(&mut losses).arg(&rows).arg(&width);
        launch(&mut args, blocks(n.min(65_535), THREADS))?;
    });
    Ok((storage(sum(dev, &losses)?, dev), tensor(lse, n, dev)))
}

/// The sum of all losses.
pub(crate) fn sum(dev: &CudaDevice, losses: &CudaSlice<f32>) -> Result<CudaSlice<f32>> {
    let (rows, mut total) = (losses.len() as i64, alloc::<f32>(dev, 1)?);
    let f = function(dev, LOSS, "", "", "sum_losses")?;
    let mut args = f.builder();
    args.arg(losses).arg(&mut total).arg(&rows);
    launch(&mut args, blocks(1, 1024))?;
    Ok(total)
}

/// The losses of bf16 logits at an address and, if `train`, the gradient of their sum in place of the logits. Targets
/// and losses are addresses too.
pub(crate) fn in_place(
    dev: &CudaDevice,
    logits: u64,
    (targets, losses): (u64, u64),
    (n, v): (usize, usize),
    train: bool,
) -> Result<()> {
    let (rows, width, train) = (n as i64, v as i64, i32::from(train));
    let f = kernel::<half::bf16>(dev, LOSS, "cross_entropy_in_place")?;
    let mut args = f.builder();
    args.arg(&logits).arg(&targets).arg(&losses).arg(&rows).arg(&width).arg(&train);
    launch(&mut args, blocks(n.min(65_535), THREADS))
}

/// Gradient of the logits; `g` is the gradient of the loss, read on the device.
pub(crate) fn cross_entropy_gradient(
    logits: &Tensor,
    targets: &Tensor,
    lse: &Tensor,
    g: &Tensor,
) -> Result<Tensor> {
    let (n, v) = logits.dims2()?;
    let g = g.contiguous()?;
    let ((xs, xl), (ts, tl)) = (logits.storage_and_layout(), targets.storage_and_layout());
    let ((ls, ll), (gs, gl)) = (lse.storage_and_layout(), g.storage_and_layout());
    let dev = gpu(&xs)?.device();
    let (targets, lse, g) =
        (view::<u32>(gpu(&ts)?, tl)?, view::<f32>(gpu(&ls)?, ll)?, view::<f32>(gpu(&gs)?, gl)?);
    let (rows, width) = (n as i64, v as i64);
    for_gpu_dtype!("cross_entropy", logits.dtype(), T => {
        let x = view::<T>(gpu(&xs)?, xl)?;
        let mut dx = alloc::<T>(dev, n * v)?;
        let f = kernel::<T>(dev, LOSS, "cross_entropy_backward")?;
        let mut args = f.builder();
        args.arg(&x).arg(&targets).arg(&lse).arg(&g).arg(&mut dx).arg(&rows).arg(&width);
        launch(&mut args, blocks(n.min(65_535), THREADS))?;
        Ok(tensor(dx, (n, v), dev))
    })
}
