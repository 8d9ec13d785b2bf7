//! The sum at the end of every block.
//!
//! On the CPU candle adds on one thread, or large tensors on a pool of threads of its own, whose spinning costs a tenth
//! of the time of reading a prompt; this stays on rayon's.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use crate::element::{Element, for_dtype, storage, written};
use crate::host;
use std::mem::MaybeUninit;

/// `x + y` of the same shape, with gradients to both.
///
/// # Errors
/// If shapes, element types or devices differ.
pub fn residual(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() && x.dims() == y.dims() && x.dtype() == y.dtype() {
        return x.contiguous()?.apply_op2(&y.contiguous()?, Residual);
    }
    x + y
}

/// Adds `y` to `x`.
pub(crate) fn add<T: Element>(x: &mut [T], y: &[T]) {
    assert_eq!(x.len(), y.len(), "residuals of different sizes");
    host::for_rows(
        x,
        1,
        #[inline(always)]
        |first, x| {
            for (x, y) in x.iter_mut().zip(&y[first..]) {
                *x = T::narrow(x.widen() + y.widen());
            }
        },
    );
}

struct Residual;

impl CustomOp2 for Residual {
    fn name(&self) -> &'static str {
        "residual"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        y: &CpuStorage,
        yl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        for_dtype!("residual", x.dtype(), T => {
            let (x, y) = (host::slice::<T>(x, xl)?, host::slice::<T>(y, yl)?);
            if x.len() != y.len() {
                bail!("residual: {} elements and {}", x.len(), y.len());
            }
            let write = |sum: &mut [MaybeUninit<T>]| {
                host::for_rows(sum, 1, #[inline(always)] |first, sum| {
                    for ((sum, x), y) in sum.iter_mut().zip(&x[first..]).zip(&y[first..]) {
                        sum.write(T::narrow(x.widen() + y.widen()));
                    }
                });
            };
            // SAFETY: there are as many of both as are written.
            Ok((storage(unsafe { written(x.len(), write) }), xl.shape().clone()))
        })
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(g.clone()), Some(g.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Var};

    #[test]
    fn sums_and_gradients_are_candles() {
        for dtype in [DType::F32, DType::BF16] {
            let new = || {
                let values = Tensor::randn(0f32, 1.0, (3, 20_000), &Device::Cpu).unwrap();
                Var::from_tensor(&values.to_dtype(dtype).unwrap()).unwrap()
            };
            let (x, y) = (new(), new());
            let ours = residual(&x, &y).unwrap();
            let theirs = (x.as_tensor() + y.as_tensor()).unwrap();
            let values =
                |t: &Tensor| t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(values(&ours), values(&theirs));
            let (a, b) = (ours.sqr().unwrap().backward().unwrap(), theirs.sqr().unwrap().backward().unwrap());
            for var in [&x, &y] {
                assert_eq!(values(a.get(var).unwrap()), values(b.get(var).unwrap()));
            }
        }
    }
}
