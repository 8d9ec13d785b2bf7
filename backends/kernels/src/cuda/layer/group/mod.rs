//! Linears that read the same rows, frozen, with low-rank updates.
//!
//! Where rows are many, the input is a matrix `[x | low]` with `low = x A^T` for all updates side by side, and the weight a copy
//! of the rows `[W | scaling B]`: one product makes all outputs, and its counterpart in the backward pass the gradients of
//! `x` and `low` at once. Nothing is added up in memory. Where copying the weights would take longer than that, the
//! updates are added to the outputs instead. Either way sums are kept in float32 within a product, and biases are added there.

mod assembled;
mod gelu;
mod kept;

use candle_core::{DType, Device, Result, Tensor, bail};
use half::bf16;

pub(super) use assembled::{Assembled, assemble, few};
pub(super) use gelu::Activated;

use super::ops;
use super::{Buffer, Context, Mat, PACK};
use crate::cuda::tensor;
use crate::layer::Adapted;

impl Adapted {
    /// [`Adapted::is_supported`] on a GPU.
    pub(crate) fn is_supported_on_gpu(&self) -> bool {
        let dense = |t: &Tensor, dtype| t.device().is_cuda() && t.dtype() == dtype && t.is_contiguous();
        let fits = self.weight.dims().iter().all(|n| n % PACK == 0);
        let bias = self.bias.as_ref().is_none_or(|b| dense(b, DType::BF16));
        let lora = self.lora.as_ref().is_none_or(|(a, b, _)| dense(a, DType::F32) && dense(b, DType::F32));
        self.weight.dims().len() == 2 && dense(&self.weight, DType::BF16) && fits && bias && lora
    }

    fn rank(&self) -> Result<usize> {
        self.lora.as_ref().map_or(Ok(0), |(a, ..)| a.dim(0))
    }
}

/// What is known of one linear of a group.
#[derive(Clone, Debug)]
struct Part {
    weight: Tensor,
    bias: Option<Tensor>,
    outputs: usize,
    rank: usize,
    scaling: f64,
}

/// How a group's products are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Straight from the weights: there is no update.
    Plain,
    /// In one, with a copy of the weights beside the updates.
    Wide,
    /// Straight from the weights, to which those of the updates are added.
    Beside,
}

/// Bytes of a group's weights whose copy takes as long as the launches of the products that it saves.
const WORTH_COPYING: usize = 8 << 20;

impl Form {
    /// A copy is read and written in each pass, 8 bytes for each weight; adding to the outputs takes 4 for each of them, and
    /// reading their gradient once more 2.
    fn of(rows: usize, inputs: usize, outputs: usize, rank: usize) -> Self {
        match rank {
            0 => Self::Plain,
            _ if 2 * inputs * outputs >= WORTH_COPYING && 6 * rows < 8 * inputs => Self::Beside,
            _ => Self::Wide,
        }
    }
}

/// Linears of one input.
#[derive(Clone, Debug)]
pub(super) struct Group {
    parts: Vec<Part>,
    inputs: usize,
    rank: usize,
    outputs: usize,
    form: Form,
    /// Whether the gradient of `low` stands beside that of the outputs instead of beside that of the input, and A below the
    /// weight: then it is `[g | dlow] [W | scaling B; A]` that is the input's, in one product, where two would read and
    /// write the wider matrix.
    stacked: bool,
}

/// The gradient of a group's input, and of `low`, from which follow those of A and B.
pub(super) struct InputGradient {
    dx: Buffer,
    inputs: usize,
    dlow: Option<Mat>,
    /// Where that stands, unless in one of the gradients.
    _own: Option<Buffer>,
}

impl InputGradient {
    pub(super) fn dx(&self) -> Mat {
        self.dx.first(self.inputs)
    }

    /// Forgets `dlow` where it is not part of the matrix.
    pub(super) fn into_dx(self) -> Buffer {
        let mat = self.dx();
        Buffer { data: self.dx.data, mat }
    }
}

impl Group {
    /// For inputs of `rows` rows.
    pub(super) fn new(linears: &[&Adapted], rows: usize) -> Result<Self> {
        let mut parts = Vec::new();
        for l in linears {
            if !l.is_supported() {
                bail!("a linear of shape {:?} does not fit the layers of the gpu", l.weight.shape());
            }
            let (weight, bias) = (l.weight.detach(), l.bias.as_ref().map(Tensor::detach));
            let scaling = l.lora.as_ref().map_or(0.0, |l| l.2);
            parts.push(Part { outputs: weight.dim(0)?, rank: l.rank()?, weight, bias, scaling });
        }
        let inputs = parts.first().map_or(Ok(0), |p| p.weight.dim(1))?;
        if parts.iter().any(|p| p.weight.dim(1).ok() != Some(inputs)) {
            bail!("linears of one group read the same input");
        }
        let rank: usize = parts.iter().map(|p| p.rank).sum();
        let outputs = parts.iter().map(|p| p.outputs).sum();
        let form = Form::of(rows, inputs, outputs, rank);
        let stacked = form == Form::Wide && parts.len() == 1 && inputs >= outputs;
        Ok(Self { parts, inputs, rank, outputs, form, stacked })
    }

