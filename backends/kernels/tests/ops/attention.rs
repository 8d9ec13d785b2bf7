//! Attention against the composed softmax form.

use candle_core::{D, DType, Device, Result, Tensor, Var};
use e2llm_kernels::{Mask, RowLengths, attention, attention_lse, attention_rows, store_last};

use crate::{check_forward, check_gradients, check_gradients_in, difference, randn, values};

/// The visible keys of a query, as the documentation of [`Mask`] words it.
fn visible(mask: Mask, b: usize, i: usize, tk: usize) -> usize {
    match mask {
        Mask::None => tk,
        Mask::Causal { offset } => tk.min(offset + i + 1),
        Mask::Keys(lengths) => lengths[b],
        Mask::Rows(lengths) => lengths.rows()[b],
        Mask::CausalKeys(lengths) => lengths[b].min(i + 1),
    }
}

/// Repeats key heads, builds the score matrix, and masks it. Rows without keys become zero.
fn composed(t: &[Tensor], mask: Mask, scale: f64) -> Result<Tensor> {
    let ((b, h, tq, d), (_, hkv, tk, _)) = (t[0].dims4()?, t[1].dims4()?);
    let repeat = |x: &Tensor| x.unsqueeze(2)?.expand((b, hkv, h / hkv, tk, d))?.reshape((b, h, tk, d));
    let (k, v) = (repeat(&t[1])?, repeat(&t[2])?);
    let mut keep = Vec::new();
    for b in 0..b {
        for _ in 0..h {
            for i in 0..tq {
                keep.extend((0..tk).map(|j| f64::from(u8::from(j < visible(mask, b, i, tk)))));
            }
        }
    }
    let keep = Tensor::from_vec(keep, (b, h, tq, tk), &Device::Cpu)?;
    let scores = (t[0].contiguous()?.matmul(&k.t()?.contiguous()?)? * scale)?;
    let scores = (scores + ((&keep - 1.)? * 1e9)?)?;
    let p = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
    let p = (p * &keep)?;
    let total = (p.sum_keepdim(D::Minus1)? + 1e-300)?;
    p.broadcast_div(&total)?.matmul(&v.contiguous()?)
}

/// `(b, h, hkv, tq, tk, d)`: decoding with and without groups, odd lengths, several blocks, split keys.
const SIZES: [(usize, usize, usize, usize, usize, usize); 6] = [
    (1, 1, 1, 1, 1, 3),
    (2, 6, 2, 1, 70, 16),
    (2, 4, 2, 5, 9, 7),
    (1, 9, 3, 130, 333, 8),
    (2, 2, 2, 300, 300, 16),
    (1, 3, 1, 2, 1500, 8),
];

fn inputs((b, h, hkv, tq, tk, d): (usize, usize, usize, usize, usize, usize)) -> [Tensor; 3] {
    [randn(&[b, h, tq, d]), randn(&[b, hkv, tk, d]), randn(&[b, hkv, tk, d])]
}

fn for_masks(b: usize, tq: usize, tk: usize, f: impl Fn(&str, Mask)) {
    let lengths: Vec<usize> = (0..b).map(|i| if i == 0 { tk.div_ceil(2) } else { tk - tk / 3 }).collect();
    f("none", Mask::None);
    f("causal", Mask::Causal { offset: tk.saturating_sub(tq) });
    f("causal from 0", Mask::Causal { offset: 0 });
    f("keys", Mask::Keys(&lengths));
    f("causal keys", Mask::CausalKeys(&lengths));
}

#[test]
fn forward_matches_the_softmax_form() {
    for size in SIZES {
        let (b, _, _, tq, tk, d) = size;
        let scale = 1. / (d as f64).sqrt();
        for_masks(b, tq, tk, |name, mask| {
            let f = |t: &[Tensor]| attention(&t[0], &t[1], &t[2], mask, scale);
            check_forward(&format!("attention {size:?} {name}"), &inputs(size), f, |t| {
                composed(t, mask, scale)
            });
        });
    }
}

