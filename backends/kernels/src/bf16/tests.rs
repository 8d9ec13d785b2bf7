use std::mem::MaybeUninit;

use half::bf16;

use super::Out;
use super::tiles::{Unit, product};
use crate::gemm::Mat;

/// Numbers between -1 and 1, the same for the same seed.
fn noise(n: usize, seed: usize) -> Vec<bf16> {
    (0..n).map(|i| bf16::from_f32(((i * 37 + i * i % 7919 + seed * 101) as f32 * 0.61).sin())).collect()
}

/// All units of this processor.
fn units() -> Vec<Unit> {
    match Unit::best() {
        Some(Unit::Tiles) => vec![Unit::Tiles, Unit::Pairs],
        Some(unit) => vec![unit],
        None => Vec::new(),
    }
}

fn check(m: usize, n: usize, inner: &[usize], dense_columns: bool, bias: bool) {
    let parts: Vec<_> = inner.iter().map(|k| (noise(m * k, m + k), noise(n * k, n + 3 * k), *k)).collect();
    let terms: Vec<_> = parts
        .iter()
        .map(|(a, b, k)| {
            let b = if dense_columns { Mat::new(b, n, *k).t() } else { Mat::new(b, *k, n) };
            (Mat::new(a, m, *k), b)
        })
        .collect();
    let bias = bias.then(|| noise(n, 7));
    // Sums, and those of magnitudes, which rounding is in proportion to.
    let mut want = vec![(0f64, 0f64); m * n];
    for (at, (want, size)) in want.iter_mut().enumerate() {
        let (i, j) = (at / n, at % n);
        *want = bias.as_ref().map_or(0.0, |b| b[j].to_f64());
        *size = want.abs();
        for (a, b) in &terms {
            for k in 0..a.cols {
                let product = a.data[i * a.row + k * a.col].to_f64() * b.data[k * b.row + j * b.col].to_f64();
                *want += product;
                *size += product.abs();
            }
        }
    }
    for unit in units() {
        for parallel in [false, true] {
            let mut wide = vec![f32::NAN; m * n];
            product(unit, &terms, bias.as_deref(), Out::over(&mut wide), parallel);
            for (got, (want, size)) in wide.iter().zip(&want) {
                let gap = (f64::from(*got) - want).abs();
                assert!(gap <= 1e-6 * size, "{unit:?} {m}x{n}x{inner:?}: {got} for {want}");
            }
            let mut narrow = vec![MaybeUninit::new(bf16::NAN); m * n];
            product(unit, &terms, bias.as_deref(), Out::Bf16(&mut narrow), parallel);
            // SAFETY: they were written before, and are as large as what they hold.
            let narrow: &[bf16] = unsafe { &*(std::ptr::from_ref(&narrow[..]) as *const [bf16]) };
            for (narrow, wide) in narrow.iter().zip(&wide) {
                assert_eq!(*narrow, bf16::from_f32(*wide), "{unit:?} {m}x{n}x{inner:?}");
            }
        }
    }
}

#[test]
fn products_are_those_of_float64_within_their_rounding() {
    let sizes = [1, 2, 15, 16, 17, 31, 32, 33, 64, 95, 200];
    for (i, &m) in sizes.iter().enumerate() {
        for (j, &n) in sizes.iter().enumerate() {
            let k = sizes[(3 * i + 5 * j) % sizes.len()];
            check(m, n, &[k], (i + j) % 2 == 0, i % 2 == 0);
            check(m, n, &[k], (i + j) % 2 == 1, i % 2 == 1);
        }
    }
    // Two terms, as of a layer with an update of low rank.
    check(70, 90, &[64, 16], true, true);
    check(90, 70, &[33, 5], true, false);
    check(300, 1000, &[576, 16], true, true);
    check(1000, 300, &[576], false, false);
}

#[test]
fn empty_products_write_what_is_left_of_them() {
    check(0, 5, &[3], true, true);
    check(5, 0, &[3], false, false);
    check(3, 5, &[0], true, true);
    check(3, 5, &[0], false, false);
}

#[test]
fn either_factor_may_be_transposed() {
    // The smaller one is copied where neither has dense rows.
    for (m, n, k) in [(20, 40, 70), (40, 20, 70), (33, 65, 300)] {
        let (a, b) = (noise(m * k, 1), noise(k * n, 2));
        let turned = |x: &[bf16], rows: usize, columns: usize| -> Vec<bf16> {
            (0..rows * columns).map(|i| x[i % rows * columns + i / rows]).collect()
        };
        let (at, bt) = (turned(&a, m, k), turned(&b, k, n));
        let (a, b) =
            ([Mat::new(&a, m, k), Mat::new(&at, k, m).t()], [Mat::new(&b, k, n), Mat::new(&bt, n, k).t()]);
        for unit in units() {
            let of = |a: Mat<'_, bf16>, b: Mat<'_, bf16>| {
                let mut out = vec![0f32; m * n];
                product(unit, &[(a, b)], None, Out::over(&mut out), true);
                out
            };
            let want = of(a[0], b[0]);
            assert!([(0, 1), (1, 0), (1, 1)].iter().all(|&(i, j)| of(a[i], b[j]) == want), "{m} {n} {k}");
        }
    }
}

#[test]
fn what_is_not_finite_stays_so() {
    let (mut a, b) = (noise(40 * 40, 1), noise(40 * 40, 2));
    (a[0], a[41]) = (bf16::NAN, bf16::INFINITY);
    for unit in units() {
        let mut out = vec![0f32; 40 * 40];
        product(unit, &[(Mat::new(&a, 40, 40), Mat::new(&b, 40, 40).t())], None, Out::over(&mut out), false);
        assert!(out[..40].iter().all(|v| v.is_nan()));
        assert!(out[40..80].iter().all(|v| !v.is_finite()));
        assert!(out[80..].iter().all(|v| v.is_finite()));
    }
}
