//! Element types of tensors and the wider types their arithmetic is done in.

use candle_core::{CpuStorage, WithDType};
use half::bf16;
use std::any::Any;
use std::mem::MaybeUninit;

/// A type that sums and transcendental functions are computed in: `f32`, or `f64` for `f64` tensors.
pub(crate) trait Real: Element<Acc = Self> + std::ops::Neg<Output = Self> {
    const ZERO: Self;
    const ONE: Self;
    const NEG_INFINITY: Self;
    const INFINITY: Self;
    fn real(v: f64) -> Self;
    fn exp(self) -> Self;
    fn ln(self) -> Self;
    fn sqrt(self) -> Self;
    /// Value of the standard normal distribution function and of its density.
    fn normal(self) -> (Self, Self);
    /// The larger of two values; a NaN in `other` is ignored, the caller's sums still see it.
    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        if other > self { other } else { self }
    }
}

/// A tensor element that is widened for arithmetic and rounded once on the way out.
pub(crate) trait Element: WithDType {
    type Acc: Real;
    fn widen(self) -> Self::Acc;
    fn narrow(v: Self::Acc) -> Self;
}

impl Real for f32 {
    const ZERO: f32 = 0.;
    const ONE: f32 = 1.;
    const NEG_INFINITY: f32 = f32::NEG_INFINITY;
    const INFINITY: f32 = f32::INFINITY;
    #[inline(always)]
    fn real(v: f64) -> f32 {
        v as f32
    }
    #[inline(always)]
    fn exp(self) -> f32 {
        crate::simd::exp(self)
    }
    #[inline(always)]
    fn ln(self) -> f32 {
        f32::ln(self)
    }
    #[inline(always)]
    fn sqrt(self) -> f32 {
        f32::sqrt(self)
    }
    #[inline(always)]
    fn normal(self) -> (f32, f32) {
        crate::simd::normal(self)
    }
}

impl Real for f64 {
    const ZERO: f64 = 0.;
    const ONE: f64 = 1.;
    const NEG_INFINITY: f64 = f64::NEG_INFINITY;
    const INFINITY: f64 = f64::INFINITY;
    #[inline(always)]
    fn real(v: f64) -> f64 {
        v
    }
    #[inline(always)]
    fn exp(self) -> f64 {
        f64::exp(self)
    }
    #[inline(always)]
    fn ln(self) -> f64 {
        f64::ln(self)
    }
    #[inline(always)]
    fn sqrt(self) -> f64 {
        f64::sqrt(self)
    }
    #[inline(always)]
    fn normal(self) -> (f64, f64) {
        let cdf = 0.5 * candle_core::cpu::erf::erfc_f64(-self * std::f64::consts::FRAC_1_SQRT_2);
        (cdf, crate::simd::INV_SQRT_2PI * f64::exp(-0.5 * self * self))
    }
}

impl Element for f32 {
    type Acc = f32;
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    fn narrow(v: f32) -> f32 {
        v
    }
}

impl Element for f64 {
    type Acc = f64;
    #[inline(always)]
    fn widen(self) -> f64 {
        self
    }
    #[inline(always)]
    fn narrow(v: f64) -> f64 {
        v
    }
}

// Written with integer operations because half's own conversions branch on NaN and so do not vectorise.
impl Element for bf16 {
    type Acc = f32;
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits((self.to_bits() as u32) << 16)
    }
    #[inline(always)]
    fn narrow(v: f32) -> bf16 {
        let bits = v.to_bits();
        let nearest_even = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
        bf16::from_bits(if v.is_nan() { 0x7fc0 } else { nearest_even })
    }
}

/// `n` elements that `write` writes: a large block is not filled with zeros first, which takes as long as writing it once.
///
/// # Safety
/// `write` must write every element, or not return.
pub(crate) unsafe fn written<T: Copy>(n: usize, write: impl FnOnce(&mut [MaybeUninit<T>])) -> Vec<T> {
    let mut elements = Vec::with_capacity(n);
    write(&mut elements.spare_capacity_mut()[..n]);
    // SAFETY: the capacity is there, and the caller vouches for the elements.
    unsafe { elements.set_len(n) };
    elements
}

/// The same vector where both types are one.
pub(crate) fn same<T: 'static, U: 'static>(elements: Vec<T>) -> Result<Vec<U>, Vec<T>> {
    let mut elements = Some(elements);
    let any: &mut dyn Any = &mut elements;
    match any.downcast_mut().and_then(Option::<Vec<U>>::take) {
        Some(same) => Ok(same),
        None => Err(elements.unwrap_or_default()),
    }
}

/// `n` zeros.
pub(crate) fn zeros<T: Element>(n: usize) -> Vec<T> {
    vec![T::from_f64(0.); n]
}

/// The storage of a new CPU tensor.
pub(crate) fn storage<T: WithDType>(data: Vec<T>) -> CpuStorage {
    T::to_cpu_storage_owned(data)
}

/// The same slice if its elements are their own accumulator type.
pub(crate) fn widened<T: Element>(data: &[T]) -> Option<&[T::Acc]> {
    (T::DTYPE == <T::Acc as WithDType>::DTYPE).then(|| {
        // SAFETY: equal DTYPE means that both are the same type, since each type has its own.
        unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), data.len()) }
    })
}

/// The same slice if its elements are bf16.
pub(crate) fn halves<T: Element>(data: &[T]) -> Option<&[bf16]> {
    (T::DTYPE == bf16::DTYPE).then(|| {
        // SAFETY: as in `widened`.
        unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), data.len()) }
    })
}

/// As [`halves`], for writing.
pub(crate) fn halves_mut<T: Element>(data: &mut [T]) -> Option<&mut [bf16]> {
    (T::DTYPE == bf16::DTYPE).then(|| {
        // SAFETY: as in `widened`.
        unsafe { std::slice::from_raw_parts_mut(data.as_mut_ptr().cast(), data.len()) }
    })
}

/// Sums as float32, if that is what they are.
pub(crate) fn floats<A: Real>(sums: &[A]) -> Option<&[f32]> {
    (A::DTYPE == f32::DTYPE).then(|| {
        // SAFETY: as in `widened`.
        unsafe { std::slice::from_raw_parts(sums.as_ptr().cast(), sums.len()) }
    })
}

/// As [`floats`], for writing.
pub(crate) fn floats_mut<A: Real>(sums: &mut [A]) -> Option<&mut [f32]> {
    (A::DTYPE == f32::DTYPE).then(|| {
        // SAFETY: as in `widened`.
        unsafe { std::slice::from_raw_parts_mut(sums.as_mut_ptr().cast(), sums.len()) }
    })
}

/// Runs `$body` with `$t` bound to the element type of `$dtype`; other types are an error that names `$op`.
macro_rules! for_dtype {
    ($op:expr, $dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $t = f32;
                $body
            }
            candle_core::DType::BF16 => {
                type $t = half::bf16;
                $body
            }
            candle_core::DType::F64 => {
                type $t = f64;
                $body
            }
            other => candle_core::bail!("{}: element type {other:?} is not supported (f32, bf16, f64)", $op),
        }
    };
}
pub(crate) use for_dtype;
