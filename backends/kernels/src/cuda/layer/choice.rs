//! The likeliest tokens behind normalised hidden states: the output layer's product, of which only the largest is kept.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{DType, Result, Tensor, bail};
use half::bf16;

use super::cached::{CACHED, NULL, Plain, Tile, few_kernel, fits_tiles, is_few, warps};
use super::{Context, Mat, PACK};
use crate::cuda::{Early, Kernel, alloc, function, grid, int};

/// Blocks that look at a row of logits.
const PARTS: usize = 16;

/// What finds the largest logits of some rows.
pub(super) struct Choice {
    rows: usize,
    by: Means,
}

enum Means {
    Few(Kernel),
    Tiles(Tile),
    /// Logits made by cuBLAS.
    Library(Kernel, CudaSlice<f32>),
}

/// What a choice leaves: the larger of two of these is that of the larger logit, or of the smaller token. See `choice` in
/// the kernel sources.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key(pub(super) u64);

impl Key {
    fn token(self) -> (u32, f32) {
        let ordered = (self.0 >> 32) as u32;
        let bits = if ordered >> 31 == 1 { ordered & 0x7fff_ffff } else { !ordered };
        (!(self.0 as u32), f32::from_bits(bits))
    }
}

/// Whether the output layer can be read this way.
pub(super) fn is_supported(hidden: &Tensor, head: &Plain<'_>) -> bool {
    let dense =
        |t: &Tensor| t.device().is_cuda() && t.dtype() == DType::BF16 && t.is_contiguous() && !t.track_op();
    dense(hidden)
        && dense(head.weight)
        && head.bias.is_none_or(dense)
        && head.weight.rank() == 2
        && hidden.dims().last().is_some_and(|width| width % PACK == 0 && head.weight.dims()[1] == *width)
}

impl Choice {
    pub(super) fn new(ctx: &Context, (rows, width): (usize, usize), vocabulary: usize) -> Result<Self> {
        let by = if is_few(rows, width) {
            Means::Few(few_kernel(ctx, "choose", rows)?)
        } else if fits_tiles(rows, width) {
            Means::Tiles(Tile::new(ctx, "choose_tile", rows, vocabulary.div_ceil(2))?)
        } else {
            let kernel = function(&ctx.dev, CACHED, "", "", "choose_rows")?;
            Means::Library(kernel, alloc(&ctx.dev, rows * vocabulary)?)
        };
        Ok(Self { rows, by })
    }

    /// Whether cuBLAS makes its product.
    pub(super) fn uses_library(&self) -> bool {
        matches!(self.by, Means::Library(..))
    }

    /// Raises each of `best` (the address of as many [`Key`]s as rows) to that of its row's largest logit.
    pub(super) fn run(&self, ctx: &Context, normal: Mat, head: &Plain<'_>, best: u64) -> Result<()> {
        let bias = head.bias.map_or(Ok(NULL), |b| ctx.input::<bf16>(b))?;
        let (weight, n) = (ctx.matrix(head.weight)?, head.weight.dim(0)?);
        if normal.rows != self.rows || normal.cols != weight.cols || normal.stride != normal.cols {
            bail!("the choice of {} tokens by {}x{}", self.rows, normal.rows, normal.cols);
        }
        let (rows, count, k) = (int(self.rows)?, int(n)?, int(normal.cols)?);
        match &self.by {
            Means::Few(kernel) => {
                let mut args = Early::new(kernel);
                args.arg(&normal.address).arg(&weight.address).arg(&bias).arg(&best).arg(&count).arg(&k);
                args.launch(warps(n.div_ceil(2), normal.rows * normal.cols))
            }
            Means::Tiles(tile) => {
                let mut args = Early::new(&tile.kernel);
                args.arg(&normal.address).arg(&weight.address).arg(&bias).arg(&best);
                args.arg(&rows).arg(&count).arg(&k);
                args.launch(tile.config())
            }
            Means::Library(kernel, logits) => {
                let address = ctx.address(logits);
                let to = Mat { address, rows: self.rows, cols: n, stride: n };
                ctx.product((to, DType::F32), (normal, false), (weight, true), 1.0, 0.0)?;
                let mut args = Early::new(kernel);
                args.arg(&address).arg(&bias).arg(&best).arg(&count);
                args.launch(grid((PARTS, self.rows, 1), (256, 1), 0))
            }
        }
    }
}

/// The likeliest token of each of the normalised hidden states `[.., D]`, with its logit, NaN where one is; nothing where
/// the tensors are not plain ones in bf16 on a GPU. The smaller of two tokens is taken where both are as likely.
///
/// # Errors
/// Any of the GPU.
pub fn likeliest(hidden: &Tensor, head: &Plain<'_>) -> Result<Option<Vec<(u32, f32)>>> {
    if !is_supported(hidden, head) {
        return Ok(None);
    }
    let ctx = Context::new(hidden.device())?;
    let normal = ctx.matrix(hidden)?;
    let choice = Choice::new(&ctx, (normal.rows, normal.cols), head.weight.dim(0)?)?;
    let best = ctx.dev.alloc_zeros::<u64>(normal.rows)?;
    choice.run(&ctx, normal, head, ctx.address(&best))?;
    let best = ctx.stream.clone_dtoh(&best).w()?;
    Ok(Some(best.into_iter().map(|key| Key(key).token()).collect()))
}
