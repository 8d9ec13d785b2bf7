//! Scalar products of quantised rows with a row of activations rounded to 8 bits.
//!
//! A weight is `scale * u + least` with an unsigned integer `u`, an activation `step * q` with a signed one; so a
//! block's product is `scale * step * sum(u q) + least * step * sum(q)`, of which only the first sum is work.

use super::{BLOCK, Kind};
use half::f16;

/// A row of activations, block by block: integers, the size of their step, and step times their sum.
pub(super) struct Activations {
    values: Vec<[i8; BLOCK]>,
    steps: Vec<f32>,
    sums: Vec<f32>,
}

impl Activations {
    /// Rounds a row; its length must be a multiple of the block's.
    pub(super) fn new(x: &[f32]) -> Self {
        let blocks = x.len() / BLOCK;
        let mut values = vec![[0i8; BLOCK]; blocks];
        let (mut steps, mut sums) = (vec![0f32; blocks], vec![0f32; blocks]);
        for (i, x) in x.chunks_exact(BLOCK).enumerate() {
            let largest = x.iter().fold(0f32, |m, v| m.max(v.abs()));
            let step = largest / 127.0;
            let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            let mut sum = 0;
            for (q, x) in values[i].iter_mut().zip(x) {
                *q = (x * inverse).round_ties_even() as i8;
                sum += i32::from(*q);
            }
            // A row that is not finite must not come out finite.
            let finite = x.iter().all(|v| v.is_finite());
            steps[i] = if finite { step } else { f32::NAN };
            sums[i] = steps[i] * sum as f32;
        }
        Self { values, steps, sums }
    }
}

/// Writes the product of every row in `bytes` with `x` to `out[row * stride + at]`.
pub(super) fn rows(kind: Kind, bytes: &[u8], x: &Activations, out: &mut [f32], stride: usize, at: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        if x86::has_vnni() {
            // SAFETY: the processor has the features the function is compiled for.
            return unsafe { x86::rows_vnni(kind, bytes, x, out, stride, at) };
        }
        if x86::has_avx2() {
            // SAFETY: the processor has the features the function is compiled for.
            return unsafe { x86::rows_avx2(kind, bytes, x, out, stride, at) };
        }
    }
    plain(kind, bytes, x, out, stride, at);
}

