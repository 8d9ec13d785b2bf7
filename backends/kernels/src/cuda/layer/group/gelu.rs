//! A group of one linear that ends in GELU, and the gradient behind the next one.

use candle_core::{DType, Result, Tensor};
use half::bf16;

use super::{Assembled, Form, Group, InputGradient};
use crate::cuda::layer::gelu_product::{Beside, Slopes};
use crate::cuda::layer::ops::{self, Activation};
use crate::cuda::layer::{Buffer, Context, Mat};

/// What the backward pass of an activation reads.
pub(in crate::cuda::layer) enum Activated {
    /// What was activated.
    Before(Buffer),
    /// The derivatives there.
    Slopes(Slopes),
}

impl Group {
    /// As [`Group::forward`], of one linear, through GELU to `y`, which goes into `next`. What the backward pass needs is returned if it is
    /// to be kept, or had to be made.
    pub(in crate::cuda::layer) fn forward_gelu(
        &self,
        ctx: &Context,
        with: &Assembled,
        (x, y): (Mat, Mat),
        next: &Self,
        keep: bool,
    ) -> Result<(Option<Activated>, Option<Buffer>)> {
        if self.parts.len() != 1
            || self.form == Form::Beside
            || !ctx.has_product_gelu(x.rows, self.outputs)?
        {
            let (before, low) = self.forward(ctx, with, x)?;
            ops::activate(ctx, Activation::Gelu, before.mat, y)?;
            return Ok((Some(Activated::Before(before)), low));
        }
        let (first, part) = (x.columns(0, self.inputs), &self.parts[0]);
        if let (Some(a), Some(low)) = (&with.low, self.low(x, None)) {
            ctx.product((low, DType::BF16), (first, false), (*a, true), 1.0, 0.0)?;
        }
        let (weight, bias) = match &with.wide {
            Some(wide) => {
                let bias = with.bias.as_ref().map_or(0, |b| b.mat.address);
                (wide.mat.part(0, self.outputs).columns(0, self.width()), bias)
            }
            None => {
                let bias = part.bias.as_ref().map_or(Ok(0), |b| ctx.input::<bf16>(b))?;
                (ctx.matrix(&part.weight)?, bias)
            }
        };
        let activated = match (keep, next.form) {
            (false, _) => None,
            // Gradients of updates need the values as well, which are made again from what was activated.
            (true, Form::Wide | Form::Beside) => Some(Activated::Before(ctx.buffer(x.rows, self.outputs)?)),
            (true, Form::Plain) => Some(Activated::Slopes(ctx.slopes(x.rows, self.outputs)?)),
        };
        let beside = match &activated {
            None => Beside::Nothing,
            Some(Activated::Before(before)) => Beside::Before(before.mat),
            Some(Activated::Slopes(slopes)) => Beside::Slopes(slopes),
        };
        ctx.product_gelu((y, beside), x.columns(0, self.width()), weight, bias)?;
        Ok((activated, None))
    }

    /// The gradient of what was activated before it came into this group, given that of the outputs and `low`, as
    /// [`Group::input_gradient`]; those of A and B are added to `all`.
    pub(in crate::cuda::layer) fn gelu_gradient(
        &self,
        ctx: &Context,
        with: &Assembled,
        g: Mat,
        (activated, low): (Activated, Option<Mat>),
        all: &mut Vec<Option<Tensor>>,
    ) -> Result<InputGradient> {
        match (activated, &self.parts[..]) {
            (Activated::Slopes(slopes), [part]) if self.form == Form::Plain => {
                let (dx, weight) = (ctx.buffer(g.rows, self.inputs)?, ctx.matrix(&part.weight)?);
                ctx.product_by_slopes(dx.mat, g.columns(0, self.outputs), weight, &slopes)?;
                Ok(InputGradient { dx, inputs: self.inputs, dlow: None, _own: None })
            }
            (Activated::Slopes(_), _) => {
                candle_core::bail!("values were not kept for the gradients of an update")
            }
            (Activated::Before(before), _) => {
                let of = self.input_gradient(ctx, with, g)?;
                // From here on `before` is the value, and the gradient of that the one before it.
                ops::gelu_backward(ctx, before.mat, of.dx())?;
                self.update_gradients(ctx, (before.mat, low), &of, g, all)?;
                Ok(of)
            }
        }
    }
}