    pub(super) fn inputs(&self) -> usize {
        self.inputs
    }

    pub(super) fn outputs(&self) -> usize {
        self.outputs
    }

    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    /// How many of a layer's trained tensors are its own.
    fn trained(&self) -> usize {
        2 * self.parts.iter().filter(|p| p.rank > 0).count()
    }

    /// Columns of its input, `low` included where it stands there.
    pub(super) fn width(&self) -> usize {
        self.inputs + if self.form == Form::Wide { self.rank } else { 0 }
    }

    /// Room for the gradient of `rows` outputs, the first [`Group::outputs`] columns, and what is to stand beside it.
    pub(super) fn gradient_room(&self, ctx: &Context, rows: usize) -> Result<Buffer> {
        ctx.buffer(rows, self.gradient_width().next_multiple_of(PACK))
    }

    fn gradient_width(&self) -> usize {
        self.outputs + if self.stacked { self.rank } else { 0 }
    }

    /// Room for `rows` inputs, of which the first [`Group::inputs`] columns are to be written.
    pub(super) fn room(&self, ctx: &Context, rows: usize) -> Result<Buffer> {
        ctx.buffer(rows, self.width().next_multiple_of(PACK))
    }

    /// Calls `f` with each linear, its columns of the output, its columns of `low`, and its scaled B where that is kept apart.
    fn each(
        &self,
        with: &Assembled,
        y: Mat,
        low: Option<Mat>,
        mut f: impl FnMut(&Part, Mat, Option<(Mat, Mat)>) -> Result<()>,
    ) -> Result<()> {
        let (mut row, mut column) = (0, 0);
        for part in &self.parts {
            let b = with.wide.as_ref().map(|wide| wide.mat.part(row, part.outputs).columns(0, part.rank));
            let low = low.filter(|_| part.rank > 0).map(|low| low.columns(column, part.rank));
            f(part, y.columns(row, part.outputs), low.zip(b))?;
            row += part.outputs;
            column += part.rank;
        }
        Ok(())
    }

    /// All outputs side by side, `[rows, outputs]`, and `low`, unless it stands in columns of `x`, which are written.
    pub(super) fn forward(
        &self,
        ctx: &Context,
        with: &Assembled,
        x: Mat,
    ) -> Result<(Buffer, Option<Buffer>)> {
        let y = ctx.buffer(x.rows, self.outputs)?;
        let low = self.forward_onto(ctx, with, x, y.mat, None)?;
        Ok((y, low))
    }

    /// As [`Group::forward`], to `y`; a group of one linear may add `onto` to it.
    pub(super) fn forward_onto(
        &self,
        ctx: &Context,
        with: &Assembled,
        x: Mat,
        y: Mat,
        onto: Option<Mat>,
    ) -> Result<Option<Buffer>> {
        let first = x.columns(0, self.inputs);
        let own = match self.form {
            Form::Beside => Some(ctx.buffer(x.rows, self.rank.next_multiple_of(PACK))?),
            _ => None,
        };
        let low = self.low(x, own.as_ref());
        if let (Some(a), Some(low)) = (&with.low, low) {
            ctx.product((low, DType::BF16), (first, false), (*a, true), 1.0, 0.0)?;
        }
        if let (Form::Wide, Some(wide)) = (self.form, &with.wide) {
            let bias = with.bias.as_ref().map_or(0, |b| b.mat.address);
            let wide = wide.mat.part(0, self.outputs).columns(0, self.width());
            let x = x.columns(0, self.width());
            self.product(ctx, y, x, wide, bias, onto)?;
            return Ok(own);
        }
        self.each(with, y, low, |part, y, update| {
            let bias = part.bias.as_ref().map_or(Ok(0), |b| ctx.input::<bf16>(b))?;
            self.product(ctx, y, first, ctx.matrix(&part.weight)?, bias, onto)?;
            let Some((low, b)) = update else { return Ok(()) };
            ctx.product((y, DType::BF16), (low, false), (b, true), 1.0, 1.0)
        })?;
        Ok(own)
    }

    fn product(&self, ctx: &Context, y: Mat, x: Mat, w: Mat, bias: u64, onto: Option<Mat>) -> Result<()> {
        if bias != 0 || onto.is_some() {
            return ctx.product_onto(y, x, w, bias, onto);
        }
        ctx.product((y, DType::BF16), (x, false), (w, true), 1.0, 0.0)
    }

