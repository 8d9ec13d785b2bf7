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

    /// The input of `rows` rows that was kept, or that `make` writes again, and its `low`; nothing where they are not needed.
    pub(in crate::cuda::layer) fn input_again(
        &self,
        ctx: &Context,
        rows: usize,
        (x, low): (Option<Buffer>, Option<&Buffer>),
        make: impl FnOnce(Mat) -> Result<()>,
    ) -> Result<Option<(Buffer, Option<Mat>)>> {
        if !self.reads_input() {
            return Ok(None);
        }
        if let Some(x) = x {
            let low = self.low(x.mat, low);
            return Ok(Some((x, low)));
        }
        let x = ctx.buffer(rows, self.inputs)?;
        make(x.mat)?;
        Ok(Some((x, low.map(|low| low.first(self.rank)))))
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
