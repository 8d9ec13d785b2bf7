//! Activation functions of the feed-forward blocks.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, backend::BackendStorage, bail,
};

use half::bf16;
use std::mem::MaybeUninit;
use std::sync::LazyLock;

use crate::element::{Element, Real, for_dtype, halves, halves_mut, same, storage, written, zeros};
use crate::host;
use crate::profile::{Kind, timer};

/// What a function of one number makes of each of bf16's, by its bits. Few of them come often, so that reading the result is
/// several times faster than computing it, and it is the same to the last bit.
type Table<A> = LazyLock<Box<[A; 1 << 16]>>;

fn table<A: Copy>(f: impl Fn(f32) -> A) -> Box<[A; 1 << 16]> {
    Box::new(std::array::from_fn(|bits| f(bf16::from_bits(bits as u16).widen())))
}

static GELU: Table<bf16> = LazyLock::new(|| table(|x| bf16::narrow(x * x.normal().0)));
static GELU_SLOPE: Table<f32> = LazyLock::new(|| table(gelu_slope));
static SILU: Table<f32> = LazyLock::new(|| table(|z| z * sigmoid(z)));

/// `gate * sigmoid(gate) * up`, element by element, for two tensors of one shape.
///
/// # Errors
/// If shapes, element types or devices differ.
pub fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let _timer = timer(Kind::Elementwise);
    if gate.shape() != up.shape() || gate.dtype() != up.dtype() {
        bail!(
            "silu_mul: gate {:?} {:?} and up {:?} {:?} differ",
            gate.shape(),
            gate.dtype(),
            up.shape(),
            up.dtype()
        );
    }
    gate.contiguous()?.apply_op2(&up.contiguous()?, SiluMul)
}

/// The exact Gaussian error linear unit, `x * Phi(x)`, element by element.
///
/// # Errors
/// If the element type is not supported.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    let _timer = timer(Kind::Elementwise);
    x.contiguous()?.apply_op1(Gelu)
}

struct SiluMul;

struct Gelu;

