//! Cross-entropy over a vocabulary.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{
    CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, WithDType, backend::BackendStorage, bail,
};
use std::sync::Mutex;

use crate::element::{Element, Real, for_dtype, storage};
use crate::host;
use crate::simd::{max, sum};

/// Target value of a row that takes no part in the loss.
pub const IGNORED: u32 = u32::MAX;

/// Sum over the kept rows of `-log softmax(logits)[target]`, in nats, as a scalar `f32` (`f64` for `f64` logits).
///
/// `logits` is `[N, V]`, `targets` `[N]` of `u32`, where [`IGNORED`] drops a row. Divide by the number of kept rows
/// for the mean. Only one float per row is kept for the backward pass; the gradient is written in one pass.
///
/// # Errors
/// If sizes do not fit together or, on the CPU, if a target is not below `V`. On a GPU such a target makes the loss
/// NaN, since reporting it would stall the device.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let (n, _) = logits.dims2()?;
    if targets.dims() != [n] || targets.dtype() != DType::U32 {
        bail!(
            "cross_entropy: targets {:?} {:?} do not fit logits {:?}",
            targets.dtype(),
            targets.shape(),
            logits.shape()
        );
    }
    logits.contiguous()?.apply_op2(&targets.contiguous()?, CrossEntropy { lse: Mutex::new(None) })
}

/// `lse` keeps the logarithm of each row's sum of exponentials from forward to backward.
struct CrossEntropy {
    lse: Mutex<Option<Tensor>>,
}

impl CrossEntropy {
    fn keep(&self, lse: Tensor) {
        *self.lse.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(lse);
    }

    fn kept(&self) -> Result<Tensor> {
        match &*self.lse.lock().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Some(lse) => Ok(lse.clone()),
            None => bail!("cross_entropy: backward without forward"),
        }
    }
}

impl CustomOp2 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        t: &CpuStorage,
        tl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (n, v) = xl.shape().dims2()?;
        let targets = host::slice::<u32>(t, tl)?;
        check_targets(targets, v)?;
        for_dtype!("cross_entropy", x.dtype(), T => {
            let (loss, lse) = loss_of(host::slice::<T>(x, xl)?, targets, v);
            self.keep(Tensor::from_vec(lse, n, &candle_core::Device::Cpu)?);
            Ok((storage(vec![<T as Element>::Acc::real(loss)]), Shape::from(())))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        xl: &Layout,
        t: &CudaStorage,
        tl: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (loss, lse) = crate::cuda::loss::cross_entropy((x, xl), (t, tl))?;
        self.keep(lse);
        Ok((loss, Shape::from(())))
    }

    fn bwd(
        &self,
        logits: &Tensor,
        targets: &Tensor,
        _loss: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (_, v) = logits.dims2()?;
        let kept = self.kept()?;
        #[cfg(feature = "cuda")]
        if logits.device().is_cuda() {
            return Ok((Some(crate::cuda::loss::cross_entropy_gradient(logits, targets, &kept, g)?), None));
        }
        for_dtype!("cross_entropy", logits.dtype(), T => {
            let ((xs, xl), (ts, tl)) = (logits.storage_and_layout(), targets.storage_and_layout());
            let x = host::slice::<T>(host::cpu(&xs)?, xl)?;
            let targets = host::slice::<u32>(host::cpu(&ts)?, tl)?;
            let lse = host::to_vec::<<T as Element>::Acc>(&kept)?;
            let g = g.to_scalar::<<T as Element>::Acc>()?;
            let mut dx = x.to_vec();
            gradient_in_place(&mut dx, targets, &lse, g, v);
            Ok((Some(Tensor::from_vec(dx, logits.shape(), logits.device())?), None))
        })
    }
}

/// Refuses targets that are not below the vocabulary's size `v`.
pub(crate) fn check_targets(targets: &[u32], v: usize) -> Result<()> {
    let mut rows = targets.iter().enumerate();
    if let Some((row, target)) = rows.find(|&(_, &t)| t != IGNORED && t as usize >= v) {
        bail!("cross_entropy: target {target} of row {row} is not below the vocabulary size {v}");
    }
    Ok(())
}

/// The sum of the losses of rows of `v` logits, and the logarithm of each row's sum of exponentials.
pub(crate) fn loss_of<T: Element>(x: &[T], targets: &[u32], v: usize) -> (f64, Vec<T::Acc>) {
    let mut lse = vec![T::Acc::ZERO; targets.len()];
    host::for_work(
        &mut lse,
        1,
        v,
        #[inline(always)]
        |first, out| {
            for (i, out) in out.iter_mut().enumerate() {
                if targets[first + i] != IGNORED {
                    *out = log_sum_exp(&x[(first + i) * v..][..v]);
                }
            }
        },
    );
    let mut loss = 0f64;
    for (row, (&target, lse)) in targets.iter().zip(&lse).enumerate() {
        if target != IGNORED {
            loss += lse.to_f64() - x[row * v + target as usize].to_f64();
        }
    }
    (loss, lse)
}

/// Makes of logits the gradient of `g` times their loss.
pub(crate) fn gradient_in_place<T: Element>(
    x: &mut [T],
    targets: &[u32],
    lse: &[T::Acc],
    g: T::Acc,
    v: usize,
) {
    host::for_rows(
        x,
        v,
        #[inline(always)]
        |first, rows| {
            for (x, (&target, &lse)) in
                rows.chunks_exact_mut(v).zip(targets[first..].iter().zip(&lse[first..]))
            {
                if target == IGNORED {
                    x.fill(T::narrow(T::Acc::ZERO));
                    continue;
                }
                let target = target as usize;
                let of_target = ((x[target].widen() - lse).exp() - T::Acc::ONE) * g;
                for x in x.iter_mut() {
                    *x = T::narrow((x.widen() - lse).exp() * g);
                }
                x[target] = T::narrow(of_target);
            }
        },
    );
}

#[inline(always)]
fn log_sum_exp<T: Element>(row: &[T]) -> T::Acc {
    let top = max(row);
    let total = sum(
        row,
        #[inline(always)]
        |x| (x.widen() - top).exp(),
    );
    top + total.ln()
}
