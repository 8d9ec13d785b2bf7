//! RMS and layer normalisation over the last dimension.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::element::{Element, Real, for_dtype, storage, written, zeros};
use crate::host;
use crate::profile::{Kind, timer};
use crate::simd::{sum, sum2, sum3, vectorised};
use std::mem::MaybeUninit;

/// `weight * x / sqrt(mean(x^2) + eps)` over the last dimension of `x` (`[.., d]`), `weight` `[d]`.
///
/// The arithmetic is that of the reference models: the quotient is taken in float32 and rounded to the type of `x`
/// before it is multiplied by `weight`. Gradients reach `x`, and `weight` if it is trained.
///
/// # Errors
/// If sizes, element types or devices do not fit together.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let _timer = timer(Kind::Norm);
    check("rms_norm", x, &[weight])?;
    x.contiguous()?.apply_op2(&weight.contiguous()?, RmsNorm { eps })
}

/// `weight * (x - mean) / sqrt(variance + eps) + bias` over the last dimension of `x` (`[.., d]`), `weight` and
/// `bias` `[d]`.
///
/// Gradients reach `x`, and `weight` and `bias` if they are trained; frozen ones cost nothing.
///
/// # Errors
/// If sizes, element types or devices do not fit together.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let _timer = timer(Kind::Norm);
    check("layer_norm", x, &[weight, bias])?;
    x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, LayerNorm { eps })
}

fn check(op: &str, x: &Tensor, parameters: &[&Tensor]) -> Result<()> {
    for p in parameters {
        if x.dims().last().is_none_or(|&d| p.dims() != [d]) {
            bail!("{op}: parameter of shape {:?} does not fit x of shape {:?}", p.shape(), x.shape());
        }
        if p.dtype() != x.dtype() {
            bail!("{op}: x is {:?} but a parameter is {:?}", x.dtype(), p.dtype());
        }
    }
    Ok(())
}

struct RmsNorm {
    eps: f64,
}

