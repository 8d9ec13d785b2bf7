//! Layers as graphs of small operations, which whole layers are held against.

use candle_core::{Result, Tensor};
use e2llm_kernels::*;

/// A linear with its update as a graph of small operations.
pub(crate) fn apply(l: &Adapted, x: &Tensor) -> Result<Tensor> {
    let y = linear(x, &l.weight, l.bias.as_ref())?;
    let Some((a, b, scaling)) = &l.lora else { return Ok(y) };
    let (a, b) = (a.to_dtype(x.dtype())?, b.to_dtype(x.dtype())?);
    let low = (x.flatten_to(1)?.matmul(&a.t()?)? * *scaling)?;
    y.clone() + low.matmul(&b.t()?)?.reshape(y.shape())?
}

/// The heads of a projection, `d` wide.
pub(crate) fn split(x: &Tensor, d: usize) -> Result<Tensor> {
    let (b, t, width) = x.dims3()?;
    x.reshape((b, t, width / d, d))?.transpose(1, 2)
}

/// A decoder layer.
pub(crate) fn decoder_graph(
    l: &DecoderLayer<'_>,
    x: &Tensor,
    angles: [&Tensor; 2],
    mask: Mask<'_>,
) -> Result<Tensor> {
    let [q, k, v, o, gate, up, down] = &l.linears;
    let d = 2 * angles[0].dim(1)?;
    let y = rms_norm(x, l.input_norm, l.eps)?;
    let q = rope(&split(&apply(q, &y)?, d)?, angles[0], angles[1])?;
    let k = rope(&split(&apply(k, &y)?, d)?, angles[0], angles[1])?;
    let y = attention(&q, &k, &split(&apply(v, &y)?, d)?, mask, 1. / (d as f64).sqrt())?;
    let x = (x + apply(o, &y.transpose(1, 2)?.flatten_from(2)?)?)?;
    let y = rms_norm(&x, l.post_norm, l.eps)?;
    &x + apply(down, &silu_mul(&apply(gate, &y)?, &apply(up, &y)?)?)?
}

/// An encoder layer.
pub(crate) fn encoder_graph(l: &EncoderLayer<'_>, x: &Tensor, mask: Mask<'_>) -> Result<Tensor> {
    let [q, k, v, o, inner, outer] = &l.linears;
    let d = x.dim(2)? / l.heads;
    let (q, k) = (split(&apply(q, x)?, d)?, split(&apply(k, x)?, d)?);
    let y = attention(&q, &k, &split(&apply(v, x)?, d)?, mask, 1. / (d as f64).sqrt())?;
    let x = (apply(o, &y.transpose(1, 2)?.flatten_from(2)?)? + x)?;
    let x = layer_norm(&x, l.attention_norm.0, l.attention_norm.1, l.attention_norm.2)?;
    let y = (apply(outer, &gelu(&apply(inner, &x)?)?)? + &x)?;
    layer_norm(&y, l.norm.0, l.norm.1, l.norm.2)
}
