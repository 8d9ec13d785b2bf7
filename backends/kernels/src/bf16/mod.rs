//! Products of bf16 matrices with sums in float32, on the processor's own units for them.
//!
//! candle and the `gemm` crate widen bf16 to float32 first, which is slower than float32 itself. Libraries that do not
//! are oneDNN, which no crate brings without fetching and compiling its sources, and MKL, which is 1.1 GB; so the
//! product is written here, for AMX's tiles (Sapphire Rapids and later) and for AVX-512's pairwise products. On
//! any other processor there is none, and callers widen.
//!
//! As those units do, a product rounds sums of two terms at a time and takes numbers below the normal range for 0.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod pack;
#[cfg(target_arch = "x86_64")]
mod tiles;

use half::bf16;
use std::mem::MaybeUninit;

use crate::gemm::Mat;

/// A left and a right factor.
pub(crate) type Term<'a> = (Mat<'a, bf16>, Mat<'a, bf16>);

/// An element that sums are rounded to on the way out.
#[derive(Debug)]
#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(dead_code, reason = "nothing is written where there is no unit")
)]
pub(crate) enum Out<'a> {
    /// Rounded.
    Bf16(&'a mut [MaybeUninit<bf16>]),
    /// As they are.
    F32(&'a mut [MaybeUninit<f32>]),
}

impl<'a> Out<'a> {
    /// Into elements that hold something already.
    pub(crate) fn over(out: &'a mut [f32]) -> Self {
        // SAFETY: a product writes numbers only, never leaving an element without one.
        Self::F32(unsafe { &mut *(std::ptr::from_mut(out) as *mut [MaybeUninit<f32>]) })
    }
}

/// Whether this processor multiplies bf16.
pub(crate) fn is_supported() -> bool {
    #[cfg(target_arch = "x86_64")]
    return tiles::Unit::best().is_some();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// `out = a1 b1 + a2 b2 + .. + bias` for terms of equal outer sizes; `out` is row-major without gaps, `bias` has an
/// element for each column. Every element of `out` is written, where there is a term.
///
/// Uses all threads if `parallel`. `false` if the processor has no unit for it: then nothing is done.
pub(crate) fn product(terms: &[Term<'_>], bias: Option<&[bf16]>, out: Out<'_>, parallel: bool) -> bool {
    #[cfg(target_arch = "x86_64")]
    if let Some(unit) = tiles::Unit::best() {
        tiles::product(unit, terms, bias, out, parallel);
        return true;
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (terms, bias, out, parallel);
    false
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests;