    /// Where `low` of the input `x` stands.
    pub(super) fn low(&self, x: Mat, own: Option<&Buffer>) -> Option<Mat> {
        match self.form {
            Form::Plain => None,
            Form::Wide => Some(x.columns(self.inputs, self.rank)),
            Form::Beside => own.map(|low| low.first(self.rank)),
        }
    }

    /// The gradients of `x` and `low`, given that of the outputs, beside whose columns there should be
    /// [room](Group::gradient_room).
    pub(super) fn input_gradient(&self, ctx: &Context, with: &Assembled, g: Mat) -> Result<InputGradient> {
        let outputs = g.columns(0, self.outputs);
        if let (true, Some(wide)) = (self.stacked, &with.wide) {
            return self.stacked_gradient(ctx, wide.mat, g);
        }
        let dx = self.room(ctx, g.rows)?;
        let first = dx.first(self.inputs);
        let own = match self.form {
            Form::Beside => Some(ctx.buffer(g.rows, self.rank.next_multiple_of(PACK))?),
            _ => None,
        };
        let dlow = self.low(dx.mat, own.as_ref());
        if let (Form::Wide, Some(wide)) = (self.form, &with.wide) {
            let (to, wide) = (dx.first(self.width()), wide.first(self.width()));
            ctx.product((to, DType::BF16), (outputs, false), (wide, false), 1.0, 0.0)?;
        } else {
            let mut keep = 0.0;
            self.each(with, outputs, dlow, |part, g, update| {
                let weight = ctx.matrix(&part.weight)?;
                ctx.product((first, DType::BF16), (g, false), (weight, false), 1.0, keep)?;
                keep = 1.0;
                let Some((dlow, b)) = update else { return Ok(()) };
                ctx.product((dlow, DType::BF16), (g, false), (b, false), 1.0, 0.0)
            })?;
        }
        if let (Some(a), Some(dlow)) = (with.low, dlow) {
            ctx.product((first, DType::BF16), (dlow, false), (a, false), 1.0, 1.0)?;
        }
        Ok(InputGradient { dx, inputs: self.inputs, dlow, _own: own })
    }

    fn stacked_gradient(&self, ctx: &Context, wide: Mat, g: Mat) -> Result<InputGradient> {
        let width = self.gradient_width();
        let own = if g.cols < width { Some(self.gradient_room(ctx, g.rows)?) } else { None };
        if let Some(own) = &own {
            ops::add(ctx, g.columns(0, self.outputs), None, own.first(self.outputs))?;
        }
        let g = own.as_ref().map_or(g, |own| own.mat);
        let dlow = g.columns(self.outputs, self.rank);
        let b = wide.part(0, self.outputs).columns(self.inputs, self.rank);
        ctx.product((dlow, DType::BF16), (g.columns(0, self.outputs), false), (b, false), 1.0, 0.0)?;
        let dx = ctx.buffer(g.rows, self.inputs)?;
        let of_all = (g.columns(0, width), false);
        ctx.product((dx.mat, DType::BF16), of_all, (wide.columns(0, self.inputs), false), 1.0, 0.0)?;
        Ok(InputGradient { dx, inputs: self.inputs, dlow: Some(dlow), _own: own })
    }

    /// Adds the gradients of A and B to `all`, given the input `x`, its `low`, and the gradients of `low` and the outputs, as
    /// they were given to [`Group::input_gradient`].
    pub(super) fn update_gradients(
        &self,
        ctx: &Context,
        (x, low): (Mat, Option<Mat>),
        of: &InputGradient,
        g: Mat,
        all: &mut Vec<Option<Tensor>>,
    ) -> Result<()> {
        let (Some(low), Some(dlow)) = (low, of.dlow) else { return Ok(()) };
        let (da, to) = ctx.floats(self.rank, self.inputs)?;
        ctx.product((to, DType::F32), (dlow, true), (x.columns(0, self.inputs), false), 1.0, 0.0)?;
        let da = tensor(da, (self.rank, self.inputs), &ctx.dev);
        let (mut row, mut column) = (0, 0);
        for part in &self.parts {
            if part.rank > 0 {
                let (db, to) = ctx.floats(part.outputs, part.rank)?;
                let low = low.columns(column, part.rank);
                let g = g.columns(row, part.outputs);
                ctx.product((to, DType::F32), (g, true), (low, false), part.scaling as f32, 0.0)?;
                all.push(Some(da.narrow(0, column, part.rank)?));
                all.push(Some(tensor(db, (part.outputs, part.rank), &ctx.dev)));
            }
            row += part.outputs;
            column += part.rank;
        }
        Ok(())
    }
}

/// How many trained tensors groups have.
pub(super) fn count(groups: &[Group]) -> usize {
    groups.iter().map(Group::trained).sum()
}

/// Whether a tensor is something that a layer of the GPU reads.
pub(super) fn is_input(t: &Tensor) -> bool {
    matches!(t.device(), Device::Cuda(_)) && t.dtype() == DType::BF16
}
