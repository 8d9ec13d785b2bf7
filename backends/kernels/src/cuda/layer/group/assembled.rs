//! Copies of weights with the updates of the moment beside them.

use candle_core::{Result, Tensor, bail};
use half::bf16;

use super::kept::WORTH_REMAKING;
use super::{Form, Group};
use crate::cuda::layer::ops::{self, Assembling};
use crate::cuda::layer::{Buffer, Context, Mat, PACK};

/// The weights of the moment, rounded.
#[derive(Default)]
pub(in crate::cuda::layer) struct Assembled {
    /// `[W | scaling B]`, and below it A where that is stacked; or without W `[out, r]` of each linear below the other, rows
    /// of the widest.
    pub(super) wide: Option<Buffer>,
    /// All A, `[rank, in]`.
    pub(super) low: Option<Mat>,
    own_low: Option<Buffer>,
    /// All biases.
    pub(super) bias: Option<Buffer>,
}

impl Assembled {
    /// Its size.
    fn bytes(&self) -> usize {
        let bytes = |b: &Buffer| 2 * b.mat.rows * b.mat.stride;
        [&self.wide, &self.own_low, &self.bias].into_iter().flatten().map(bytes).sum()
    }
}

impl Group {
    /// Room for the weights of this call, and what is to be written there, given A and B of each updated linear.
    fn assemble(&self, ctx: &Context, loras: &[Tensor], todo: &mut Vec<Assembling>) -> Result<Assembled> {
        if self.form == Form::Plain {
            return Ok(Assembled::default());
        }
        let is_wide = self.form == Form::Wide;
        let stride = match self.form {
            Form::Wide => self.width().next_multiple_of(PACK),
            _ => self.parts.iter().map(|p| p.rank).max().unwrap_or(0).next_multiple_of(PACK),
        };
        let wide = ctx.buffer(self.gradient_width(), stride)?;
        let own_low = if self.stacked { None } else { Some(ctx.buffer(self.rank, self.inputs)?) };
        let below = wide.mat.part(self.outputs.min(wide.mat.rows), self.rank).columns(0, self.inputs);
        let low = own_low.as_ref().map_or(below, |low| low.mat);
        let biased = is_wide && self.parts.iter().any(|p| p.bias.is_some());
        let bias = if biased { Some(ctx.buffer(1, self.outputs)?) } else { None };
        let (mut row, mut column, mut next) = (0, 0, loras.chunks_exact(2));
        for part in &self.parts {
            let mut own = Assembling {
                weight: if is_wide { ctx.matrix(&part.weight)?.address } else { 0 },
                bias: part.bias.as_ref().map_or(Ok(0), |b| ctx.input::<bf16>(b))?,
                to_bias: bias.as_ref().map_or(0, |b| b.mat.columns(row, 1).address),
                wide: wide.mat.part(row, part.outputs).address,
                low: low.part(column, part.rank).address,
                low_stride: low.stride,
                n: part.outputs,
                k: self.inputs,
                copied: if is_wide { self.inputs } else { 0 },
                r: part.rank,
                stride,
                column: if is_wide { column } else { 0 },
                scaling: part.scaling as f32,
                ..Assembling::default()
            };
            if part.rank > 0 {
                let Some([a, b]) = next.next() else { bail!("too few tensors for the updates of a layer") };
                if a.dims() != [part.rank, self.inputs] || b.dims() != [part.outputs, part.rank] {
                    bail!("updates {:?} and {:?} do not fit their linear", a.shape(), b.shape());
                }
                (own.a, own.b) = (ctx.input::<f32>(a)?, ctx.input::<f32>(b)?);
            }
            todo.push(own);
            row += part.outputs;
            column += part.rank;
        }
        Ok(Assembled { wide: Some(wide), low: Some(low), own_low, bias })
    }
}

/// The weights of each of a layer's groups for this call, given A and B of all of its updated linears in order.
pub(in crate::cuda::layer) fn assemble(
    ctx: &Context,
    groups: &[Group],
    mut loras: &[Tensor],
) -> Result<Vec<Assembled>> {
    let (mut all, mut todo) = (Vec::with_capacity(groups.len()), Vec::new());
    for group in groups {
        let (own, others) = loras.split_at(group.trained().min(loras.len()));
        all.push(group.assemble(ctx, own, &mut todo)?);
        loras = others;
    }
    ops::assemble(ctx, &todo)?;
    Ok(all)
}

/// The copies of a layer's weights, unless, if not `all` are to be kept, keeping them for the backward pass would take more memory than time is
/// lost by making them again.
pub(in crate::cuda::layer) fn few(weights: Vec<Assembled>, all: bool) -> Option<Vec<Assembled>> {
    Some(weights).filter(|w| all || w.iter().map(Assembled::bytes).sum::<usize>() < WORTH_REMAKING)
}