struct LayerNorm {
    eps: f64,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        for_dtype!("rms_norm", x_dtype(x), T => {
            let (x, w) = (host::slice::<T>(x, xl)?, host::slice::<T>(w, wl)?);
            let eps = <T as Element>::Acc::real(self.eps);
            Ok((storage(rms_rows(x, w, eps)), xl.shape().clone()))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        xl: &Layout,
        w: &CudaStorage,
        wl: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        Ok((crate::cuda::rows::norm((x, xl), (w, wl), None, self.eps)?, xl.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [dx, dw, _] = gradients(x, w, g, self.eps, false, w.track_op())?;
        Ok((dx, dw))
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        for_dtype!("layer_norm", x_dtype(x), T => {
            let (x, w, b) = (host::slice::<T>(x, xl)?, host::slice::<T>(w, wl)?, host::slice::<T>(b, bl)?);
            let eps = <T as Element>::Acc::real(self.eps);
            Ok((storage(layer_rows(x, w, b, eps)), xl.shape().clone()))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        xl: &Layout,
        w: &CudaStorage,
        wl: &Layout,
        b: &CudaStorage,
        bl: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        Ok((crate::cuda::rows::norm((x, xl), (w, wl), Some((b, bl)), self.eps)?, xl.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dx, dw, db] = gradients(x, w, g, self.eps, true, w.track_op() || b.track_op())?;
        Ok((dx, dw.filter(|_| w.track_op()), db.filter(|_| b.track_op())))
    }
}

fn x_dtype(x: &CpuStorage) -> candle_core::DType {
    use candle_core::backend::BackendStorage;
    x.dtype()
}

/// Mean (zero unless `centred`) and reciprocal of the root mean square deviation of a row.
#[inline(always)]
fn moments<T: Element>(x: &[T], eps: T::Acc, centred: bool) -> (T::Acc, T::Acc) {
    let n = T::Acc::real(x.len() as f64);
    let mean = if centred {
        sum(
            x,
            #[inline(always)]
            |x| x.widen(),
        ) / n
    } else {
        T::Acc::ZERO
    };
    let squares = sum(
        x,
        #[inline(always)]
        |x| {
            let c = x.widen() - mean;
            c * c
        },
    );
    (mean, T::Acc::ONE / (squares / n + eps).sqrt())
}

/// What `of` writes for every row of `x`, `d` wide: all of it.
#[inline(always)]
fn rows_of<T: Element>(x: &[T], d: usize, of: impl Fn(&[T], &mut [MaybeUninit<T>]) + Sync) -> Vec<T> {
    let write = |y: &mut [MaybeUninit<T>]| {
        host::for_rows(
            y,
            d,
            #[inline(always)]
            |first, rows| {
                for (y, x) in rows.chunks_exact_mut(d).zip(x[first * d..].chunks_exact(d)) {
                    of(x, y);
                }
            },
        );
    };
    assert!(d > 0 && x.len().is_multiple_of(d), "rows of {d} of {} elements", x.len());
    // SAFETY: both users write a row for each of `x`, whose length is that of their weights.
    unsafe { written(x.len(), write) }
}

/// [`rms_norm`] of rows as long as the weight.
pub(crate) fn rms_rows<T: Element>(x: &[T], w: &[T], eps: T::Acc) -> Vec<T> {
    let _timer = timer(Kind::Norm);
    rows_of(
        x,
        w.len(),
        #[inline(always)]
        |x, y| rms_row(x, w, eps, y),
    )
}

/// [`layer_norm`] of rows as long as weight and bias.
pub(crate) fn layer_rows<T: Element>(x: &[T], w: &[T], b: &[T], eps: T::Acc) -> Vec<T> {
    let _timer = timer(Kind::Norm);
    rows_of(
        x,
        w.len(),
        #[inline(always)]
        |x, y| layer_row(x, w, b, eps, y),
    )
}

#[inline(always)]
fn rms_row<T: Element>(x: &[T], w: &[T], eps: T::Acc, y: &mut [MaybeUninit<T>]) {
    let (_, r) = moments(x, eps, false);
    for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
        y.write(T::narrow(T::narrow(x.widen() * r).widen() * w.widen()));
    }
}

#[inline(always)]
fn layer_row<T: Element>(x: &[T], w: &[T], b: &[T], eps: T::Acc, y: &mut [MaybeUninit<T>]) {
    let (mean, r) = moments(x, eps, true);
    for (((y, x), w), b) in y.iter_mut().zip(x).zip(w).zip(b) {
        y.write(T::narrow((x.widen() - mean) * r * w.widen() + b.widen()));
    }
}

/// Gradients of input, weight and bias.
fn gradients(
    x: &Tensor,
    w: &Tensor,
    g: &Tensor,
    eps: f64,
    centred: bool,
    trained: bool,
) -> Result<[Option<Tensor>; 3]> {
    let g = g.contiguous()?;
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return crate::cuda::rows::norm_gradients(x, w, &g, eps, centred, trained);
    }
    for_dtype!("norm backward", x.dtype(), T => {
        let ((xs, xl), (ws, wl), (gs, gl)) = (x.storage_and_layout(), w.storage_and_layout(), g.storage_and_layout());
        let xd = host::slice::<T>(host::cpu(&xs)?, xl)?;
        let wd = host::slice::<T>(host::cpu(&ws)?, wl)?;
        let gd = host::slice::<T>(host::cpu(&gs)?, gl)?;
        let eps = <T as Element>::Acc::real(eps);
        let dx = x.track_op().then(|| {
            let mut dx = zeros::<T>(xd.len());
            add_input_gradient(xd, wd, gd, eps, centred, &mut dx);
            Tensor::from_vec(dx, x.shape(), x.device())
        });
        let dx = dx.transpose()?;
        if !trained {
            return Ok([dx, None, None]);
        }
        let (dw, db) = parameter_gradients(xd, gd, wd.len(), eps, centred);
        let tensor = |v: Vec<T>| Tensor::from_vec(v, w.shape(), w.device());
        Ok([dx, Some(tensor(dw)?), Some(tensor(db)?)])
    })
}

/// Adds the gradient of the input, given that of the result, to `dx`.
pub(crate) fn add_input_gradient<T: Element>(
    x: &[T],
    w: &[T],
    g: &[T],
    eps: T::Acc,
    centred: bool,
    dx: &mut [T],
) {
    let _timer = timer(Kind::Norm);
    let d = w.len();
    let n = T::Acc::real(d as f64);
    host::for_rows(
        dx,
        d,
        #[inline(always)]
        |first, rows| {
            let inputs = x[first * d..].chunks_exact(d).zip(g[first * d..].chunks_exact(d));
            for (dx, (x, g)) in rows.chunks_exact_mut(d).zip(inputs) {
                let (g, w, x) = (&g[..d], &w[..d], &x[..d]);
                let (mean, r) = moments(x, eps, centred);
                let along = sum3(
                    g,
                    w,
                    x,
                    #[inline(always)]
                    |g, w, x| g.widen() * w.widen() * (x.widen() - mean),
                );
                let along = along * r / n;
                let shift = if centred {
                    sum2(
                        g,
                        w,
                        #[inline(always)]
                        |g, w| g.widen() * w.widen(),
                    ) / n
                } else {
                    T::Acc::ZERO
                };
                for i in 0..d {
                    let normal = (x[i].widen() - mean) * r;
                    let change = (g[i].widen() * w[i].widen() - shift - normal * along) * r;
                    dx[i] = T::narrow(dx[i].widen() + change);
                }
            }
        },
    );
}

/// Column sums of `g * normalised x` and of `g`, over blocks of rows in a fixed order so that results repeat.
fn parameter_gradients<T: Element>(
    x: &[T],
    g: &[T],
    d: usize,
    eps: T::Acc,
    centred: bool,
) -> (Vec<T>, Vec<T>) {
    const BLOCK: usize = 256;
    let blocks: Vec<[Vec<T::Acc>; 2]> = x
        .par_chunks(BLOCK * d)
        .zip(g.par_chunks(BLOCK * d))
        .map(|(x, g)| {
            vectorised(
                #[inline(always)]
                || {
                    let (mut dw, mut db) = (vec![T::Acc::ZERO; d], vec![T::Acc::ZERO; d]);
                    for (x, g) in x.chunks_exact(d).zip(g.chunks_exact(d)) {
                        let (mean, r) = moments(x, eps, centred);
                        for (((dw, db), x), g) in dw.iter_mut().zip(&mut db).zip(x).zip(g) {
                            *dw += g.widen() * ((x.widen() - mean) * r);
                            *db += g.widen();
                        }
                    }
                    [dw, db]
                },
            )
        })
        .collect();
    let total = |part: usize| -> Vec<T> {
        (0..d)
            .map(|i| {
                let mut sum = T::Acc::ZERO;
                for block in &blocks {
                    sum += block[part][i];
                }
                T::narrow(sum)
            })
            .collect()
    };
    (total(0), total(1))
}
