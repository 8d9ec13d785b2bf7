//! Products of a tile of quantised weights with rows of activations.
//!
//! With weights `scale * u + least` and activations `step * q`, a block's product is
//! `scale * step * sum(u q) + least * step * sum(q)`: only the first sum is work, and it is one of integers.

use super::activations::Activations;
use super::tiles::{BLOCK, LANES, Tile};

/// Writes the products of a tile's rows with each row of `x` to the same row of `out`.
pub(super) fn tile(tile: Tile<'_>, x: &[Activations], out: &mut [[f32; LANES]]) {
    #[cfg(target_arch = "x86_64")]
    {
        if x86::has_avx512() {
            // SAFETY: the processor has the features the function is compiled for.
            return unsafe { x86::avx512(tile, x, out) };
        }
        if x86::has_avx2() {
            // SAFETY: the processor has the features the function is compiled for.
            return unsafe { x86::avx2(tile, x, out) };
        }
    }
    plain(tile, x, out);
}

/// The definition, for processors without a form of their own.
fn plain(tile: Tile<'_>, x: &[Activations], out: &mut [[f32; LANES]]) {
    for (x, out) in x.iter().zip(out) {
        *out = [0.0; LANES];
        for (b, groups) in x.groups.iter().enumerate() {
            let bytes = groups.map(i32::to_le_bytes);
            for (lane, out) in out.iter_mut().enumerate() {
                let (scale, least) = tile.line(b, lane);
                let product =
                    |i: usize| i32::from(tile.integer(b, lane, i)) * i32::from(bytes[i / 4][i % 4] as i8);
                let sum: i32 = (0..BLOCK).map(product).sum();
                *out += scale * x.steps[b] * sum as f32 + least * x.sums[b];
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::super::tiles::{GROUPS, Kind};
    use super::{Activations, LANES, Tile};
    use std::arch::x86_64::*;

    /// Rows of activations that share the unpacking of a block's weights.
    const ROWS_512: usize = 12;
    const ROWS_256: usize = 4;

    pub(super) fn has_avx512() -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vnni")
            && has_avx2()
    }

    pub(super) fn has_avx2() -> bool {
        is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
    }

    macro_rules! by_rows {
        ($name:ident, $part:ident, $rows:expr, $features:literal) => {
            /// Hands groups of rows, and then single ones, to the loop compiled for that many.
            #[target_feature(enable = $features)]
            pub(super) fn $name(tile: Tile<'_>, x: &[Activations], out: &mut [[f32; LANES]]) {
                let (x_groups, x_rest) = x.as_chunks::<{ $rows }>();
                let (out_groups, out_rest) = out.as_chunks_mut::<{ $rows }>();
                for (x, out) in x_groups.iter().zip(out_groups) {
                    $part(tile, x, out);
                }
                for (x, out) in x_rest.as_chunks::<1>().0.iter().zip(out_rest.as_chunks_mut::<1>().0) {
                    $part(tile, x, out);
                }
            }
        };
    }
    by_rows!(avx512, rows_512, ROWS_512, "avx512f,avx512bw,avx512vnni,avx2,fma,f16c");
    by_rows!(avx2, rows_256, ROWS_256, "avx2,fma,f16c");

    /// All 16 rows of the tile in one register.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma,f16c")]
    fn rows_512<const R: usize>(tile: Tile<'_>, x: &[Activations; R], out: &mut [[f32; LANES]; R]) {
        let halves = |values: &[u16; LANES]| {
            // SAFETY: 32 bytes are there, and the load asks for no alignment.
            _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(values.as_ptr().cast()) })
        };
        let register = |bytes: &[u8; 64]| {
            // SAFETY: 64 bytes are there, and the load asks for no alignment.
            unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
        };
        let low = _mm512_set1_epi8(15);
        let (data, _) = tile.data.as_chunks::<64>();
        let (least_values, _) = tile.least.as_chunks::<LANES>();
        let mut sums = [_mm512_setzero_ps(); R];
        for (b, scales) in tile.scales.as_chunks::<LANES>().0.iter().enumerate() {
            let scale = halves(scales);
            let mut u = [_mm512_setzero_si512(); GROUPS];
            let least = match tile.kind {
                Kind::Q4_0 => _mm512_mul_ps(scale, _mm512_set1_ps(-8.0)),
                Kind::Q4_1 => halves(&least_values[b]),
                Kind::Q8_0 => _mm512_mul_ps(scale, _mm512_set1_ps(-128.0)),
            };
            if tile.kind == Kind::Q8_0 {
                for g in 0..GROUPS {
                    u[g] = register(&data[b * GROUPS + g]);
                }
            } else {
                for g in 0..GROUPS / 2 {
                    let both = register(&data[b * GROUPS / 2 + g]);
                    u[g] = _mm512_and_si512(both, low);
                    u[g + GROUPS / 2] = _mm512_and_si512(_mm512_srli_epi16::<4>(both), low);
                }
            }
            for (x, sum) in x.iter().zip(&mut sums) {
                let groups = &x.groups[b];
                let mut products = _mm512_setzero_si512();
                for g in 0..GROUPS {
                    products = _mm512_dpbusd_epi32(products, u[g], _mm512_set1_epi32(groups[g]));
                }
                let factor = _mm512_mul_ps(scale, _mm512_set1_ps(x.steps[b]));
                *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), factor, *sum);
                *sum = _mm512_fmadd_ps(least, _mm512_set1_ps(x.sums[b]), *sum);
            }
        }
        for (sum, out) in sums.iter().zip(out) {
            // SAFETY: 64 bytes are there, and the store asks for no alignment.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), *sum) };
        }
    }

    /// 8 rows of the tile in a register, one half after the other.
    ///
    /// AVX2's byte product adds pairs in 16 bits: 8 of them fit for integers of 4 bits, so 8-bit ones are multiplied
    /// half by half.
    #[target_feature(enable = "avx2,fma,f16c")]
    fn rows_256<const R: usize>(tile: Tile<'_>, x: &[Activations; R], out: &mut [[f32; LANES]; R]) {
        const HALF: usize = LANES / 2;
        let halves = |values: &[u16; HALF]| {
            // SAFETY: 16 bytes are there, and the load asks for no alignment.
            _mm256_cvtph_ps(unsafe { _mm_loadu_si128(values.as_ptr().cast()) })
        };
        let register = |bytes: &[u8; 32]| {
            // SAFETY: 32 bytes are there, and the load asks for no alignment.
            unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
        };
        let (low, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
        let (data, _) = tile.data.as_chunks::<32>();
        let (scale_values, _) = tile.scales.as_chunks::<HALF>();
        let (least_values, _) = tile.least.as_chunks::<HALF>();
        for half in 0..2 {
            let mut sums = [_mm256_setzero_ps(); R];
            for b in 0..scale_values.len() / 2 {
                let scale = halves(&scale_values[2 * b + half]);
                let least = match tile.kind {
                    Kind::Q4_0 => _mm256_mul_ps(scale, _mm256_set1_ps(-8.0)),
                    Kind::Q4_1 => halves(&least_values[2 * b + half]),
                    Kind::Q8_0 => _mm256_mul_ps(scale, _mm256_set1_ps(-128.0)),
                };
                let mut lows = [_mm256_setzero_si256(); R];
                let mut highs = [_mm256_setzero_si256(); R];
                let wide = tile.kind == Kind::Q8_0;
                let registers = if wide { GROUPS } else { GROUPS / 2 };
                for g in 0..registers {
                    let both = register(&data[(b * registers + g) * 2 + half]);
                    let u = _mm256_and_si256(both, low);
                    let v = _mm256_and_si256(_mm256_srli_epi16::<4>(both), low);
                    let second = if wide { g } else { g + GROUPS / 2 };
                    for r in 0..R {
                        let groups = &x[r].groups[b];
                        let p = _mm256_maddubs_epi16(u, _mm256_set1_epi32(groups[g]));
                        let q = _mm256_maddubs_epi16(v, _mm256_set1_epi32(groups[second]));
                        lows[r] = _mm256_add_epi16(lows[r], p);
                        highs[r] = _mm256_add_epi16(highs[r], q);
                    }
                }
                for r in 0..R {
                    let high = _mm256_madd_epi16(highs[r], ones);
                    let high = if wide { _mm256_slli_epi32::<4>(high) } else { high };
                    let products = _mm256_add_epi32(_mm256_madd_epi16(lows[r], ones), high);
                    let factor = _mm256_mul_ps(scale, _mm256_set1_ps(x[r].steps[b]));
                    sums[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products), factor, sums[r]);
                    sums[r] = _mm256_fmadd_ps(least, _mm256_set1_ps(x[r].sums[b]), sums[r]);
                }
            }
            for (sum, out) in sums.iter().zip(out.iter_mut()) {
                let out = &mut out[half * HALF..(half + 1) * HALF];
                // SAFETY: 32 bytes are there, and the store asks for no alignment.
                unsafe { _mm256_storeu_ps(out.as_mut_ptr(), *sum) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tiles::Tiles;
    use super::*;
    use candle_core::quantized::GgmlDType;
    use half::f16;

    #[test]
    fn every_form_computes_the_definition() {
        for (dtype, size) in [(GgmlDType::Q4_0, 18), (GgmlDType::Q4_1, 20), (GgmlDType::Q8_0, 34)] {
            let (blocks, rows) = (5, 2 * LANES);
            // All bytes occur, the extreme ones among them.
            let mut bytes: Vec<u8> =
                (0..rows * blocks * size).map(|i| (i * 151 + i * i % 251) as u8).collect();
            for (i, block) in bytes.chunks_exact_mut(size).enumerate() {
                if i % 3 == 0 {
                    block.fill(if i % 2 == 0 { 255 } else { 128 });
                }
                block[..2].copy_from_slice(&f16::from_f32(0.02).to_le_bytes());
                if dtype == GgmlDType::Q4_1 {
                    block[2..4].copy_from_slice(&f16::from_f32(-0.3).to_le_bytes());
                }
            }
            let tiles = Tiles::pack(dtype, &bytes, rows, blocks * BLOCK).unwrap().unwrap();
            let row = |r: usize| -> Vec<f32> {
                // The first row is extreme everywhere.
                (0..blocks * BLOCK)
                    .map(|i| if r == 0 { 1.0 } else { ((i + r * 31) as f32 * 0.7).sin() })
                    .collect()
            };
            let x: Vec<_> = (0..30).map(|r| Activations::new(&row(r))).collect();
            for t in 0..tiles.len() {
                let mut want = vec![[0f32; LANES]; x.len()];
                plain(tiles.get(t), &x, &mut want);
                type Form = fn(Tile<'_>, &[Activations], &mut [[f32; LANES]]);
                let mut forms: Vec<Form> = vec![tile];
                #[cfg(target_arch = "x86_64")]
                if x86::has_avx2() {
                    // SAFETY: the processor has the features the function is compiled for.
                    forms.push(|tile, x, out| unsafe { x86::avx2(tile, x, out) });
                }
                for form in forms {
                    let mut got = vec![[f32::NAN; LANES]; x.len()];
                    form(tiles.get(t), &x, &mut got);
                    for (got, want) in got.iter().flatten().zip(want.iter().flatten()) {
                        assert!((got - want).abs() < 1e-3 * want.abs().max(1.0), "{dtype:?}: {got} {want}");
                    }
                }
            }
        }
    }
}
