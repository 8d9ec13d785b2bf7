//! The optimiser step and the gradient norm.

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Result, Tensor, WithDType, bail};
use half::bf16;
use rayon::prelude::*;
use std::cell::Cell;

use crate::element::{Element, for_dtype};
use crate::host;
use crate::simd::{sum, vectorised};

/// Settings of [`adamw_step`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

impl Default for AdamW {
    /// torch's defaults.
    fn default() -> Self {
        Self { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 1e-2 }
    }
}

/// One AdamW step, in place and in one pass, in torch's order of operations.
///
/// `p` (the float32 master weights) and its moments `m` and `v` are contiguous `f32` tensors of one shape, changed in
/// place; `v` starts as zeros and so does `m`. `grad` has the same number of elements in `f32` or `bf16` and is multiplied by
/// `grad_scale` first (clipping, loss scale, accumulation). `step` counts from 1.
///
/// # Errors
/// If shapes, element types or devices do not fit together, or `step` is 0.
pub fn adamw_step(
    p: &Tensor,
    m: &Tensor,
    v: &Tensor,
    grad: &Tensor,
    settings: &AdamW,
    step: usize,
    grad_scale: f64,
) -> Result<()> {
    check(p, m, v, grad)?;
    let factors = Factors::new(settings, step, grad_scale)?;
    let grad = grad.detach().contiguous()?;
    with_mut(p, |p| with_mut(m, |m| with_mut(v, |v| update(p, m, v, &grad, &factors))))
}

/// The constants of one step, rounded once.
#[repr(C)]
pub(crate) struct Factors {
    decay: f32,
    beta1: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    step_size: f32,
    root: f32,
    eps: f32,
    scale: f32,
}

impl Factors {
    fn new(settings: &AdamW, step: usize, grad_scale: f64) -> Result<Self> {
        let Some(exponent) = i32::try_from(step).ok().filter(|&s| s > 0) else {
            bail!("adamw_step: step {step} is out of range, steps count from 1");
        };
        Ok(Factors {
            decay: (1. - settings.lr * settings.weight_decay) as f32,
            beta1: settings.beta1 as f32,
            one_minus_beta1: (1. - settings.beta1) as f32,
            beta2: settings.beta2 as f32,
            one_minus_beta2: (1. - settings.beta2) as f32,
            step_size: (settings.lr / (1. - settings.beta1.powi(exponent))) as f32,
            root: (1. - settings.beta2.powi(exponent)).sqrt() as f32,
            eps: settings.eps as f32,
            scale: grad_scale as f32,
        })
    }
}

fn check(p: &Tensor, m: &Tensor, v: &Tensor, grad: &Tensor) -> Result<()> {
    for (name, t) in [("p", p), ("m", m), ("v", v)] {
        if t.dtype() != DType::F32 || !t.is_contiguous() {
            bail!("adamw_step: {name} must be a contiguous f32 tensor, got {:?} {:?}", t.dtype(), t.shape());
        }
        if t.shape() != p.shape() || grad.shape() != p.shape() {
            bail!(
                "adamw_step: shapes differ: p {:?}, {name} {:?}, grad {:?}",
                p.shape(),
                t.shape(),
                grad.shape()
            );
        }
    }
    Ok(())
}

/// What one step needs of a tensor: as the arguments of [`adamw_step`].
#[derive(Clone, Copy, Debug)]
pub struct Update<'a> {
    /// Master weights, written to.
    pub p: &'a Tensor,
    /// First moment, written to.
    pub m: &'a Tensor,
    /// Second moment, written to.
    pub v: &'a Tensor,
    /// Gradient.
    pub grad: &'a Tensor,
}

