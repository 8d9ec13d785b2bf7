//! Loops compiled for the vector unit of the machine, and the transcendental functions inside them.
//!
//! The functions here are branch-free so that the compiler turns loops over them into vector code.

use crate::element::{Element, Real};

pub(crate) const INV_SQRT_2PI: f64 = 0.398_942_280_401_432_7;

/// Runs `f` compiled for AVX-512 or AVX2 where the processor has it.
///
/// `f` must be an `#[inline(always)]` closure over `#[inline(always)]` functions, or nothing is gained.
#[inline(always)]
pub(crate) fn vectorised<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        fn avx512<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        if is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("fma")
        {
            // SAFETY: the processor has the features the function is compiled for (avx512bw implies f and avx2).
            return unsafe { avx512(f) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the processor has the features the function is compiled for.
            return unsafe { avx2(f) };
        }
    }
    f()
}

/// `exp(x)` to within 2 units in the last place; NaN stays NaN, results below the normal range become about 1e-38.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // 1.5 * 2^23 rounds to an integer in the low mantissa bits; 127 makes those bits the exponent field of 2^n.
    const ROUND: f32 = 12_582_912.0 + 127.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = if x < -87.3 { -87.3 } else { x };
    let x = if x > 88.3 { f32::INFINITY } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let p = 1.0 / 720.0 + r * (1.0 / 5040.0);
    let p = 1.0 / 120.0 + r * p;
    let p = 1.0 / 24.0 + r * p;
    let p = 1.0 / 6.0 + r * p;
    let p = 0.5 + r * p;
    let p = 1.0 + r * p;
    let p = 1.0 + r * p;
    let e = p * f32::from_bits(shifted.to_bits() << 23);
    if x == f32::INFINITY { f32::INFINITY } else { e }
}

/// Standard normal distribution function and density, relative error below 1e-6 in both tails.
#[inline(always)]
pub(crate) fn normal(x: f32) -> (f32, f32) {
    // exp(z^2) erfc(z) as a polynomial in 1 / (1 + 0.3 z) without constant term, fitted for the least largest
    // relative error over z in [0, 10] (2e-8); the form follows Abramowitz and Stegun 7.1.26.
    const C: [f32; 9] = [
        0.169_188,
        0.170_715_52,
        0.148_337_18,
        0.214_933_56,
        -0.094_667_71,
        0.547_743_8,
        -0.512_298_3,
        0.485_572_7,
        -0.129_524_81,
    ];
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.3 * z);
    let mut p = C[8];
    let mut i = 8;
    while i > 0 {
        i -= 1;
        p = C[i] + t * p;
    }
    let gauss = exp(-0.5 * x * x);
    let tail = 0.5 * t * p * gauss;
    (if x < 0.0 { tail } else { 1.0 - tail }, INV_SQRT_2PI as f32 * gauss)
}

/// Sum of `term(i)` for `i` in `0..n`, in 64 and then 16 independent partial sums.
///
/// A sum in one variable could not be vectorised, because the order of float additions is part of their meaning.
#[inline(always)]
pub(crate) fn sum<A: Real>(n: usize, term: impl Fn(usize) -> A) -> A {
    let mut wide = [A::ZERO; 64];
    let mut i = 0;
    while i + 64 <= n {
        for (j, lane) in wide.iter_mut().enumerate() {
            *lane += term(i + j);
        }
        i += 64;
    }
    let mut lanes = [A::ZERO; 16];
    for (j, lane) in lanes.iter_mut().enumerate() {
        *lane = (wide[j] + wide[16 + j]) + (wide[32 + j] + wide[48 + j]);
    }
    while i + 16 <= n {
        for (j, lane) in lanes.iter_mut().enumerate() {
            *lane += term(i + j);
        }
        i += 16;
    }
    let mut half = 8;
    while half > 0 {
        for j in 0..half {
            lanes[j] += lanes[j + half];
        }
        half /= 2;
    }
    let mut total = lanes[0];
    while i < n {
        total += term(i);
        i += 1;
    }
    total
}

/// Scalar product of a widened row and a row of tensor elements of the same length.
#[inline(always)]
pub(crate) fn dot<T: Element>(a: &[T::Acc], b: &[T]) -> T::Acc {
    let a = &a[..b.len()];
    sum(
        b.len(),
        #[inline(always)]
        |i| a[i] * b[i].widen(),
    )
}

/// Largest element of a row; minus infinity for an empty one.
#[inline(always)]
pub(crate) fn max<T: Element>(row: &[T]) -> T::Acc {
    let mut lanes = [T::Acc::NEG_INFINITY; 32];
    let mut chunks = row.chunks_exact(32);
    for chunk in &mut chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = lane.larger(x.widen());
        }
    }
    let mut best = T::Acc::NEG_INFINITY;
    for lane in lanes {
        best = best.larger(lane);
    }
    for x in chunks.remainder() {
        best = best.larger(x.widen());
    }
    best
}
