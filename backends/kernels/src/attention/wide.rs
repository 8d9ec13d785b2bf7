//! Attention of heads that are wider than the GPU's kernels hold, composed of candle's operations.
//!
//! It holds the score matrix, so it is for few queries: the seeds of a pooling adapter, whose heads are a decoder's width
//! apart.

use candle_core::{D, DType, Result, Tensor};

use super::{Size, Visible};

/// Below any sum of weights of a row that sees a key, whose largest weight is 1.
const NOTHING: f64 = 1e-30;
/// How far below any score a hidden one is.
const HIDDEN: f64 = 1e30;

/// The result `[B, Tq, H, d]`, with gradients for `q`, `k` and `v`, and the logarithms of the rows' sums, `[B, H, Tq]`.
pub(super) fn attention(
    [q, k, v]: [&Tensor; 3],
    size: Size,
    visible: &Visible,
    scale: f64,
) -> Result<(Tensor, Tensor)> {
    let Size { b, h, hkv, tq, tk, d } = size;
    // [B, Hkv, T, d] to [B, H, T, d]
    let spread = |t: &Tensor| {
        let t = t.unsqueeze(2)?.broadcast_as((b, hkv, size.group(), tk, d))?;
        t.reshape((b, h, tk, d))
    };
    let (k, v) = (spread(k)?, spread(v)?);
    let seen: Vec<f32> = (0..b * tq)
        .flat_map(|row| {
            let keys = visible.keys(row / tq, row % tq);
            (0..tk).map(move |key| if key < keys { 1.0 } else { 0.0 })
        })
        .collect();
    let seen = Tensor::from_vec(seen, (b, 1, tq, tk), q.device())?;
    let scores = q.contiguous()?.matmul(&k.t()?.contiguous()?)?.to_dtype(DType::F32)?;
    // Hidden scores are replaced and not only lowered, so that nothing depends on what padding holds.
    let hidden = ((&seen - 1.0)? * HIDDEN)?;
    let scores = (scores * scale)?.broadcast_mul(&seen)?.broadcast_add(&hidden)?;
    // Where nothing is seen, the highest score is above all of them and every weight 0.
    let highest = scores.max_keepdim(D::Minus1)?.detach().maximum(-0.1 * HIDDEN)?;
    let weights = scores.broadcast_sub(&highest)?.exp()?;
    let sum = weights.sum_keepdim(D::Minus1)?.maximum(NOTHING)?;
    let o = weights.broadcast_div(&sum)?.to_dtype(v.dtype())?.matmul(&v.contiguous()?)?;
    let lse = (highest + sum.log()?)?.squeeze(D::Minus1)?;
    Ok((o.transpose(1, 2)?.contiguous()?, lse))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::{Kept, Mask, run};
    use candle_core::{Device, Var};

    fn random(shape: (usize, usize, usize, usize), seed: f32) -> Var {
        let n = shape.0 * shape.1 * shape.2 * shape.3;
        let values: Vec<f32> = (0..n).map(|i| 3.0 * ((i as f32 + seed) * 1.37).sin()).collect();
        Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
    }

    fn largest(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    #[test]
    fn it_is_what_the_kernels_compute() {
        let size = Size { b: 3, h: 4, hkv: 2, tq: 3, tk: 7, d: 6 };
        let (q, k, v) = (random((3, 4, 3, 6), 0.1), random((3, 2, 7, 6), 0.2), random((3, 2, 7, 6), 0.3));
        let lengths = [7, 0, 2];
        for (mask, offset) in
            [(Mask::None, None), (Mask::Causal { offset: 4 }, Some(4)), (Mask::Keys(&lengths), None)]
        {
            let valid = if let Mask::Keys(l) = mask { l.to_vec() } else { vec![7; 3] };
            let visible = Visible { lengths: valid, offset };
            let (ours, sums) = attention([&q, &k, &v], size, &visible, 0.4).unwrap();
            let kept = Kept::default();
            let theirs = run(&q, &k, &v, mask, 0.4, Some(&kept)).unwrap();
            for row in [0, 2] {
                let of_row = |t: &Tensor| t.get(row).unwrap();
                assert!(largest(&of_row(&sums), &of_row(&kept.get().unwrap())) < 1e-5, "{mask:?}");
            }
            assert!(largest(&ours, &theirs) < 1e-5, "{mask:?}");
            let weight = random((3, 3, 4, 6), 0.7);
            let gradients =
                |o: &Tensor| (o * weight.as_tensor()).unwrap().sum_all().unwrap().backward().unwrap();
            let (ours, theirs) = (gradients(&ours), gradients(&theirs));
            for t in [&q, &k, &v] {
                assert!(largest(ours.get(t).unwrap(), theirs.get(t).unwrap()) < 1e-4, "{mask:?}");
            }
        }
    }
}
