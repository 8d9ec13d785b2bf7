//! A post-norm encoder layer (BERT).

use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{Result, Tensor, bail};

use super::attention::{self, Heads};
use super::group::{Adapted, Assembled, Group, assemble, is_input, trained};
use super::ops::{self, Activation};
use super::{Buffer, Context};
use crate::node::{self, Node};

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
    /// The layer's value for `x` (`[B, T, E]`, bf16). Every position of a row sees those within the row's length, a
    /// number of `lengths` (`[B]`, u32); what stands behind it means nothing. Unless `keep`, the backward pass computes
    /// the layer again.
    ///
    /// # Errors
    /// Tensors that do not fit together, are not on a GPU, or are not what [`Adapted::is_supported`] asks for.
    pub fn forward(&self, x: &Tensor, lengths: Option<&Tensor>, keep: bool) -> Result<Tensor> {
        let (b, t, width) = x.dims3()?;
        let [q, k, v, o, inner, outer] = &self.linears;
        let groups =
            [Group::new(&[q, k, v])?, Group::new(&[o])?, Group::new(&[inner])?, Group::new(&[outer])?];
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
        let node = Encoder {
            norms: [norm(self.attention_norm), norm(self.norm)],
            groups,
            lengths: lengths.map(Tensor::detach),
            heads: Heads { b, t, h, hkv: h, d, causal: false, lengths: 0 },
        };
        let x = x.contiguous()?;
        let inputs: Vec<&Tensor> = std::iter::once(&x).chain(trained(&self.linears)).collect();
        node::apply(&inputs, node, keep)
    }
}

struct Encoder {
    norms: [(Tensor, Tensor, f32); 2],
    /// qkv, output, inner, outer.
    groups: [Group; 4],
    lengths: Option<Tensor>,
    heads: Heads,
}

/// What the backward pass reads; the sums are what the norms were given.
struct Kept {
    weights: Vec<Assembled>,
    x1: Buffer,
    qkv: Buffer,
    o: Buffer,
    lse: CudaSlice<f32>,
    sum1: Buffer,
    x2: Buffer,
    inner: Buffer,
    x3: Buffer,
    sum2: Buffer,
}

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

impl Node for Encoder {
    type Kept = Kept;

    fn forward(&self, inputs: &[Tensor]) -> Result<(Tensor, Kept)> {
        let ctx = &Context::new(inputs[0].device())?;
        let x = ctx.matrix(&inputs[0])?;
        let [attend, output, up, down] = &self.groups;
        let weights = assemble(ctx, &self.groups, &inputs[1..])?;

        let x1 = attend.room(ctx, x.rows)?;
        ops::add(ctx, x, None, x1.first(x.cols))?;
        let qkv = attend.forward(ctx, &weights[0], &x1)?;
        let o = output.room(ctx, x.rows)?;
        let lse = attention::forward(ctx, self.heads(ctx)?, qkv.mat, o.first(output.inputs()))?;
        let update = output.forward(ctx, &weights[1], &o)?;
        let (sum1, x2) = (ctx.buffer(x.rows, x.cols)?, up.room(ctx, x.rows)?);
        ops::norm(ctx, update.mat, Some((x, sum1.mat)), self.norm(ctx, 0)?, x2.first(x.cols))?;

        let inner = up.forward(ctx, &weights[2], &x2)?;
        let x3 = down.room(ctx, x.rows)?;
        ops::activate(ctx, Activation::Gelu, inner.mat, x3.first(down.inputs()))?;
        let update = down.forward(ctx, &weights[3], &x3)?;
        let (sum2, y) = (ctx.buffer(x.rows, x.cols)?, ctx.buffer(x.rows, x.cols)?);
        let residual = (x2.first(x.cols), sum2.mat);
        ops::norm(ctx, update.mat, Some(residual), self.norm(ctx, 1)?, y.mat)?;
        let y = y.into_tensor(inputs[0].shape(), ctx);
        Ok((y, Kept { weights, x1, qkv, o, lse, sum1, x2, inner, x3, sum2 }))
    }

    fn backward(&self, inputs: &[Tensor], kept: Kept, g: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let ctx = &Context::new(g.device())?;
        let g = g.contiguous()?;
        let g = ctx.matrix(&g)?;
        let [attend, output, up, down] = &self.groups;
        let Kept { weights, x1, qkv, o, lse, sum1, x2, inner, x3, sum2 } = kept;
        let (mut of_attend, mut of_output, mut of_up, mut of_down) = (vec![], vec![], vec![], vec![]);
        let (rows, width) = (g.rows, g.cols);

        let dsum2 = ctx.buffer(rows, width)?;
        ops::norm_backward(ctx, sum2.mat, self.norm(ctx, 1)?, g, None, dsum2.mat)?;
        let dx3 = down.backward(ctx, &weights[3], &x3, dsum2.mat, &mut of_down)?;
        drop((x3, sum2));
        let dinner = ctx.buffer(rows, up.outputs())?;
        let dactive = dx3.first(down.inputs());
        ops::activate_backward(ctx, Activation::Gelu, inner.mat, dactive, dinner.mat)?;
        drop((inner, dx3));
        let dx2 = up.backward(ctx, &weights[2], &x2, dinner.mat, &mut of_up)?;
        drop((x2, dinner));
        // The sum before the second norm reads the first norm's value directly as well.
        ops::add(ctx, dsum2.mat, Some(dx2.first(width)), dsum2.mat)?;
        let dsum1 = ctx.buffer(rows, width)?;
        ops::norm_backward(ctx, sum1.mat, self.norm(ctx, 0)?, dsum2.mat, None, dsum1.mat)?;
        drop((sum1, dx2, dsum2));

        let d_o = output.backward(ctx, &weights[1], &o, dsum1.mat, &mut of_output)?;
        let dqkv = ctx.buffer(rows, attend.outputs())?;
        let inputs_of_output = output.inputs();
        let outputs = (qkv.mat, o.first(inputs_of_output), d_o.first(inputs_of_output));
        attention::backward(ctx, self.heads(ctx)?, outputs, &lse, dqkv.mat)?;
        drop((qkv, o, d_o));
        let dx1 = attend.backward(ctx, &weights[0], &x1, dqkv.mat, &mut of_attend)?;
        let dx = ctx.buffer(rows, width)?;
        ops::add(ctx, dsum1.mat, Some(dx1.first(width)), dx.mat)?;

        let dx = dx.into_tensor(inputs[0].shape(), ctx);
        let parts = [vec![Some(dx)], of_attend, of_output, of_up, of_down];
        Ok(parts.into_iter().flatten().collect())
    }
}
