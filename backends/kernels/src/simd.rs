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

/// Independent partial sums of a reduction: one register of float32. A sum in one variable could not be vectorised,
/// because the order of float additions is part of their meaning.
const LANES: usize = 16;

/// Sum of `term` over three slices of equal length, in [`LANES`] times four independent partial sums.
#[inline(always)]
pub(crate) fn sum3<X: Copy, Y: Copy, Z: Copy, A: Real>(
    a: &[X],
    b: &[Y],
    c: &[Z],
    term: impl Fn(X, Y, Z) -> A,
) -> A {
    let (b, c) = (&b[..a.len()], &c[..a.len()]);
    let ((a, a_rest), (b, b_rest), (c, c_rest)) =
        (a.as_chunks::<LANES>(), b.as_chunks::<LANES>(), c.as_chunks::<LANES>());
    let ((a4, a1), (b4, b1), (c4, c1)) = (a.as_chunks::<4>(), b.as_chunks::<4>(), c.as_chunks::<4>());
    // Four named arrays, because only loops over one of them are unrolled into registers.
    let mut first = [A::ZERO; LANES];
    let (mut second, mut third, mut fourth) = (first, first, first);
    for ((a, b), c) in a4.iter().zip(b4).zip(c4) {
        accumulate(&mut first, &a[0], &b[0], &c[0], &term);
        accumulate(&mut second, &a[1], &b[1], &c[1], &term);
        accumulate(&mut third, &a[2], &b[2], &c[2], &term);
        accumulate(&mut fourth, &a[3], &b[3], &c[3], &term);
    }
    for j in 0..LANES {
        first[j] = (first[j] + second[j]) + (third[j] + fourth[j]);
    }
    for ((a, b), c) in a1.iter().zip(b1).zip(c1) {
        accumulate(&mut first, a, b, c, &term);
    }
    let mut total = fold(
        first,
        #[inline(always)]
        |x, y| x + y,
    );
    for ((a, b), c) in a_rest.iter().zip(b_rest).zip(c_rest) {
        total += term(*a, *b, *c);
    }
    total
}

#[inline(always)]
fn accumulate<X: Copy, Y: Copy, Z: Copy, A: Real>(
    lanes: &mut [A; LANES],
    a: &[X; LANES],
    b: &[Y; LANES],
    c: &[Z; LANES],
    term: impl Fn(X, Y, Z) -> A,
) {
    for j in 0..LANES {
        lanes[j] += term(a[j], b[j], c[j]);
    }
}

/// Sum of `term` over two slices of equal length.
#[inline(always)]
pub(crate) fn sum2<X: Copy, Y: Copy, A: Real>(a: &[X], b: &[Y], term: impl Fn(X, Y) -> A) -> A {
    sum3(
        a,
        b,
        a,
        #[inline(always)]
        |x, y, _| term(x, y),
    )
}

/// Sum of `term` over a slice.
#[inline(always)]
pub(crate) fn sum<X: Copy, A: Real>(a: &[X], term: impl Fn(X) -> A) -> A {
    sum3(
        a,
        a,
        a,
        #[inline(always)]
        |x, _, _| term(x),
    )
}

/// Scalar product of a widened row and a row of tensor elements of the same length.
#[inline(always)]
pub(crate) fn dot<T: Element>(a: &[T::Acc], b: &[T]) -> T::Acc {
    sum2(
        a,
        b,
        #[inline(always)]
        |x, y| x * y.widen(),
    )
}

/// Largest element of a row; minus infinity for an empty one.
#[inline(always)]
pub(crate) fn max<T: Element>(row: &[T]) -> T::Acc {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut lanes = [T::Acc::NEG_INFINITY; LANES];
    for chunk in chunks {
        for j in 0..LANES {
            lanes[j] = lanes[j].larger(chunk[j].widen());
        }
    }
    let mut best = fold(
        lanes,
        #[inline(always)]
        |x, y| x.larger(y),
    );
    for x in rest {
        best = best.larger(x.widen());
    }
    best
}

/// Combines the lanes pairwise, halving their number each time.
#[inline(always)]
fn fold<A: Real>(lanes: [A; LANES], combine: impl Fn(A, A) -> A) -> A {
    // Without this the compiler sees the narrow end of the reduction and cuts the wide loop before it into pairs.
    let mut lanes = std::hint::black_box(lanes);
    for j in 0..8 {
        lanes[j] = combine(lanes[j], lanes[j + 8]);
    }
    for j in 0..4 {
        lanes[j] = combine(lanes[j], lanes[j + 4]);
    }
    combine(combine(lanes[0], lanes[2]), combine(lanes[1], lanes[3]))
}
