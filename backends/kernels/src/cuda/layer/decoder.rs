//! A pre-norm decoder layer (Llama).

use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{DType, Result, Tensor, bail};

use super::attention::{self, Heads};
use super::group::{Adapted, Assembled, Group, assemble, is_input, trained};
use super::ops::{self, Activation, Angles};
use super::{Buffer, Context, Mat};
use crate::node::{self, Node};

/// The frozen parts of a decoder layer and its trained updates:
/// `x + o(attention(rope(q), rope(k), v))`, then `x + down(silu(gate) up)`, each behind an RMS norm.
#[derive(Clone, Debug)]
pub struct DecoderLayer<'a> {
    /// Weight `[D]` of the norm before attention.
    pub input_norm: &'a Tensor,
    /// Weight `[D]` of the norm before the feed-forward block.
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

impl DecoderLayer<'_> {
    /// The layer's value for `x` (`[B, T, D]`, bf16): position `i` of a row sees positions up to itself. `cos` and `sin`
    /// are `[T, d / 2]` in float32. What stands behind a row's length, a number of `lengths` (`[B]`, u32), means
    /// nothing. Unless `keep`, the backward pass computes the layer again.
    ///
    /// # Errors
    /// Tensors that do not fit together, are not on a GPU, or are not what [`Adapted::is_supported`] asks for.
    pub fn forward(
        &self,
        x: &Tensor,
        (cos, sin): (&Tensor, &Tensor),
        lengths: Option<&Tensor>,
        keep: bool,
    ) -> Result<Tensor> {
        let (b, t, width) = x.dims3()?;
        let [q, k, v, o, gate, up, down] = &self.linears;
        let groups =
            [Group::new(&[q, k, v])?, Group::new(&[o])?, Group::new(&[gate, up])?, Group::new(&[down])?];
        let d = o.weight.dim(1)? / self.heads.max(1);
        let (h, hkv) = (self.heads, self.kv_heads);
        let fits = groups[0].outputs() == (h + 2 * hkv) * d
            && groups[1].inputs() == h * d
            && groups[2].outputs() == 2 * groups[3].inputs()
            && [groups[0].inputs(), groups[1].outputs(), groups[2].inputs(), groups[3].outputs()]
                .iter()
                .all(|n| *n == width)
            && cos.dims() == [t, d / 2]
            && sin.dims() == [t, d / 2]
            && lengths.is_none_or(|l| l.dims() == [b])
            && d.is_multiple_of(16)
            && width <= ops::WIDEST
            && is_input(x);
        if !fits {
            bail!("decoder layer: x {:?} {:?} does not fit the layer of the gpu", x.dtype(), x.shape());
        }
        let angle = |t: &Tensor| t.detach().to_dtype(DType::F32)?.contiguous();
        let node = Decoder {
            input_norm: self.input_norm.detach(),
            post_norm: self.post_norm.detach(),
            groups,
            angles: (angle(cos)?, angle(sin)?),
            lengths: lengths.map(Tensor::detach),
            heads: Heads { b, t, h, hkv, d, causal: true, lengths: 0 },
            eps: self.eps as f32,
        };
        let x = x.contiguous()?;
        let inputs: Vec<&Tensor> = std::iter::once(&x).chain(trained(&self.linears)).collect();
        node::apply(&inputs, node, keep)
    }
}

struct Decoder {
    input_norm: Tensor,
    post_norm: Tensor,
    /// qkv, o, gate and up, down.
    groups: [Group; 4],
    angles: (Tensor, Tensor),
    lengths: Option<Tensor>,
    heads: Heads,
    eps: f32,
}

/// Bytes of a layer's weights that are kept for the backward pass at most: beyond, their copies would take more memory
/// than time is lost by copying them again.
const KEPT: usize = 64 << 20;

/// What the backward pass reads.
struct Kept {
    /// Unless they are so large that it is better to make them again.
    weights: Option<Vec<Assembled>>,
    x1: Buffer,
    qkv: Buffer,
    o: Buffer,
    lse: CudaSlice<f32>,
    middle: Buffer,
    x2: Buffer,
    gates: Buffer,
    x3: Buffer,
}

impl Decoder {
    fn norm(&self, ctx: &Context, weight: &Tensor) -> Result<ops::Norm> {
        Ok(ops::Norm { weight: ctx.matrix(weight)?.address, bias: None, eps: self.eps })
    }

    fn heads(&self, ctx: &Context) -> Result<Heads> {
        let lengths = self.lengths.as_ref().map_or(Ok(0), |l| ctx.input::<u32>(l))?;
        Ok(Heads { lengths, ..self.heads })
    }

