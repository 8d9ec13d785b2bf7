//! A post-norm encoder layer (BERT).

use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{Result, Tensor, bail};

use super::attention::{self, Heads};
use super::group::{Activated, Assembled, Group, assemble, count, few, is_input};
use super::ops::{self, NormGradient};
use super::stack::{self, Keep, Layer, Sum};
use super::{Buffer, Context, Mat};
use crate::layer::{Adapted, EncoderLayer, trained};

impl EncoderLayer<'_> {
    /// [`EncoderLayer::forward`] in bf16 on a GPU.
    pub(crate) fn forward_on_gpu(
        layers: &[Self],
        x: &Tensor,
        lengths: Option<&Tensor>,
        keep: bool,
    ) -> Result<Tensor> {
        let nodes = layers.iter().map(|l| l.node(x, lengths)).collect::<Result<Vec<_>>>()?;
        stack::forward(nodes, x, layers.iter().flat_map(|l| trained(&l.linears)).collect(), keep)
    }

    fn node(&self, x: &Tensor, lengths: Option<&Tensor>) -> Result<Encoder> {
        let (b, t, width) = x.dims3()?;
        let [q, k, v, o, inner, outer] = &self.linears;
        let group = |linears: &[&Adapted]| Group::new(linears, b * t);
        let groups = [group(&[q, k, v])?, group(&[o])?, group(&[inner])?, group(&[outer])?];
        let (h, d) = (self.heads, o.weight.dim(1)? / self.heads.max(1));
        let fits = groups[0].outputs() == 3 * h * d
            && groups[1].inputs() == h * d
            && groups[2].outputs() == groups[3].inputs()
            && [groups[0].inputs(), groups[1].outputs(), groups[2].inputs(), groups[3].outputs()]
                .iter()
                .all(|n| *n == width)
            && lengths.is_none_or(|l| l.dims() == [b])
            && d.is_multiple_of(8)
            && width <= ops::WIDEST
            && is_input(x);
        if !fits {
            bail!("encoder layer: x {:?} {:?} does not fit the layer of the gpu", x.dtype(), x.shape());
        }
        let norm = |(w, b, eps): (&Tensor, &Tensor, f64)| (w.detach(), b.detach(), eps as f32);
        Ok(Encoder {
            norms: [norm(self.attention_norm), norm(self.norm)],
            groups,
            lengths: lengths.map(Tensor::detach),
            heads: Heads { b, t, h, hkv: h, d, causal: false, lengths: 0 },
        })
    }
}

struct Encoder {
    norms: [(Tensor, Tensor, f32); 2],
    /// qkv, output, inner, outer.
    groups: [Group; 4],
    lengths: Option<Tensor>,
    heads: Heads,
}

/// What the backward pass reads; the sums are what the norms were given. The values of the norms are made once more, and so are, where they
/// are large, queries, keys and values: of all that is kept they take the least time for their memory.
struct Kept {
    weights: Option<Vec<Assembled>>,
    /// `low` of the groups.
    lows: [Option<Buffer>; 4],
    qkv: Option<Buffer>,
    o: Buffer,
    lse: CudaSlice<f32>,
    sum1: Buffer,
    inner: Activated,
    sum2: Buffer,
}

/// Bytes of a layer's value from which on it and the queries, keys and values of the next layer are made again in the backward pass: it
/// has to be so large that not the launches count.
const WORTH_REMAKING: usize = 16 << 20;

impl Encoder {
    fn norm(&self, ctx: &Context, which: usize) -> Result<ops::Norm> {
        let (weight, bias, eps) = &self.norms[which];
        let (weight, bias) = (ctx.matrix(weight)?.address, Some(ctx.matrix(bias)?.address));
        Ok(ops::Norm { weight, bias, eps: *eps })
    }

    fn heads(&self, ctx: &Context) -> Result<Heads> {
        let lengths = self.lengths.as_ref().map_or(Ok(0), |l| ctx.input::<u32>(l))?;
        Ok(Heads { lengths, ..self.heads })
    }
}

impl Layer for Encoder {
    type Kept = Kept;

    fn trained(&self) -> usize {
        count(&self.groups)
    }

    fn width(&self) -> usize {
        self.groups[0].width()
    }

    fn is_remade(&self, rows: usize) -> bool {
        2 * rows * self.groups[0].inputs() >= WORTH_REMAKING
    }

    fn value(&self, ctx: &Context, kept: &Kept, y: Mat) -> Result<()> {
        ops::norm(ctx, kept.sum2.mat, None, self.norm(ctx, 1)?, y)
    }

