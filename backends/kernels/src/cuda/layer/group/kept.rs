//! What the backward pass is given of a group's input.

use candle_core::Result;

use super::{Form, Group};
use crate::cuda::layer::{Buffer, Context, Mat, ops};

/// Bytes that are rather made again in the backward pass than kept for it, where that takes going over them once.
pub(super) const WORTH_REMAKING: usize = 4 << 20;

impl Group {
    /// Whether the backward pass needs the input for [`Group::update_gradients`].
    fn reads_input(&self) -> bool {
        self.rank > 0
    }

    /// What the backward pass is given of the input and its `low`: nothing where it needs neither, and no input, unless `all` is to be
    /// kept, that is worth making again.
    pub(in crate::cuda::layer) fn keep_input(
        &self,
        ctx: &Context,
        x: Buffer,
        low: Option<Buffer>,
        all: bool,
    ) -> Result<(Option<Buffer>, Option<Buffer>)> {
        if !self.reads_input() {
            return Ok((None, None));
        }
        if all || 2 * x.mat.rows * x.mat.stride < WORTH_REMAKING {
            return Ok((Some(x), low));
        }
        Ok((None, self.keep_low(ctx, x.mat, low)?))
    }

    /// Whether the backward pass has to make the input again, of which `kept` was kept.
    pub(in crate::cuda::layer) fn is_remade(&self, kept: Option<&Buffer>) -> bool {
        self.reads_input() && kept.is_none()
    }

    /// The input that was kept, or `again`, where it [was made again](Group::is_remade), and its `low`, as
    /// [`Group::update_gradients`] takes them.
    pub(in crate::cuda::layer) fn input_or(
        &self,
        (kept, low): (Option<&Buffer>, Option<&Buffer>),
        again: Mat,
    ) -> (Mat, Option<Mat>) {
        match kept {
            Some(x) => (x.mat, self.low(x.mat, low)),
            None => (again, low.map(|low| low.first(self.rank))),
        }
    }

    /// `low` in a matrix of its own.
    pub(in crate::cuda::layer) fn keep_low(
        &self,
        ctx: &Context,
        x: Mat,
        own: Option<Buffer>,
    ) -> Result<Option<Buffer>> {
        if self.form != Form::Wide {
            return Ok(own);
        }
        let low = ctx.buffer(x.rows, self.rank)?;
        ops::copy_columns(ctx, x.columns(self.inputs, self.rank), low.mat)?;
        Ok(Some(low))
    }
}