    fn rotate(&self, ctx: &Context, x: Mat, inverse: bool) -> Result<()> {
        let (cos, sin) = (ctx.input::<f32>(&self.angles.0)?, ctx.input::<f32>(&self.angles.1)?);
        let Heads { t, h, hkv, d, .. } = self.heads;
        ops::rope(ctx, x, Angles { cos, sin, t }, h + hkv, d, inverse)
    }
}

impl Node for Decoder {
    type Kept = Kept;

    fn forward(&self, inputs: &[Tensor]) -> Result<(Tensor, Kept)> {
        let ctx = &Context::new(inputs[0].device())?;
        let x = ctx.matrix(&inputs[0])?;
        let [attend, output, feed, down] = &self.groups;
        let weights = assemble(ctx, &self.groups, &inputs[1..])?;

        let x1 = attend.room(ctx, x.rows)?;
        ops::norm(ctx, x, None, self.norm(ctx, &self.input_norm)?, x1.first(x.cols))?;
        let qkv = attend.forward(ctx, &weights[0], &x1)?;
        self.rotate(ctx, qkv.mat, false)?;
        let o = output.room(ctx, x.rows)?;
        let lse = attention::forward(ctx, self.heads(ctx)?, qkv.mat, o.first(output.inputs()))?;
        let update = output.forward(ctx, &weights[1], &o)?;

        let (middle, x2) = (ctx.buffer(x.rows, x.cols)?, feed.room(ctx, x.rows)?);
        let norm = self.norm(ctx, &self.post_norm)?;
        ops::norm(ctx, x, Some((update.mat, middle.mat)), norm, x2.first(x.cols))?;
        let gates = feed.forward(ctx, &weights[2], &x2)?;
        let x3 = down.room(ctx, x.rows)?;
        ops::activate(ctx, Activation::Gated, gates.mat, x3.first(down.inputs()))?;
        let update = down.forward(ctx, &weights[3], &x3)?;
        let y = ctx.buffer(x.rows, x.cols)?;
        ops::add(ctx, middle.mat, Some(update.mat), y.mat)?;
        let y = y.into_tensor(inputs[0].shape(), ctx);
        let weights = Some(weights).filter(|w| w.iter().map(Assembled::bytes).sum::<usize>() < KEPT);
        Ok((y, Kept { weights, x1, qkv, o, lse, middle, x2, gates, x3 }))
    }

    fn backward(&self, inputs: &[Tensor], kept: Kept, g: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let ctx = &Context::new(g.device())?;
        let (x, g) = (ctx.matrix(&inputs[0])?, g.contiguous()?);
        let g = ctx.matrix(&g)?;
        let [attend, output, feed, down] = &self.groups;
        let Kept { weights, x1, qkv, o, lse, middle, x2, gates, x3 } = kept;
        let weights = weights.map_or_else(|| assemble(ctx, &self.groups, &inputs[1..]), Ok)?;
        let (mut of_attend, mut of_output, mut of_feed, mut of_down) = (vec![], vec![], vec![], vec![]);

        let dx3 = down.backward(ctx, &weights[3], &x3, g, &mut of_down)?;
        drop(x3);
        let dgates = ctx.buffer(x.rows, feed.outputs())?;
        let dactive = dx3.first(down.inputs());
        ops::activate_backward(ctx, Activation::Gated, gates.mat, dactive, dgates.mat)?;
        drop((gates, dx3));
        let dx2 = feed.backward(ctx, &weights[2], &x2, dgates.mat, &mut of_feed)?;
        drop((x2, dgates));
        let dmiddle = ctx.buffer(x.rows, x.cols)?;
        let norm = self.norm(ctx, &self.post_norm)?;
        ops::norm_backward(ctx, middle.mat, norm, dx2.first(x.cols), Some(g), dmiddle.mat)?;
        drop((middle, dx2));

        let d_o = output.backward(ctx, &weights[1], &o, dmiddle.mat, &mut of_output)?;
        let dqkv = ctx.buffer(x.rows, attend.outputs())?;
        let width = output.inputs();
        let outputs = (qkv.mat, o.first(width), d_o.first(width));
        attention::backward(ctx, self.heads(ctx)?, outputs, &lse, dqkv.mat)?;
        drop((qkv, o, d_o));
        self.rotate(ctx, dqkv.mat, true)?;
        let dx1 = attend.backward(ctx, &weights[0], &x1, dqkv.mat, &mut of_attend)?;
        let dx = ctx.buffer(x.rows, x.cols)?;
        let norm = self.norm(ctx, &self.input_norm)?;
        ops::norm_backward(ctx, x, norm, dx1.first(x.cols), Some(dmiddle.mat), dx.mat)?;

        let dx = dx.into_tensor(inputs[0].shape(), ctx);
        let parts = [vec![Some(dx)], of_attend, of_output, of_feed, of_down];
        Ok(parts.into_iter().flatten().collect())
    }
}
