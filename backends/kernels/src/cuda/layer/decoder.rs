//! A pre-norm decoder layer (Llama).

use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{DType, Result, Tensor, bail};

use super::attention::{self, Heads};
use super::group::{Assembled, Group, assemble, count, few, is_input};
use super::ops::{self, Activation, Angles, NormGradient};
use super::shifted::{self, Halves};
use super::stack::{self, Keep, Layer, Sum};
use super::{Buffer, Context, Mat};
use crate::HeadGroups;
use crate::layer::{Adapted, DecoderLayer, Seen, trained};

impl DecoderLayer<'_> {
    /// [`DecoderLayer::forward`] in bf16 on a GPU.
    pub(crate) fn forward_on_gpu(
        layers: &[Self],
        x: &Tensor,
        (cos, sin): (&Tensor, &Tensor),
        seen: Seen<'_>,
        keep: bool,
    ) -> Result<Tensor> {
        let angle = |t: &Tensor| t.detach().to_dtype(DType::F32)?.contiguous();
        let angles = (angle(cos)?, angle(sin)?);
        let nodes = layers.iter().map(|l| l.node(x, &angles, seen)).collect::<Result<Vec<_>>>()?;
        stack::forward(nodes, x, layers.iter().flat_map(Self::trained_on_gpu).collect(), keep)
    }

    /// Its trained tensors, in order.
    fn trained_on_gpu(&self) -> Vec<&Tensor> {
        let norms = [self.input_norm, self.post_norm].into_iter().filter(|n| n.track_op());
        trained(&self.linears).chain(norms).collect()
    }

    fn node(&self, x: &Tensor, angles: &(Tensor, Tensor), seen: Seen<'_>) -> Result<Decoder> {
        let (b, t, width) = x.dims3()?;
        let (lengths, shifted) = match seen {
            Seen::Before(lengths) => (lengths, None),
            Seen::Groups(groups) => {
                Halves::check(groups, b * t)?;
                (None, Some(groups.clone()))
            }
        };
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
            && (h.is_multiple_of(hkv.max(1)) || shifted.is_none())
            && [self.input_norm, self.post_norm].iter().all(|n| n.dims() == [width])
            && width <= ops::WIDEST
            && is_input(x);
        if !fits {
            bail!("decoder layer: x {:?} {:?} does not fit the layer of the gpu", x.dtype(), x.shape());
        }
        let rounded = |norm: &Tensor| norm.detach().to_dtype(DType::BF16)?.contiguous();
        Ok(Decoder {
            norms: [rounded(self.input_norm)?, rounded(self.post_norm)?],
            trained_norms: [self.input_norm.track_op(), self.post_norm.track_op()],
            groups,
            angles: angles.clone(),
            lengths: lengths.map(Tensor::detach),
            shifted,
            heads: Heads { b, t, h, hkv, d, causal: true, lengths: 0 },
            eps: self.eps as f32,
        })
    }
}

struct Decoder {
    /// Before attention, and before the feed-forward block.
    norms: [Tensor; 2],
    trained_norms: [bool; 2],
    /// qkv, o, gate and up, down.
    groups: [Group; 4],
    angles: (Tensor, Tensor),
    lengths: Option<Tensor>,
    shifted: Option<[HeadGroups; 2]>,
    heads: Heads,
    eps: f32,
}

/// Logarithms of the sums of attention.
enum Logs {
    Before(CudaSlice<f32>),
    Groups(shifted::Kept),
}

/// What the backward pass reads. Inputs that nothing needs are not kept, and large ones are made again.
struct Kept {
    weights: Option<Vec<Assembled>>,
    /// `low` of the groups, where it does not stand beside their inputs.
    lows: [Option<Buffer>; 4],
    x1: Option<Buffer>,
    qkv: Buffer,
    o: Buffer,
    logs: Logs,
    middle: Buffer,
    x2: Option<Buffer>,
    gates: Buffer,
    x3: Option<Buffer>,
}

impl Decoder {
    fn norm(&self, ctx: &Context, i: usize) -> Result<ops::Norm> {
        Ok(ops::Norm { weight: ctx.matrix(&self.norms[i])?.address, bias: None, eps: self.eps })
    }

    /// The gradient of a norm's weight, where it is trained, given its input and the gradient of its value.
    fn norm_gradient(&self, ctx: &Context, i: usize, x: Mat, g: Mat) -> Result<Option<Option<Tensor>>> {
        let gradient = || shifted::norm_weight_gradient(ctx, x, g, self.eps);
        self.trained_norms[i].then(|| gradient().map(Some)).transpose()
    }