    fn forward(&self, ctx: &Context, x: Mat, trained: &[Tensor], y: Mat, keep: Keep) -> Result<Option<Kept>> {
        let [attend, output, up, down] = &self.groups;
        let weights = assemble(ctx, &self.groups, trained)?;
        let (rows, width) = (x.rows, y.cols);

        let (qkv, low) = attend.forward(ctx, &weights[0], x)?;
        let o = output.room(ctx, rows)?;
        let lse = attention::forward(ctx, self.heads(ctx)?, qkv.mat, o.first(output.inputs()))?;
        let sum1 = ctx.buffer(rows, width)?;
        let of_o = output.forward_onto(ctx, &weights[1], o.mat, sum1.mat, Some(x.columns(0, width)))?;
        let mut lows = [low, of_o, None, None];
        let is_kept = keep == Keep::All || !self.is_remade(rows);
        let attended = (keep != Keep::Nothing).then(|| (is_kept.then_some(qkv), o));
        let x2 = up.room(ctx, rows)?;
        ops::norm(ctx, sum1.mat, None, self.norm(ctx, 0)?, x2.first(width))?;

        let x3 = down.room(ctx, rows)?;
        let to = (x2.mat, x3.first(down.inputs()));
        let (inner, low2) = up.forward_gelu(ctx, &weights[2], to, down, keep != Keep::Nothing)?;
        let sum2 = ctx.buffer(rows, width)?;
        let low3 = down.forward_onto(ctx, &weights[3], x3.mat, sum2.mat, Some(x2.first(width)))?;
        ops::norm(ctx, sum2.mat, None, self.norm(ctx, 1)?, y)?;
        let (Some((qkv, o)), Some(inner)) = (attended, inner) else { return Ok(None) };
        lows[2] = up.keep_low(ctx, x2.mat, low2)?;
        lows[3] = down.keep_low(ctx, x3.mat, low3)?;
        let weights = few(weights, keep == Keep::All);
        Ok(Some(Kept { weights, lows, qkv, o, lse, sum1, inner, sum2 }))
    }

    fn backward(
        &self,
        ctx: &Context,
        x: Mat,
        trained: &[Tensor],
        kept: Kept,
        g: Sum,
    ) -> Result<(Sum, Vec<Option<Tensor>>)> {
        let [attend, output, up, down] = &self.groups;
        let Kept { weights, lows: [low, of_o, low2, low3], qkv, o, lse, sum1, inner, sum2 } = kept;
        let weights = weights.map_or_else(|| assemble(ctx, &self.groups, trained), Ok)?;
        let (mut of_attend, mut of_output, mut of_up, mut of_down) = (vec![], vec![], vec![], vec![]);
        let (rows, width) = (x.rows, output.outputs());
        let own = |low: &Option<Buffer>, group: &Group| low.as_ref().map(|low| low.first(group.rank()));

        let dsum2 = down.gradient_room(ctx, rows)?;
        let dx = dsum2.first(width);
        let of = NormGradient { x: sum2.mat, g: (g.first, g.second), add: None, dx, y: None };
        ops::norm_backward(ctx, self.norm(ctx, 1)?, &of)?;
        drop((g, sum2));
        let inner = (inner, own(&low3, down));
        let dx3 = down.gelu_gradient(ctx, &weights[3], dsum2.mat, inner, &mut of_down)?;
        let dx2 = up.input_gradient(ctx, &weights[2], dx3.dx())?;
        // The sum before the second norm reads the first norm's value directly as well. That value comes in the place of
        // the gradient.
        let dsum1 = output.gradient_room(ctx, rows)?;
        let (g, dx) = ((dsum2.first(width), Some(dx2.dx())), dsum1.first(width));
        let of = NormGradient { x: sum1.mat, g, add: None, dx, y: Some(dsum2.first(width)) };
        ops::norm_backward(ctx, self.norm(ctx, 0)?, &of)?;
        up.update_gradients(ctx, (dsum2.first(width), own(&low2, up)), &dx2, dx3.dx(), &mut of_up)?;
        drop((sum1, dx2, dx3, dsum2));

        let d_o = output.input_gradient(ctx, &weights[1], dsum1.mat)?;
        let low_o = output.low(o.mat, of_o.as_ref());
        output.update_gradients(ctx, (o.mat, low_o), &d_o, dsum1.mat, &mut of_output)?;
        let (qkv, low) = match qkv {
            Some(qkv) => (qkv, low),
            None => attend.forward(ctx, &weights[0], x)?,
        };
        let dqkv = ctx.buffer(rows, attend.outputs())?;
        let outputs = (qkv.mat, o.first(output.inputs()), d_o.dx());
        attention::backward(ctx, self.heads(ctx)?, outputs, &lse, dqkv.mat)?;
        drop((qkv, o, d_o));
        let dx = attend.input_gradient(ctx, &weights[0], dqkv.mat)?;
        let low = attend.low(x, low.as_ref());
        attend.update_gradients(ctx, (x, low), &dx, dqkv.mat, &mut of_attend)?;
        let all = [of_attend, of_output, of_up, of_down].into_iter().flatten().collect();
        let dsum1 = Buffer { mat: dsum1.first(width), ..dsum1 };
        Ok((Sum::new(dsum1, Some(dx.into_dx())), all))
    }
}
