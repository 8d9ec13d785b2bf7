//! A pre-norm decoder layer (Llama).

use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{DType, Result, Tensor, bail};

use super::attention::{self, Heads};
use super::group::{Adapted, Assembled, Group, assemble, count, few, is_input, trained};
use super::ops::{self, Activation, Angles, NormGradient};
use super::stack::{self, Keep, Layer, Sum};
use super::{Buffer, Context, Mat};

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
    /// The value of layers, one after the other, for `x` (`[B, T, D]`, bf16): position `i` of a row sees positions up to
    /// itself. `cos` and `sin` are `[T, d / 2]` in float32. What stands behind a row's length, a number of `lengths` (`[B]`,
    /// u32), means nothing. Unless `keep`, the backward pass, [`backward`](crate::backward), computes each layer again.
    ///
    /// # Errors
    /// Tensors that do not fit together, are not on a GPU, or are not what [`Adapted::is_supported`] asks for.
    pub fn forward(
        layers: &[Self],
        x: &Tensor,
        (cos, sin): (&Tensor, &Tensor),
        lengths: Option<&Tensor>,
        keep: bool,
    ) -> Result<Tensor> {
        let angle = |t: &Tensor| t.detach().to_dtype(DType::F32)?.contiguous();
        let angles = (angle(cos)?, angle(sin)?);
        let nodes = layers.iter().map(|l| l.node(x, &angles, lengths)).collect::<Result<Vec<_>>>()?;
        stack::forward(nodes, x, layers.iter().flat_map(|l| trained(&l.linears)).collect(), keep)
    }

    fn node(&self, x: &Tensor, angles: &(Tensor, Tensor), lengths: Option<&Tensor>) -> Result<Decoder> {
        let (b, t, width) = x.dims3()?;
        let [q, k, v, o, gate, up, down] = &self.linears;
        let group = |linears: &[&Adapted]| Group::new(linears, b * t);
        let groups = [group(&[q, k, v])?, group(&[o])?, group(&[gate, up])?, group(&[down])?];
        let d = o.weight.dim(1)? / self.heads.max(1);
        let (h, hkv) = (self.heads, self.kv_heads);
        let fits = groups[0].outputs() == (h + 2 * hkv) * d
            && groups[1].inputs() == h * d
            && groups[2].outputs() == 2 * groups[3].inputs()
            && [groups[0].inputs(), groups[1].outputs(), groups[2].inputs(), groups[3].outputs()]
                .iter()
                .all(|n| *n == width)
            && angles.0.dims() == [t, d / 2]
            && angles.1.dims() == [t, d / 2]
            && lengths.is_none_or(|l| l.dims() == [b])
            && d.is_multiple_of(16)
            && width <= ops::WIDEST
            && is_input(x);
        if !fits {
            bail!("decoder layer: x {:?} {:?} does not fit the layer of the gpu", x.dtype(), x.shape());
        }
        Ok(Decoder {
            input_norm: self.input_norm.detach(),
            post_norm: self.post_norm.detach(),
            groups,
            angles: angles.clone(),
            lengths: lengths.map(Tensor::detach),
            heads: Heads { b, t, h, hkv, d, causal: true, lengths: 0 },
            eps: self.eps as f32,
        })
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

/// What the backward pass reads. Inputs that nothing needs are not kept, and large ones are made again.
struct Kept {
    weights: Option<Vec<Assembled>>,
    /// `low` of the groups, where it does not stand beside their inputs.
    lows: [Option<Buffer>; 4],
    x1: Option<Buffer>,
    qkv: Buffer,
    o: Buffer,
    lse: CudaSlice<f32>,
    middle: Buffer,
    x2: Option<Buffer>,
    gates: Buffer,
    x3: Option<Buffer>,
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

impl Layer for Decoder {
    type Kept = Kept;

    fn trained(&self) -> usize {
        count(&self.groups)
    }

    fn width(&self) -> usize {
        self.groups[0].inputs()
    }

    fn forward(&self, ctx: &Context, x: Mat, trained: &[Tensor], y: Mat, keep: Keep) -> Result<Option<Kept>> {
        let [attend, output, feed, down] = &self.groups;
        let weights = assemble(ctx, &self.groups, trained)?;

        let x1 = attend.room(ctx, x.rows)?;
        ops::norm(ctx, x, None, self.norm(ctx, &self.input_norm)?, x1.first(x.cols))?;
        let (qkv, low1) = attend.forward(ctx, &weights[0], x1.mat)?;
        self.rotate(ctx, qkv.mat, false)?;
        let o = output.room(ctx, x.rows)?;
        let lse = attention::forward(ctx, self.heads(ctx)?, qkv.mat, o.first(output.inputs()))?;
        let middle = ctx.buffer(x.rows, x.cols)?;
        let of_o = output.forward_onto(ctx, &weights[1], o.mat, middle.mat, Some(x))?;
        let attended = (keep != Keep::Nothing).then_some((x1, qkv, o));

        let x2 = feed.room(ctx, x.rows)?;
        ops::norm(ctx, middle.mat, None, self.norm(ctx, &self.post_norm)?, x2.first(x.cols))?;
        let (gates, low2) = feed.forward(ctx, &weights[2], x2.mat)?;
        let x3 = down.room(ctx, x.rows)?;
        ops::activate(ctx, Activation::Gated, gates.mat, x3.first(down.inputs()))?;
        let low3 = down.forward_onto(ctx, &weights[3], x3.mat, y, Some(middle.mat))?;
        let Some((x1, qkv, o)) = attended else { return Ok(None) };
        let all = keep == Keep::All;
        let (x1, low1) = attend.keep_input(ctx, x1, low1, all)?;
        let (x2, low2) = feed.keep_input(ctx, x2, low2, all)?;
        let (x3, low3) = down.keep_input(ctx, x3, low3, all)?;
        let (weights, lows) = (few(weights, all), [low1, of_o, low2, low3]);
        Ok(Some(Kept { weights, lows, x1, qkv, o, lse, middle, x2, gates, x3 }))
    }

    fn backward(
        &self,
        ctx: &Context,
        x: Mat,
        trained: &[Tensor],
        kept: Kept,
        g: Sum,
    ) -> Result<(Sum, Vec<Option<Tensor>>)> {
        let [attend, output, feed, down] = &self.groups;
        let Kept { weights, lows: [low1, of_o, low2, low3], x1, qkv, o, lse, middle, x2, gates, x3 } = kept;
        let weights = weights.map_or_else(|| assemble(ctx, &self.groups, trained), Ok)?;
        let (mut of_attend, mut of_output, mut of_feed, mut of_down) = (vec![], vec![], vec![], vec![]);
        let sum = g.dense(ctx)?;
        let g = sum.first;

        let dx3 = down.input_gradient(ctx, &weights[3], g)?;
        let activate = |to| ops::activate(ctx, Activation::Gated, gates.mat, to);
        if let Some((x3, low3)) = down.input_again(ctx, x.rows, (x3, low3.as_ref()), activate)? {
            down.update_gradients(ctx, (x3.mat, low3), &dx3, g, &mut of_down)?;
        }
        // From here on `gates` are their gradient.
        ops::gated_backward(ctx, gates.mat, dx3.dx())?;
        drop(dx3);
        let dx2 = feed.input_gradient(ctx, &weights[2], gates.mat)?;
        let norm = self.norm(ctx, &self.post_norm)?;
        let make = |to| ops::norm(ctx, middle.mat, None, norm, to);
        if let Some((x2, low2)) = feed.input_again(ctx, x.rows, (x2, low2.as_ref()), make)? {
            feed.update_gradients(ctx, (x2.mat, low2), &dx2, gates.mat, &mut of_feed)?;
        }
        drop(gates);
        let dmiddle = output.gradient_room(ctx, x.rows)?;
        let (add, dx) = (Some(g.columns(0, x.cols)), dmiddle.first(x.cols));
        let of = NormGradient { x: middle.mat, g: (dx2.dx(), None), add, dx, y: None };
        ops::norm_backward(ctx, norm, &of)?;
        drop((middle, dx2, sum));

        let d_o = output.input_gradient(ctx, &weights[1], dmiddle.mat)?;
        let low_o = output.low(o.mat, of_o.as_ref());
        output.update_gradients(ctx, (o.mat, low_o), &d_o, dmiddle.mat, &mut of_output)?;
        let dqkv = ctx.buffer(x.rows, attend.outputs())?;
        let outputs = (qkv.mat, o.first(output.inputs()), d_o.dx());
        attention::backward(ctx, self.heads(ctx)?, outputs, &lse, dqkv.mat)?;
        drop((qkv, o, d_o));
        self.rotate(ctx, dqkv.mat, true)?;
        let dx1 = attend.input_gradient(ctx, &weights[0], dqkv.mat)?;
        let norm = self.norm(ctx, &self.input_norm)?;
        let make = |to| ops::norm(ctx, x, None, norm, to);
        if let Some((x1, low1)) = attend.input_again(ctx, x.rows, (x1, low1.as_ref()), make)? {
            attend.update_gradients(ctx, (x1.mat, low1), &dx1, dqkv.mat, &mut of_attend)?;
        }
        // In the form that the layer before, which is alike, takes it in.
        let dx = down.gradient_room(ctx, x.rows)?;
        let (g, add) = ((dx1.dx(), None), Some(dmiddle.first(x.cols)));
        let of = NormGradient { x, g, add, dx: dx.first(x.cols), y: None };
        ops::norm_backward(ctx, norm, &of)?;

        let all = [of_attend, of_output, of_feed, of_down].into_iter().flatten().collect();
        Ok((Sum::new(dx, None), all))
    }
}
