//! The embeddings of tokens and their places, normalised.

use candle_core::cuda_backend::cudarc::driver::PushKernelArg;
use candle_core::{DType, Result, Tensor, bail};

use super::group::is_input;
use super::{Context, PACK, ops};
use crate::cuda::{blocks, int, launch};

/// `layer_norm(words[ids[i]] + places[i % T])` for `words` (`[V, D]`), `ids` (`[N]`, u32, none beyond the words) and `places`
/// (`[T, D]`), with weight and bias (`[D]`) and epsilon of the norm: `[N, D]`. `None` unless all are frozen and in bf16 on a
/// GPU, and rows are multiples of 16 bytes and at most 4096 wide.
///
/// # Errors
/// Sizes that do not fit together.
pub fn embed_norm(
    words: &Tensor,
    ids: &Tensor,
    places: &Tensor,
    (weight, bias, eps): (&Tensor, &Tensor, f64),
) -> Result<Option<Tensor>> {
    let ((_, d), n, (t, d2)) = (words.dims2()?, ids.dims1()?, places.dims2()?);
    if d2 != d || weight.dims() != [d] || bias.dims() != [d] || ids.dtype() != DType::U32 || (t == 0 && n > 0)
    {
        bail!(
            "embed_norm: words {:?}, places {:?}, weight {:?}",
            words.shape(),
            places.shape(),
            weight.shape()
        );
    }
    let frozen = |t: &&Tensor| is_input(t) && t.is_contiguous() && !t.track_op();
    if ![words, places, weight, bias].iter().all(frozen) || d % PACK != 0 || d > ops::WIDEST {
        return Ok(None);
    }
    let ctx = &Context::new(words.device())?;
    let y = ctx.buffer(n, d)?;
    let (words, places) = (ctx.matrix(words)?.address, ctx.matrix(places)?.address);
    let (weight, bias) = (ctx.matrix(weight)?.address, ctx.matrix(bias)?.address);
    let ids = ctx.input::<u32>(ids)?;
    let (rows, t, width, eps) = (n as i64, int(t)?, int(d)?, eps as f32);
    let f = ops::norm_kernel(ctx, "embed_norm", d)?;
    let mut args = f.builder();
    args.arg(&words).arg(&ids).arg(&places).arg(&weight).arg(&bias).arg(&y.mat.address);
    args.arg(&rows).arg(&t).arg(&width).arg(&eps);
    launch(&mut args, blocks(n.div_ceil(4), 128))?;
    Ok(Some(y.into_tensor((n, d), ctx)))
}
