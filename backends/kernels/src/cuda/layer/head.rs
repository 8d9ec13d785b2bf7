//! The output layer together with its loss: logits exist for some rows at a time, and their gradient in their place.

use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{DType, Result, Tensor};

use super::group::is_input;
use super::{Buffer, Context, Mat, PACK, ops};
use crate::cuda::{alloc, loss, tensor};
use crate::node::{self, Delivery, Node};

/// Logits that exist at once.
const LOGITS: usize = 1 << 27;

/// [`head_loss`](crate::head_loss) on a GPU, of inputs that fit together.
pub(crate) fn head_loss(hidden: &Tensor, weight: &Tensor, targets: &Tensor) -> Result<Option<Tensor>> {
    let (v, d) = weight.dims2()?;
    if !is_input(hidden) || !is_input(weight) || !weight.is_contiguous() || d % PACK != 0 || v % PACK != 0 {
        return Ok(None);
    }
    let (weight, targets) = (weight.detach(), targets.detach().contiguous()?);
    let head = Head { weight, targets, train: hidden.track_op() };
    node::apply(&[&hidden.contiguous()?], head, true, Delivery::Graph).map(Some)
}

struct Head {
    weight: Tensor,
    targets: Tensor,
    train: bool,
}

impl Node for Head {
    /// The gradient of the hidden states for a gradient of 1.
    type Kept = Option<Buffer>;

    fn forward(&self, inputs: &[Tensor], _: bool) -> Result<(Tensor, Option<Option<Buffer>>)> {
        let ctx = &Context::new(inputs[0].device())?;
        let (x, w) = (ctx.matrix(&inputs[0])?, ctx.matrix(&self.weight)?);
        let targets = ctx.input::<u32>(&self.targets)?;
        let (n, v) = (x.rows, w.rows);
        let gradient = if self.train { Some(ctx.buffer(n, x.cols)?) } else { None };
        let losses: CudaSlice<f32> = alloc(&ctx.dev, n)?;
        let most = (LOGITS / v / 128 * 128).max(128).min(n.max(1));
        let room = ctx.buffer(most, v)?;
        for first in (0..n).step_by(most) {
            let rows = most.min(n - first);
            let logits: Mat = room.mat.part(0, rows);
            ctx.product((logits, DType::BF16), (x.part(first, rows), false), (w, true), 1.0, 0.0)?;
            let at = (targets + 4 * first as u64, ctx.address(&losses) + 4 * first as u64);
            loss::in_place(&ctx.dev, logits.address, at, (rows, v), self.train)?;
            if let Some(g) = &gradient {
                ctx.product((g.mat.part(first, rows), DType::BF16), (logits, false), (w, false), 1.0, 0.0)?;
            }
        }
        let total = loss::sum(&ctx.dev, &losses)?;
        Ok((tensor(total, (), &ctx.dev), Some(gradient)))
    }

    fn backward(&self, inputs: &[Tensor], kept: Option<Buffer>, g: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let ctx = &Context::new(g.device())?;
        let Some(gradient) = kept else { return Ok(vec![None]) };
        ops::scale(ctx, gradient.mat, ctx.input::<f32>(&g.contiguous()?)?)?;
        Ok(vec![Some(gradient.into_tensor(inputs[0].shape(), ctx))])
    }
}