    fn halves<'a>(&self, groups: &'a [HeadGroups; 2]) -> Halves<'a> {
        Halves { groups, heads: self.heads }
    }

    fn attend(&self, ctx: &Context, qkv: Mat, o: Mat) -> Result<Logs> {
        Ok(match &self.shifted {
            Some(groups) => Logs::Groups(self.halves(groups).forward(ctx, qkv, o)?),
            None => Logs::Before(attention::forward(ctx, self.heads(ctx)?, qkv, o)?),
        })
    }

    /// As [`attention::backward`].
    fn attend_backward(&self, ctx: &Context, of: (Mat, Mat, Mat), logs: &Logs, dqkv: Mat) -> Result<()> {
        match (&self.shifted, logs) {
            (Some(groups), Logs::Groups(logs)) => self.halves(groups).backward(ctx, of, logs, dqkv),
            (None, Logs::Before(logs)) => attention::backward(ctx, self.heads(ctx)?, of, logs, dqkv),
            _ => bail!("a layer kept the logarithms of another form of attention"),
        }
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
        count(&self.groups) + self.trained_norms.iter().filter(|is| **is).count()
    }

    fn width(&self) -> usize {
        self.groups[0].inputs()
    }

    fn forward(&self, ctx: &Context, x: Mat, trained: &[Tensor], y: Mat, keep: Keep) -> Result<Option<Kept>> {
        let [attend, output, feed, down] = &self.groups;
        let weights = assemble(ctx, &self.groups, &trained[..count(&self.groups)])?;

        let x1 = attend.room(ctx, x.rows)?;
        ops::norm(ctx, x, None, self.norm(ctx, 0)?, x1.first(x.cols))?;
        let (qkv, low1) = attend.forward(ctx, &weights[0], x1.mat)?;
        self.rotate(ctx, qkv.mat, false)?;
        let o = output.room(ctx, x.rows)?;
        let logs = self.attend(ctx, qkv.mat, o.first(output.inputs()))?;
        let middle = ctx.buffer(x.rows, x.cols)?;
        let of_o = output.forward_onto(ctx, &weights[1], o.mat, middle.mat, Some(x))?;
        let attended = (keep != Keep::Nothing).then_some((x1, qkv, o));

        let x2 = feed.room(ctx, x.rows)?;
        ops::norm(ctx, middle.mat, None, self.norm(ctx, 1)?, x2.first(x.cols))?;
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
        Ok(Some(Kept { weights, lows, x1, qkv, o, logs, middle, x2, gates, x3 }))
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
        let Kept { weights, lows: [low1, of_o, low2, low3], x1, qkv, o, logs, middle, x2, gates, x3 } = kept;
        let weights =
            weights.map_or_else(|| assemble(ctx, &self.groups, &trained[..count(&self.groups)]), Ok)?;
        let (mut of_attend, mut of_output, mut of_feed, mut of_down) = (vec![], vec![], vec![], vec![]);
        let sum = g.dense(ctx)?;
        let g = sum.first;

        // The input of a group, where it is made again, comes in the place of its gradient, which is read for the last time then.
        let dx3 = down.input_gradient(ctx, &weights[3], g)?;
        let again = down.is_remade(x3.as_ref()).then_some(dx3.dx());
        // From here on `gates` are their gradient.
        ops::gated_backward(ctx, gates.mat, dx3.dx(), again)?;
        let of_x3 = down.input_or((x3.as_ref(), low3.as_ref()), dx3.dx());
        down.update_gradients(ctx, of_x3, &dx3, g, &mut of_down)?;
        drop((x3, dx3));
        let dx2 = feed.input_gradient(ctx, &weights[2], gates.mat)?;
        let post_norm = self.norm_gradient(ctx, 1, middle.mat, dx2.dx())?;
        let dmiddle = output.gradient_room(ctx, x.rows)?;
        let (add, dx) = (Some(g.columns(0, x.cols)), dmiddle.first(x.cols));
        let again = feed.is_remade(x2.as_ref()).then_some(dx2.dx());
        let of = NormGradient { x: middle.mat, g: (dx2.dx(), None), add, dx, y: again };
        ops::norm_backward(ctx, self.norm(ctx, 1)?, &of)?;
        let of_x2 = feed.input_or((x2.as_ref(), low2.as_ref()), dx2.dx());
        feed.update_gradients(ctx, of_x2, &dx2, gates.mat, &mut of_feed)?;
        drop((x2, gates, middle, dx2, sum));

        let d_o = output.input_gradient(ctx, &weights[1], dmiddle.mat)?;
        let low_o = output.low(o.mat, of_o.as_ref());
        output.update_gradients(ctx, (o.mat, low_o), &d_o, dmiddle.mat, &mut of_output)?;
        let dqkv = ctx.buffer(x.rows, attend.outputs())?;
        let outputs = (qkv.mat, o.first(output.inputs()), d_o.dx());
        self.attend_backward(ctx, outputs, &logs, dqkv.mat)?;
        drop((qkv, o, d_o));
        self.rotate(ctx, dqkv.mat, true)?;
        let dx1 = attend.input_gradient(ctx, &weights[0], dqkv.mat)?;
        let input_norm = self.norm_gradient(ctx, 0, x, dx1.dx())?;
        // In the form that the layer before, which is alike, takes it in.
        let dx = down.gradient_room(ctx, x.rows)?;
        let (g, add) = ((dx1.dx(), None), Some(dmiddle.first(x.cols)));
        let again = attend.is_remade(x1.as_ref()).then_some(dx1.dx());
        let of = NormGradient { x, g, add, dx: dx.first(x.cols), y: again };
        ops::norm_backward(ctx, self.norm(ctx, 0)?, &of)?;
        let of_x1 = attend.input_or((x1.as_ref(), low1.as_ref()), dx1.dx());
        attend.update_gradients(ctx, of_x1, &dx1, dqkv.mat, &mut of_attend)?;

        let updates = [of_attend, of_output, of_feed, of_down].into_iter().flatten();
        let all = updates.chain(input_norm).chain(post_norm).collect();
        Ok((Sum::new(dx, None), all))
    }
}
