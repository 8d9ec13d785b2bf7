//! Means of k equal spans of a chunk.

use candle_core::{DType, Result, Tensor};
use std::ops::Range;

/// Span `j` of `k` over `n` tokens, special tokens included: `j n / k .. (j + 1) n / k`, or where that is empty
/// the one token `min(j n / k, n - 1)`.
fn span(j: usize, k: usize, n: usize) -> Range<usize> {
    let (start, end) = (j * n / k, (j + 1) * n / k);
    if end > start {
        return start..end;
    }
    let only = start.min(n - 1);
    only..only + 1
}

/// `x: [C, L, E]` with `lengths[i]` real tokens in chunk `i`, to the means of its spans `[C, k, E]`.
///
/// Sums are a product with a constant matrix of zeros and ones `[C, k, L]`, whose backward pass is one too.
/// They are divided in float32 (float64 where the states are), as a mean of PyTorch is.
pub(super) fn span_means(x: &Tensor, lengths: &[usize], k: usize) -> Result<Tensor> {
    let (c, l, _) = x.dims3()?;
    let mut member = vec![0f32; c * k * l];
    let mut count = vec![0f32; c * k];
    for (i, &n) in lengths.iter().enumerate() {
        for j in 0..k {
            let row = i * k + j;
            let span = span(j, k, n);
            count[row] = span.len() as f32;
            member[row * l..(row + 1) * l][span].fill(1.0);
        }
    }
    let member = Tensor::from_vec(member, (c, k, l), x.device())?.to_dtype(x.dtype())?;
    let wide = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let count = Tensor::from_vec(count, (c, k, 1), x.device())?.to_dtype(wide)?;
    let sums = member.matmul(&x.contiguous()?)?.to_dtype(wide)?;
    sums.broadcast_div(&count)?.to_dtype(x.dtype())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};
    use proptest::prelude::*;

    #[test]
    fn short_chunks_repeat_tokens() {
        let spans: Vec<_> = (0..3).map(|j| span(j, 3, 2)).collect();
        assert_eq!(spans, [0..1, 0..1, 1..2]);
        assert_eq!((0..4).map(|j| span(j, 4, 1)).collect::<Vec<_>>(), vec![0..1; 4]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn spans_are_in_order_and_cover_a_chunk_that_has_tokens_enough(n in 1usize..200, k in 1usize..64) {
            let spans: Vec<_> = (0..k).map(|j| span(j, k, n)).collect();
            prop_assert!(spans.iter().all(|s| !s.is_empty() && s.end <= n));
            prop_assert!(spans.windows(2).all(|w| w[0].start <= w[1].start));
            if n >= k {
                prop_assert!(spans[0].start == 0 && spans[k - 1].end == n);
                prop_assert!(spans.windows(2).all(|w| w[0].end == w[1].start));
            }
        }
    }

    #[test]
    fn means_and_their_gradient_leave_padding_out() -> Result<()> {
        let values: Vec<f64> = (0..12).map(f64::from).collect();
        let x = Var::from_tensor(&Tensor::from_vec(values, (2, 3, 2), &Device::Cpu)?)?;
        let means = span_means(&x, &[3, 1], 2)?;
        let expected = [[[0.0, 1.0], [3.0, 4.0]], [[6.0, 7.0], [6.0, 7.0]]];
        assert_eq!(means.to_vec3::<f64>()?, expected);
        let gradient = means.sum_all()?.backward()?;
        let gradient = gradient.get(&x).unwrap().to_vec3::<f64>()?;
        assert_eq!(gradient, [[[1.0; 2], [0.5; 2], [0.5; 2]], [[2.0; 2], [0.0; 2], [0.0; 2]]]);
        Ok(())
    }
}