#[test]
fn gradients_match_central_differences() {
    for size in SIZES {
        let (b, _, _, tq, tk, d) = size;
        let scale = 1. / (d as f64).sqrt();
        for_masks(b, tq, tk, |name, mask| {
            let name = format!("attention {size:?} {name}");
            let f = |t: &[Tensor]| attention(&t[0], &t[1], &t[2], mask, scale);
            let t = inputs(size);
            check_gradients(&name, &t, f);
            check_gradients_in(&name, DType::F32, 1e-4, &t, f);
            check_gradients_in(&name, DType::BF16, 5e-2, &t, f);
        });
    }
}

#[test]
fn rows_without_keys_are_zero_and_pass_no_gradient() {
    for tq in [1, 40] {
        let [q, k, v] = inputs((2, 4, 2, tq, 30, 8)).map(|t| Var::from_tensor(&t).unwrap());
        let y = attention(&q, &k, &v, Mask::Keys(&[0, 30]), 0.3).unwrap();
        assert!(values(&y.get(0).unwrap()).iter().all(|&x| x == 0.));
        let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        for t in [&q, &k, &v] {
            let g = grads.get(t).unwrap();
            assert!(values(&g.get(0).unwrap()).iter().all(|&x| x == 0.));
            let rest = values(&g.get(1).unwrap());
            assert!(rest.iter().all(|x| x.is_finite()) && rest.iter().any(|&x| x != 0.));
        }
    }
}

#[test]
fn a_narrowed_cache_is_read_in_place() {
    let (b, h, hkv, room, filled, d) = (2, 6, 3, 64, 41, 8);
    let scale = 0.4;
    for tq in [1, 11] {
        let q = randn(&[b, tq, h, d]).transpose(1, 2).unwrap();
        // Poison past the filled part must not be seen.
        let cache = || {
            let rest = (randn(&[b, hkv, room - filled, d]) * f64::NAN).unwrap();
            Tensor::cat(&[randn(&[b, hkv, filled, d]), rest], 2).unwrap().narrow(2, 0, filled).unwrap()
        };
        let (k, v) = (cache(), cache());
        assert!(!k.is_contiguous() && !q.is_contiguous() || tq == 1);
        let mask = Mask::Causal { offset: filled - tq };
        let got = attention(&q, &k, &v, mask, scale).unwrap();
        assert!(difference(&got, &composed(&[q, k, v], mask, scale).unwrap()) < 1e-12);
        assert!(got.transpose(1, 2).unwrap().is_contiguous());
    }
}

#[test]
fn rows_of_different_lengths_are_decoded_side_by_side() {
    let (b, h, hkv, room, d) = (3, 6, 2, 9, 8);
    let lengths = RowLengths::new(vec![9, 1, 4], &Device::Cpu).unwrap();
    assert_eq!(lengths.longest(), 9);
    for dtype in [DType::F64, DType::F32, DType::BF16] {
        let cast = |t: Tensor| t.to_dtype(dtype).unwrap();
        // The first rows of a larger cache, filled up to the new position; what is behind it must not be seen.
        let cache = || {
            let rest = (randn(&[b + 1, hkv, room, d]) * f64::NAN).unwrap();
            let all = cast(rest);
            for (row, n) in lengths.rows().iter().enumerate().filter(|(_, n)| **n > 1) {
                all.narrow(0, row, 1).unwrap().slice_set(&cast(randn(&[1, hkv, n - 1, d])), 2, 0).unwrap();
            }
            all.narrow(0, 0, b).unwrap()
        };
        let (keys, values) = (cache(), cache());
        let new = || cast(randn(&[1, b, hkv, d])).permute((1, 2, 0, 3)).unwrap();
        let (k, v, q) = (new(), new(), cast(randn(&[b, h, 1, d])));
        store_last(&keys, &k, &lengths).unwrap();
        store_last(&values, &v, &lengths).unwrap();
        let got = attention(&q, &keys, &values, Mask::Rows(&lengths), 0.4).unwrap();
        for (row, &n) in lengths.rows().iter().enumerate() {
            let part = |t: &Tensor| t.narrow(0, row, 1).unwrap().narrow(2, 0, n).unwrap();
            let alone = [q.narrow(0, row, 1).unwrap(), part(&keys), part(&values)];
            let last = |t: &Tensor| t.narrow(2, n - 1, 1).unwrap();
            assert_eq!(difference(&last(&alone[1]), &k.narrow(0, row, 1).unwrap()), 0.);
            let alone = alone.map(|t| t.to_dtype(DType::F64).unwrap());
            let e = difference(&got.narrow(0, row, 1).unwrap(), &composed(&alone, Mask::None, 0.4).unwrap());
            assert!(e < if dtype == DType::BF16 { 2e-2 } else { 5e-6 }, "row {row} {dtype:?}: {e:.1e}");
        }
    }
    let cache = randn(&[1, 1, 4, 2]);
    for (length, x) in [(0, [1, 1, 1, 2]), (5, [1, 1, 1, 2]), (2, [1, 1, 2, 2]), (2, [1, 2, 1, 2])] {
        let lengths = RowLengths::new(vec![length], &Device::Cpu).unwrap();
        assert!(store_last(&cache, &randn(&x), &lengths).is_err(), "{length} {x:?}");
    }
}

