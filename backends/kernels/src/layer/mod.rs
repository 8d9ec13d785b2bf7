//! Whole layers: one node of the graph for all of a model's, with a backward pass of their own.

mod decoder;
mod encoder;
mod linears;
mod stack;

use candle_core::{DType, Result, Tensor, bail};
use std::ops::Range;

use crate::HeadGroups;

pub(crate) use linears::lent;

/// Elements of the widest matrix that is made of a piece of the batch.
const PIECE: usize = 4 << 20;

/// A frozen linear with a low-rank update that is trained, `x W^T + bias + scaling (x A^T) B^T`.
#[derive(Clone, Debug)]
pub struct Adapted {
    /// `[out, in]`.
    pub weight: Tensor,
    /// `[out]`.
    pub bias: Option<Tensor>,
    /// A `[r, in]`, B `[out, r]`, which may be float32 beside a narrower weight, and the factor.
    pub lora: Option<(Tensor, Tensor, f64)>,
}

impl Adapted {
    /// Whether a layer can hold it: on a GPU in bf16, with float32 updates and sizes that are multiples of 8.
    pub fn is_supported(&self) -> bool {
        #[cfg(feature = "cuda")]
        if self.weight.device().is_cuda() {
            return self.is_supported_on_gpu();
        }
        let dense = |t: &Tensor| t.device().is_cpu() && t.is_contiguous();
        let (bias, dtype) = (self.bias.as_ref(), self.weight.dtype());
        self.weight.rank() == 2
            && matches!(dtype, DType::F32 | DType::BF16 | DType::F64)
            && dense(&self.weight)
            && bias.is_none_or(|b| dense(b) && b.dtype() == dtype)
            && self.lora.as_ref().is_none_or(|(a, b, _)| dense(a) && dense(b))
    }
}

/// The trained tensors of linears, in order.
pub(crate) fn trained(linears: &[Adapted]) -> impl Iterator<Item = &Tensor> {
    linears.iter().filter_map(|l| l.lora.as_ref()).flat_map(|(a, b, _)| [a, b])
}

/// The frozen parts of a decoder layer and its trained updates:
/// `x + o(attention(rope(q), rope(k), v))`, then `x + down(silu(gate) up)`, each behind an RMS norm.
#[derive(Clone, Debug)]
pub struct DecoderLayer<'a> {
    /// Weight `[D]` of the norm before attention; one that is trained, on a GPU, is float32.
    pub input_norm: &'a Tensor,
    /// Weight `[D]` of the norm before the feed-forward block, likewise.
    pub post_norm: &'a Tensor,
    /// Projections q, k, v, o, gate, up, down.
    pub linears: [Adapted; 7],
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Of the norms.
    pub eps: f64,
}

/// What the positions of a batch see.
#[derive(Clone, Copy, Debug)]
pub enum Seen<'a> {
    /// Those up to themselves. What stands behind a row's length, a number of these (`[B]`, u32), means nothing.
    Before(Option<&'a Tensor>),
    /// On a GPU, those of them in the groups of the first half of the heads, and of the second.
    Groups(&'a [HeadGroups; 2]),
}

impl DecoderLayer<'_> {
    /// The value of layers, one after the other, for `x` (`[B, T, D]`), whose positions see what `seen` says. `angles` are cosines
    /// and sines, `[T, d / 2]`. Unless `keep`, the backward pass, [`backward`](crate::backward), computes each layer again.
    ///
    /// # Errors
    /// Tensors that do not fit together or are not what [`Adapted::is_supported`] asks for; on the CPU groups and trained norms.
    pub fn forward(
        layers: &[Self],
        x: &Tensor,
        angles: (&Tensor, &Tensor),
        seen: Seen<'_>,
        keep: bool,
    ) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return Self::forward_on_gpu(layers, x, angles, seen, keep);
        }
        let Seen::Before(lengths) = seen else { bail!("decoder layer: groups of positions on the cpu") };
        let angle = |t: &Tensor| {
            let wide = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
            t.detach().to_dtype(wide)?.contiguous()
        };
        let (angles, lengths) = ((angle(angles.0)?, angle(angles.1)?), rows(x, lengths)?);
        let made = |x: &Tensor, rows: Range<usize>| {
            let lengths = lengths.as_ref().map(|l| l[rows].to_vec());
            layers.iter().map(|l| decoder::Decoder::new(l, x, &angles, lengths.clone())).collect()
        };
        let trained = layers.iter().flat_map(|l| trained(&l.linears)).collect();
        stack::forward(x, pieces(x, layers.iter().flat_map(|l| &l.linears))?, made, trained, keep)
    }
}

/// The frozen parts of an encoder layer and its trained updates:
/// `norm(x + out(attention(q, k, v)))`, then `norm(x + outer(gelu(inner)))`, with layer norms.
#[derive(Clone, Debug)]
pub struct EncoderLayer<'a> {
    /// Weight and bias `[E]` of the norm after attention, and its epsilon.
    pub attention_norm: (&'a Tensor, &'a Tensor, f64),
    /// The same of the norm after the feed-forward block.
    pub norm: (&'a Tensor, &'a Tensor, f64),
    /// Projections query, key, value, output, inner, outer.
    pub linears: [Adapted; 6],
    /// Attention heads.
    pub heads: usize,
}

impl EncoderLayer<'_> {
    /// The value of layers, one after the other, for `x` (`[B, T, E]`). Every position of a row sees those within the row's
    /// length, a number of `lengths` (`[B]`, u32); what stands behind it means nothing. Unless `keep`, the backward pass,
    /// [`backward`](crate::backward), computes each layer again.
    ///
    /// # Errors
    /// Tensors that do not fit together or are not what [`Adapted::is_supported`] asks for.
    pub fn forward(layers: &[Self], x: &Tensor, lengths: Option<&Tensor>, keep: bool) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return Self::forward_on_gpu(layers, x, lengths, keep);
        }
        let lengths = rows(x, lengths)?;
        let made = |x: &Tensor, rows: Range<usize>| {
            let lengths = lengths.as_ref().map(|l| l[rows].to_vec());
            layers.iter().map(|l| encoder::Encoder::new(l, x, lengths.clone())).collect()
        };
        let trained = layers.iter().flat_map(|l| trained(&l.linears)).collect();
        stack::forward(x, pieces(x, layers.iter().flat_map(|l| &l.linears))?, made, trained, keep)
    }
}

/// The lengths of the batch's rows.
fn rows(x: &Tensor, lengths: Option<&Tensor>) -> Result<Option<Vec<usize>>> {
    let Some(lengths) = lengths else { return Ok(None) };
    if lengths.dtype() != DType::U32 || lengths.dims() != [x.dim(0)?] {
        bail!("lengths {:?} {:?} of the rows of {:?}", lengths.dtype(), lengths.dims(), x.dims());
    }
    Ok(Some(lengths.to_vec1::<u32>()?.into_iter().map(|n| n as usize).collect()))
}

/// Rows of the batch `x` that go through all layers at once: so many that there is work for all threads, and so few that the
/// memory of what they make is used again for the next ones instead of being taken from the system and given back, which takes
/// longer than a norm.
fn pieces<'a>(x: &Tensor, linears: impl Iterator<Item = &'a Adapted>) -> Result<Vec<Range<usize>>> {
    let (b, t, _) = x.dims3()?;
    let widest = linears.filter_map(|l| l.weight.dims().first()).max().copied().unwrap_or(0);
    let each = (PIECE / (t * widest).max(1)).clamp(1, b.max(1));
    Ok((0..b).step_by(each).map(|first| first..(first + each).min(b)).collect())
}