impl CustomOp2 for SiluMul {
    fn name(&self) -> &'static str {
        "silu_mul"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        al: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        for_dtype!("silu_mul", a.dtype(), T => {
            let (gate, up) = (host::slice::<T>(a, al)?, host::slice::<T>(b, bl)?);
            if up.len() != gate.len() {
                bail!("silu_mul: {} elements and {}", gate.len(), up.len());
            }
            Ok((storage(silu_mul_of(gate, up)), al.shape().clone()))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        a: &CudaStorage,
        al: &Layout,
        b: &CudaStorage,
        bl: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        Ok((crate::cuda::rows::silu_mul((a, al), (b, bl))?, al.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = g.contiguous()?;
        #[cfg(feature = "cuda")]
        if gate.device().is_cuda() {
            let (dgate, dup) = crate::cuda::rows::silu_mul_gradients(gate, up, &grad)?;
            return Ok((Some(dgate), Some(dup)));
        }
        for_dtype!("silu_mul", gate.dtype(), T => {
            let ((a, al), (b, bl), (c, cl)) =
                (gate.storage_and_layout(), up.storage_and_layout(), grad.storage_and_layout());
            let z = host::slice::<T>(host::cpu(&a)?, al)?;
            let u = host::slice::<T>(host::cpu(&b)?, bl)?;
            let g = host::slice::<T>(host::cpu(&c)?, cl)?;
            let (dz, du) = silu_mul_gradients(z, u, g);
            let tensor = |v: Vec<T>| Tensor::from_vec(v, gate.shape(), gate.device());
            Ok((Some(tensor(dz)?), Some(tensor(du)?)))
        })
    }
}

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        for_dtype!("gelu", x.dtype(), T => {
            Ok((storage(gelu_of(host::slice::<T>(x, layout)?)), layout.shape().clone()))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        Ok((crate::cuda::rows::gelu((x, layout))?, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let grad = g.contiguous()?;
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return Ok(Some(crate::cuda::rows::gelu_gradient(x, &grad)?));
        }
        for_dtype!("gelu", x.dtype(), T => {
            let ((a, al), (b, bl)) = (x.storage_and_layout(), grad.storage_and_layout());
            let xd = host::slice::<T>(host::cpu(&a)?, al)?;
            let mut dx = host::slice::<T>(host::cpu(&b)?, bl)?.to_vec();
            gelu_gradient(xd, &mut dx);
            Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
        })
    }
}

/// `f` of every number, on all threads and compiled once per vector width, for which `f` is an `#[inline(always)]` closure.
#[inline(always)]
fn of_each<X: Copy + Sync, Y: Copy + Send>(x: &[X], f: impl Fn(X) -> Y + Sync) -> Vec<Y> {
    let write = |y: &mut [MaybeUninit<Y>]| {
        host::for_rows(
            y,
            1,
            #[inline(always)]
            |first, y| {
                for (y, x) in y.iter_mut().zip(&x[first..]) {
                    y.write(f(*x));
                }
            },
        );
    };
    // SAFETY: there are as many as are written.
    unsafe { written(x.len(), write) }
}

/// As [`of_each`], of as many numbers of both.
#[inline(always)]
fn of_pairs<X: Copy + Sync, Y: Copy + Send>(a: &[X], b: &[X], f: impl Fn(X, X) -> Y + Sync) -> Vec<Y> {
    assert_eq!(a.len(), b.len(), "two of each");
    let write = |y: &mut [MaybeUninit<Y>]| {
        host::for_rows(
            y,
            1,
            #[inline(always)]
            |first, y| {
                for ((y, a), b) in y.iter_mut().zip(&a[first..]).zip(&b[first..]) {
                    y.write(f(*a, *b));
                }
            },
        );
    };
    // SAFETY: there are as many of both as are written.
    unsafe { written(a.len(), write) }
}

/// [`silu_mul`] of as many numbers of both.
pub(crate) fn silu_mul_of<T: Element>(gate: &[T], up: &[T]) -> Vec<T> {
    let _timer = timer(Kind::Elementwise);
    if let (Some(gate), Some(up)) = (halves(gate), halves(up)) {
        let silu: &[f32; 1 << 16] = &SILU;
        let looked_up = of_pairs(
            gate,
            up,
            #[inline(always)]
            |gate: bf16, up: bf16| bf16::narrow(silu[usize::from(gate.to_bits())] * up.widen()),
        );
        if let Ok(y) = same(looked_up) {
            return y;
        }
    }
    of_pairs(
        gate,
        up,
        #[inline(always)]
        |gate: T, up: T| {
            let z = gate.widen();
            T::narrow(z * sigmoid(z) * up.widen())
        },
    )
}

/// Gradients of gates and values, given that of the products.
pub(crate) fn silu_mul_gradients<T: Element>(gate: &[T], up: &[T], g: &[T]) -> (Vec<T>, Vec<T>) {
    let _timer = timer(Kind::Elementwise);
    let (mut dz, mut du) = (zeros::<T>(gate.len()), zeros::<T>(gate.len()));
    host::for_rows2(
        &mut dz,
        &mut du,
        1,
        #[inline(always)]
        |first, dz, du| {
            let inputs = gate[first..].iter().zip(&up[first..]).zip(&g[first..]);
            for ((dz, du), ((z, u), g)) in dz.iter_mut().zip(du).zip(inputs) {
                let (z, u, g) = (z.widen(), u.widen(), g.widen());
                let s = sigmoid(z);
                *du = T::narrow(g * z * s);
                *dz = T::narrow(g * u * s * (T::Acc::ONE + z * (T::Acc::ONE - s)));
            }
        },
    );
    (dz, du)
}

/// [`gelu`] of numbers.
pub(crate) fn gelu_of<T: Element>(x: &[T]) -> Vec<T> {
    let _timer = timer(Kind::Elementwise);
    if let Some(x) = halves(x) {
        let gelu: &[bf16; 1 << 16] = &GELU;
        let looked_up = of_each(
            x,
            #[inline(always)]
            |x: bf16| gelu[usize::from(x.to_bits())],
        );
        if let Ok(y) = same(looked_up) {
            return y;
        }
    }
    of_each(
        x,
        #[inline(always)]
        |x: T| {
            let x = x.widen();
            T::narrow(x * x.normal().0)
        },
    )
}

/// Makes of gradients of [`gelu`]'s values those of its inputs `x`.
pub(crate) fn gelu_gradient<T: Element>(x: &[T], g: &mut [T]) {
    let _timer = timer(Kind::Elementwise);
    if let (Some(x), Some(g)) = (halves(x), halves_mut(g)) {
        let slope: &[f32; 1 << 16] = &GELU_SLOPE;
        return host::for_rows(
            g,
            1,
            #[inline(always)]
            |first, g| {
                for (g, x) in g.iter_mut().zip(&x[first..]) {
                    *g = bf16::narrow(g.widen() * slope[usize::from(x.to_bits())]);
                }
            },
        );
    }
    host::for_rows(
        g,
        1,
        #[inline(always)]
        |first, g| {
            for (g, x) in g.iter_mut().zip(&x[first..]) {
                *g = T::narrow(g.widen() * gelu_slope(x.widen()));
            }
        },
    );
}

#[inline(always)]
fn gelu_slope<A: Real>(x: A) -> A {
    let (cdf, density) = x.normal();
    cdf + x * density
}

#[inline(always)]
fn sigmoid<A: Real>(z: A) -> A {
    A::ONE / (A::ONE + (-z).exp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn bf16_is_float32_rounded_to_the_last_bit() -> Result<()> {
        let all: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).filter(|x| !x.is_nan()).collect();
        let x = Tensor::from_vec(all.clone(), all.len(), &Device::Cpu)?;
        let other = Tensor::from_vec(all.iter().rev().copied().collect(), all.len(), &Device::Cpu)?;
        let bits = |t: Tensor| -> Result<Vec<u16>> {
            Ok(t.to_vec1::<f32>()?.into_iter().map(|v| <bf16 as Element>::narrow(v).to_bits()).collect())
        };
        let halves = |t: Tensor| -> Result<Vec<u16>> {
            Ok(t.to_vec1::<bf16>()?.into_iter().map(bf16::to_bits).collect())
        };
        let (wide, wide_other) = (x.to_dtype(DType::F32)?, other.to_dtype(DType::F32)?);
        assert_eq!(halves(gelu(&x)?)?, bits(gelu(&wide)?)?);
        assert_eq!(halves(silu_mul(&x, &other)?)?, bits(silu_mul(&wide, &wide_other)?)?);
        Ok(())
    }
}