#[test]
fn a_chunked_prefill_equals_one_pass() {
    let t = inputs((1, 4, 2, 50, 50, 8));
    let whole = attention(&t[0], &t[1], &t[2], Mask::Causal { offset: 0 }, 0.5).unwrap();
    for (start, len) in [(0, 20), (20, 29), (49, 1)] {
        let q = t[0].narrow(2, start, len).unwrap();
        let (k, v) = (t[1].narrow(2, 0, start + len).unwrap(), t[2].narrow(2, 0, start + len).unwrap());
        let part = attention(&q, &k, &v, Mask::Causal { offset: start }, 0.5).unwrap();
        assert!(difference(&part, &whole.narrow(2, start, len).unwrap()) < 1e-12);
    }
}

#[test]
fn rows_hold_the_heads_side_by_side() {
    let t = inputs((2, 4, 2, 5, 9, 7));
    let heads = |t: &[Tensor]| attention(&t[0], &t[1], &t[2], Mask::None, 0.5);
    let rows = |t: &[Tensor]| attention_rows(&t[0], &t[1], &t[2], Mask::None, 0.5);
    let expected = heads(&t).unwrap().transpose(1, 2).unwrap().reshape((2, 5, 28)).unwrap();
    assert_eq!(difference(&rows(&t).unwrap(), &expected), 0.);
    check_gradients("attention_rows", &t, rows);
}

#[test]
fn mismatches_are_named() {
    let e = attention(&randn(&[1, 3, 2, 4]), &randn(&[1, 2, 2, 4]), &randn(&[1, 2, 2, 4]), Mask::None, 1.);
    assert!(e.unwrap_err().to_string().contains("do not fit together"));
    let t = inputs((2, 2, 2, 3, 3, 4));
    let e = attention(&t[0], &t[1], &t[2], Mask::Keys(&[1]), 1.).unwrap_err().to_string();
    assert!(e.contains("1 key lengths for a batch of 2"), "{e}");
}

#[test]
fn sums_put_disjoint_sets_of_keys_together() {
    for size in SIZES.into_iter().filter(|size| size.4 > size.3) {
        let (tq, tk, scale) = (size.3, size.4, 0.3);
        let [q, k, v] = inputs(size);
        let before = tk - tq;
        let part = |start: usize, n: usize, mask: Mask| {
            let (k, v) = (k.narrow(2, start, n).unwrap(), v.narrow(2, start, n).unwrap());
            attention_lse(&q, &k, &v, mask, scale).unwrap()
        };
        let (first, second) = (part(0, before, Mask::None), part(before, tq, Mask::Causal { offset: 0 }));
        let share = (&first.1 - &second.1).unwrap();
        let share =
            (share.neg().unwrap().exp().unwrap() + 1.0).unwrap().recip().unwrap().unsqueeze(3).unwrap();
        let got = (&second.0 + (&first.0 - &second.0).unwrap().broadcast_mul(&share).unwrap()).unwrap();
        let whole = attention(&q, &k, &v, Mask::Causal { offset: before }, scale).unwrap();
        assert!(difference(&got, &whole) < 1e-12, "{size:?}");
    }
}