/// The definition, for processors without a form of their own.
fn plain(kind: Kind, bytes: &[u8], x: &Activations, out: &mut [f32], stride: usize, at: usize) {
    let size = kind.size();
    for (row, out) in bytes.chunks_exact(x.values.len() * size).zip(out.chunks_exact_mut(stride)) {
        let mut total = 0f32;
        for (i, block) in row.chunks_exact(size).enumerate() {
            let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
            let scale = half(0);
            let (low, high) = x.values[i].split_at(BLOCK / 2);
            let nibbles = |bytes: &[u8]| -> i32 {
                let pairs = bytes.iter().zip(low).zip(high);
                pairs
                    .map(|((b, l), h)| i32::from(b & 15) * i32::from(*l) + i32::from(b >> 4) * i32::from(*h))
                    .sum()
            };
            let (sum, least) = match kind {
                Kind::Q4_0 => (nibbles(&block[2..18]), -8.0 * scale),
                Kind::Q4_1 => (nibbles(&block[4..20]), half(2)),
                Kind::Q8_0 => {
                    let pairs = block[2..34].iter().zip(&x.values[i]);
                    (pairs.map(|(b, q)| i32::from(*b as i8) * i32::from(*q)).sum(), 0.0)
                }
            };
            total += scale * x.steps[i] * sum as f32 + least * x.sums[i];
        }
        out[at] = total;
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Activations, Kind};
    use std::arch::x86_64::*;

    pub(super) fn has_vnni() -> bool {
        is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bw")
            && has_avx2()
    }

    pub(super) fn has_avx2() -> bool {
        is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
    }

    /// Reads 16 bytes.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn load16(bytes: &[u8]) -> __m128i {
        let bytes: &[u8; 16] = match bytes.first_chunk() {
            Some(bytes) => bytes,
            None => return _mm_setzero_si128(),
        };
        // SAFETY: 16 bytes are there, and the load asks for no alignment.
        unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
    }

    /// Reads 32 signed bytes.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn load32(bytes: &[i8; 32]) -> __m256i {
        // SAFETY: 32 bytes are there, and the load asks for no alignment.
        unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
    }

    /// The two halves of each byte, low ones first.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn nibbles(bytes: __m128i) -> __m256i {
        let both = _mm256_set_m128i(_mm_srli_epi16::<4>(bytes), bytes);
        _mm256_and_si256(both, _mm256_set1_epi8(15))
    }

    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    fn half(block: &[u8], at: usize) -> f32 {
        let bits = i32::from(u16::from_le_bytes([block[at], block[at + 1]]));
        _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn total(lanes: __m256) -> f32 {
        let four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }

    /// Sums of products of unsigned and signed bytes, in 8 lanes.
    #[inline]
    #[target_feature(enable = "avx512vnni,avx512vl,avx512bw,avx2")]
    fn multiply_vnni(u: __m256i, q: __m256i) -> __m256i {
        _mm256_dpbusd_epi32(_mm256_setzero_si256(), u, q)
    }

    /// The same through 16-bit integers: AVX2's own byte product overflows for large weights.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn multiply_avx2(u: __m256i, q: __m256i) -> __m256i {
        let low = _mm256_madd_epi16(
            _mm256_cvtepu8_epi16(_mm256_castsi256_si128(u)),
            _mm256_cvtepi8_epi16(_mm256_castsi256_si128(q)),
        );
        let high = _mm256_madd_epi16(
            _mm256_cvtepu8_epi16(_mm256_extracti128_si256::<1>(u)),
            _mm256_cvtepi8_epi16(_mm256_extracti128_si256::<1>(q)),
        );
        _mm256_add_epi32(low, high)
    }

    macro_rules! kernel {
        ($name:ident, $multiply:ident, $features:literal) => {
            /// One row after the other, 32 weights at a time.
            #[target_feature(enable = $features)]
            pub(super) fn $name(
                kind: Kind,
                bytes: &[u8],
                x: &Activations,
                out: &mut [f32],
                stride: usize,
                at: usize,
            ) {
                let size = kind.size();
                let rows = bytes.chunks_exact(x.values.len() * size);
                for (row, out) in rows.zip(out.chunks_exact_mut(stride)) {
                    let mut lanes = _mm256_setzero_ps();
                    let mut rest = 0f32;
                    let blocks = row.chunks_exact(size).zip(&x.values);
                    for ((block, values), (step, sum)) in blocks.zip(x.steps.iter().zip(&x.sums)) {
                        let scale = half(block, 0);
                        let (u, least) = match kind {
                            Kind::Q4_0 => (nibbles(load16(&block[2..18])), -8.0 * scale),
                            Kind::Q4_1 => (nibbles(load16(&block[4..20])), half(block, 2)),
                            Kind::Q8_0 => {
                                let signed = _mm256_set_m128i(load16(&block[18..34]), load16(&block[2..18]));
                                (_mm256_xor_si256(signed, _mm256_set1_epi8(-128)), -128.0 * scale)
                            }
                        };
                        let products = _mm256_cvtepi32_ps($multiply(u, load32(values)));
                        lanes = _mm256_fmadd_ps(products, _mm256_set1_ps(scale * step), lanes);
                        rest += least * sum;
                    }
                    out[at] = total(lanes) + rest;
                }
            }
        };
    }

    kernel!(rows_vnni, multiply_vnni, "avx512vnni,avx512vl,avx512bw,avx2,fma,f16c");
    kernel!(rows_avx2, multiply_avx2, "avx2,fma,f16c");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_computes_the_definition() {
        for kind in [Kind::Q4_0, Kind::Q4_1, Kind::Q8_0] {
            let (blocks, n) = (5, 7);
            let mut bytes: Vec<u8> =
                (0..n * blocks * kind.size()).map(|i| (i * 151 + i * i % 251) as u8).collect();
            for block in bytes.chunks_exact_mut(kind.size()) {
                block[..2].copy_from_slice(&f16::from_f32(0.02).to_le_bytes());
                if kind == Kind::Q4_1 {
                    block[2..4].copy_from_slice(&f16::from_f32(-0.3).to_le_bytes());
                }
            }
            let x: Vec<f32> = (0..blocks * BLOCK).map(|i| (i as f32 * 0.7).sin()).collect();
            let x = Activations::new(&x);
            let mut want = vec![0f32; 2 * n];
            plain(kind, &bytes, &x, &mut want, 2, 1);
            let close = |got: &[f32]| got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 2e-4);
            let mut got = vec![0f32; 2 * n];
            rows(kind, &bytes, &x, &mut got, 2, 1);
            assert!(close(&got), "{kind:?} {got:?} {want:?}");
            #[cfg(target_arch = "x86_64")]
            if x86::has_avx2() {
                got.fill(0.0);
                // SAFETY: the processor has the features the function is compiled for.
                unsafe { x86::rows_avx2(kind, &bytes, &x, &mut got, 2, 1) };
                assert!(close(&got), "{kind:?} {got:?} {want:?}");
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        let mut x = vec![1.0; BLOCK];
        x[3] = f32::INFINITY;
        let mut out = [0f32];
        let block = [[0u8, 60].as_slice(), &[1; 32]].concat();
        rows(Kind::Q8_0, &block, &Activations::new(&x), &mut out, 1, 0);
        assert!(out[0].is_nan());
    }
}
