//! Linears that read the same rows, frozen, with low-rank updates: two products forward, whatever their number.
//!
//! The input is a matrix `[x | low | 1 0..]` with `low = x A^T` for all updates side by side, the weight the rows
//! `[W | scaling B | bias 0..]`: one product makes all outputs, and its counterpart in the backward pass the gradients
//! of `x` and `low` at once. Nothing is added up in memory, and the sums are kept in float32.

use candle_core::{DType, Device, Result, Tensor, bail};
use half::bf16;

use super::ops;
use super::{Buffer, Context, Mat, PACK};
use crate::cuda::tensor;

/// A frozen linear with a low-rank update that is trained, `x W^T + bias + scaling (x A^T) B^T`.
#[derive(Clone, Debug)]
pub struct Adapted {
    /// `[out, in]`, bf16.
    pub weight: Tensor,
    /// `[out]`, bf16.
    pub bias: Option<Tensor>,
    /// A `[r, in]`, B `[out, r]`, both float32, and the factor.
    pub lora: Option<(Tensor, Tensor, f64)>,
}

impl Adapted {
    /// Whether a layer on the GPU can hold it.
    pub fn is_supported(&self) -> bool {
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

/// Linears of one input.
#[derive(Clone, Debug)]
pub(super) struct Group {
    parts: Vec<Part>,
    inputs: usize,
    rank: usize,
    outputs: usize,
    /// Columns of the widened input.
    width: usize,
    biased: bool,
}

/// The widened weight `[out, width]` and all A `[rank, in]` of the moment.
pub(super) struct Assembled {
    wide: Buffer,
    low: Option<Buffer>,
}

impl Assembled {
    /// Its size.
    pub(super) fn bytes(&self) -> usize {
        let bytes = |b: &Buffer| 2 * b.mat.rows * b.mat.stride;
        bytes(&self.wide) + self.low.as_ref().map_or(0, bytes)
    }
}

impl Group {
    pub(super) fn new(linears: &[&Adapted]) -> Result<Self> {
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
        let biased = parts.iter().any(|p| p.bias.is_some());
        let width = (inputs + rank + usize::from(biased)).next_multiple_of(PACK);
        let outputs = parts.iter().map(|p| p.outputs).sum();
        Ok(Self { parts, inputs, rank, outputs, width, biased })
    }

    pub(super) fn inputs(&self) -> usize {
        self.inputs
    }

    pub(super) fn outputs(&self) -> usize {
        self.outputs
    }

    /// How many of a layer's trained tensors are its own.
    fn trained(&self) -> usize {
        2 * self.parts.iter().filter(|p| p.rank > 0).count()
    }

    /// Room for `rows` widened inputs, of which the first [`Group::inputs`] columns are to be written.
    pub(super) fn room(&self, ctx: &Context, rows: usize) -> Result<Buffer> {
        let room = ctx.buffer(rows, self.width)?;
        let from = self.inputs + self.rank;
        if from < self.width {
            ops::fill_tail(ctx, room.mat, from, if self.biased { 1.0 } else { 0.0 })?;
        }
        Ok(room)
    }

    /// The weights for this call, given A and B of each updated linear.
    fn assemble(&self, ctx: &Context, loras: &[Tensor]) -> Result<Assembled> {
        let wide = ctx.buffer(self.outputs, self.width)?;
        let low = if self.rank > 0 { Some(ctx.buffer(self.rank, self.inputs)?) } else { None };
        let (mut row, mut column, mut next) = (0, 0, loras.chunks_exact(2));
        for part in &self.parts {
            let matrices = match (&low, part.rank) {
                (Some(low), 1..) => {
                    let Some([a, b]) = next.next() else {
                        bail!("too few tensors for the updates of a layer")
                    };
                    if a.dims() != [part.rank, self.inputs] || b.dims() != [part.outputs, part.rank] {
                        bail!("updates {:?} and {:?} do not fit their linear", a.shape(), b.shape());
                    }
                    Some((ctx.input::<f32>(a)?, ctx.input::<f32>(b)?, low.mat.part(column, part.rank)))
                }
                _ => None,
            };
            let bias = part.bias.as_ref().map(|b| ctx.input::<bf16>(b)).transpose()?;
            let place =
                ops::Place { column, bias_column: self.inputs + self.rank, scaling: part.scaling as f32 };
            let rows = wide.mat.part(row, part.outputs);
            ops::assemble(ctx, ctx.matrix(&part.weight)?, matrices, bias, rows, place)?;
            row += part.outputs;
            column += part.rank;
        }
        Ok(Assembled { wide, low })
    }

    /// All outputs side by side, `[rows, outputs]`; writes the columns of `low` in `x`.
    pub(super) fn forward(&self, ctx: &Context, with: &Assembled, x: &Buffer) -> Result<Buffer> {
        if let Some(a) = &with.low {
            let low = x.mat.columns(self.inputs, self.rank);
            ctx.product((low, DType::BF16), (x.first(self.inputs), false), (a.mat, true), 1.0, 0.0)?;
        }
        let y = ctx.buffer(x.mat.rows, self.outputs)?;
        ctx.product((y.mat, DType::BF16), (x.mat, false), (with.wide.mat, true), 1.0, 0.0)?;
        Ok(y)
    }

    /// The gradient of `x` in the first [`Group::inputs`] columns of the result; those of A and B are added to `all`.
    pub(super) fn backward(
        &self,
        ctx: &Context,
        with: &Assembled,
        x: &Buffer,
        g: Mat,
        all: &mut Vec<Option<Tensor>>,
    ) -> Result<Buffer> {
        let dx = ctx.buffer(x.mat.rows, self.width)?;
        let used = self.inputs + self.rank;
        ctx.product((dx.first(used), DType::BF16), (g, false), (with.wide.first(used), false), 1.0, 0.0)?;
        let Some(a) = &with.low else { return Ok(dx) };
        let dlow = dx.mat.columns(self.inputs, self.rank);
        let (da, to) = ctx.floats(self.rank, self.inputs)?;
        ctx.product((to, DType::F32), (dlow, true), (x.first(self.inputs), false), 1.0, 0.0)?;
        ctx.product((dx.first(self.inputs), DType::BF16), (dlow, false), (a.mat, false), 1.0, 1.0)?;
        let da = tensor(da, (self.rank, self.inputs), &ctx.dev);
        let (mut row, mut column) = (0, 0);
        for part in &self.parts {
            if part.rank > 0 {
                let (db, to) = ctx.floats(part.outputs, part.rank)?;
                let low = x.mat.columns(self.inputs + column, part.rank);
                let g = g.columns(row, part.outputs);
                ctx.product((to, DType::F32), (g, true), (low, false), part.scaling as f32, 0.0)?;
                all.push(Some(da.narrow(0, column, part.rank)?));
                all.push(Some(tensor(db, (part.outputs, part.rank), &ctx.dev)));
            }
            row += part.outputs;
            column += part.rank;
        }
        Ok(dx)
    }
}

/// The weights of each of a layer's groups for this call, given A and B of all of its updated linears in order.
pub(super) fn assemble(ctx: &Context, groups: &[Group], mut loras: &[Tensor]) -> Result<Vec<Assembled>> {
    let mut all = Vec::with_capacity(groups.len());
    for group in groups {
        let (own, others) = loras.split_at(group.trained().min(loras.len()));
        all.push(group.assemble(ctx, own)?);
        loras = others;
    }
    Ok(all)
}

/// The trained tensors of linears, in order.
pub(super) fn trained<'a>(linears: impl IntoIterator<Item = &'a Adapted>) -> Vec<&'a Tensor> {
    linears.into_iter().filter_map(|l| l.lora.as_ref()).flat_map(|(a, b, _)| [a, b]).collect()
}

/// Whether a tensor is something that a layer of the GPU reads.
pub(super) fn is_input(t: &Tensor) -> bool {
    matches!(t.device(), Device::Cuda(_)) && t.dtype() == DType::BF16
}