/// [`adamw_step`] of many tensors; on a GPU in one launch where all gradients are contiguous and float32.
///
/// # Errors
/// As [`adamw_step`].
pub fn adamw_steps(updates: &[Update<'_>], settings: &AdamW, step: usize, grad_scale: f64) -> Result<()> {
    #[cfg(feature = "cuda")]
    if let Some(candle_core::Device::Cuda(dev)) = updates.first().map(|u| u.p.device()) {
        let all = updates.iter().flat_map(|u| [u.p, u.m, u.v, u.grad]);
        if crate::cuda::optimizer::alike(all, dev) {
            updates.iter().try_for_each(|u| check(u.p, u.m, u.v, u.grad))?;
            let factors = Factors::new(settings, step, grad_scale)?;
            return crate::cuda::optimizer::adamw_all(updates, dev, &factors);
        }
    }
    for u in updates {
        adamw_step(u.p, u.m, u.v, u.grad, settings, step, grad_scale)?;
    }
    Ok(())
}

/// The elements of a contiguous `f32` tensor, for writing.
enum Lent<'a> {
    Cpu(&'a mut [f32]),
    #[cfg(feature = "cuda")]
    Cuda(candle_core::cuda_backend::cudarc::driver::CudaViewMut<'a, f32>),
}

/// Lends the elements of a contiguous `f32` tensor for writing. candle lends one tensor at a time; nesting this lends
/// several, which is what lets one pass update weights and moments together.
fn with_mut(t: &Tensor, f: impl FnOnce(Lent) -> Result<()>) -> Result<()> {
    struct Lend<F>(Cell<Option<F>>);
    impl<F: FnOnce(Lent) -> Result<()>> InplaceOp1 for Lend<F> {
        fn name(&self) -> &'static str {
            "adamw_step"
        }
        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
            match (storage, layout.contiguous_offsets(), self.0.take()) {
                (CpuStorage::F32(data), Some((start, end)), Some(f)) => f(Lent::Cpu(&mut data[start..end])),
                _ => bail!("adamw_step: expected a contiguous f32 tensor"),
            }
        }
        #[cfg(feature = "cuda")]
        fn cuda_fwd(&self, storage: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
            match (layout.contiguous_offsets(), self.0.take()) {
                (Some((start, end)), Some(f)) => {
                    f(Lent::Cuda(storage.as_cuda_slice_mut::<f32>()?.slice_mut(start..end)))
                }
                _ => bail!("adamw_step: expected a contiguous f32 tensor"),
            }
        }
    }
    t.inplace_op1(&Lend(Cell::new(Some(f))))
}

fn update(p: Lent, m: Lent, v: Lent, grad: &Tensor, factors: &Factors) -> Result<()> {
    let (gs, gl) = grad.storage_and_layout();
    match (p, m, v) {
        (Lent::Cpu(p), Lent::Cpu(m), Lent::Cpu(v)) => match grad.dtype() {
            DType::F32 => update_rows(p, m, v, host::slice::<f32>(host::cpu(&gs)?, gl)?, factors),
            DType::BF16 => update_rows(p, m, v, host::slice::<bf16>(host::cpu(&gs)?, gl)?, factors),
            other => bail!("adamw_step: gradient of type {other:?} is not supported (f32, bf16)"),
        },
        #[cfg(feature = "cuda")]
        (Lent::Cuda(p), Lent::Cuda(m), Lent::Cuda(v)) => {
            crate::cuda::optimizer::adamw(p, m, v, grad, factors)?;
        }
        #[cfg(feature = "cuda")]
        _ => bail!("adamw_step: p, m and v are on different devices"),
    }
    Ok(())
}

fn update_rows<T: Element<Acc = f32>>(p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[T], c: &Factors) {
    const CHUNK: usize = 16 * 1024;
    let chunks = p.par_chunks_mut(CHUNK).zip(m.par_chunks_mut(CHUNK)).zip(v.par_chunks_mut(CHUNK));
    chunks.zip(g.par_chunks(CHUNK)).for_each(|(((p, m), v), g)| {
        vectorised(
            #[inline(always)]
            || {
                for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
                    let g = g.widen() * c.scale;
                    *p *= c.decay;
                    *m = c.beta1 * *m + c.one_minus_beta1 * g;
                    *v = c.beta2 * *v + c.one_minus_beta2 * g * g;
                    *p -= c.step_size * *m / (v.sqrt() / c.root + c.eps);
                }
            },
        );
    });
}

/// Euclidean norm of all elements of all tensors together, summed in float64.
///
/// # Errors
/// If an element type is not supported.
pub fn global_norm(tensors: &[&Tensor]) -> Result<f64> {
    #[cfg(feature = "cuda")]
    if let Some(candle_core::Device::Cuda(dev)) = tensors.first().map(|t| t.device()) {
        let dense = tensors.iter().map(|t| t.contiguous()).collect::<Result<Vec<_>>>()?;
        return Ok(crate::cuda::optimizer::sum_of_squares(&dense, dev)?.sqrt());
    }
    let mut squares = 0f64;
    for t in tensors {
        let t = t.contiguous()?;
        let (s, l) = t.storage_and_layout();
        squares += for_dtype!("global_norm", t.dtype(), T => {
            sum_of_squares(host::slice::<T>(host::cpu(&s)?, l)?)
        });
    }
    Ok(squares.sqrt())
}

fn sum_of_squares<T: Element>(data: &[T]) -> f64 {
    const CHUNK: usize = 16 * 1024;
    let parts: Vec<f64> = data
        .par_chunks(CHUNK)
        .map(|c| {
            vectorised(
                #[inline(always)]
                || {
                    sum(
                        c,
                        #[inline(always)]
                        |x| {
                            let x = x.widen().to_f64();
                            x * x
                        },
                    )
                },
            )
        })
        .collect();
    // In order, so that the result does not depend on the number of threads.
    parts.iter().sum()
}
