//! The kernels that read positions, by how many there are.

use candle_core::cuda_backend::cudarc::driver::LaunchConfig;
use candle_core::{Result, Tensor, bail};
use half::bf16;

use super::super::{Context, Mat, PACK};
use crate::cuda::{Early, Kernel, Module, blocks, function, grid, int};

pub(in crate::cuda::layer) const CACHED: Module =
    Module { name: "cached", source: concat!(include_str!("cached.cuh"), include_str!("cached.cu")) };
const FEW_ROWS: Module =
    Module { name: "few", source: concat!(include_str!("cached.cuh"), include_str!("few.cu")) };
const TILES: Module =
    Module { name: "tiles", source: concat!(include_str!("cached.cuh"), include_str!("tiles.cu")) };
/// Positions up to which the products are sums of our own.
const FEW: usize = 4;
/// Bytes of their inputs in shared memory, of which two blocks find room in a processor.
const FEW_SHARED: usize = 96 * 1024;
/// Positions up to which they are our own, on tensor cores, and elements of all of them: a block reads them once for every
/// 16 or 32 rows of weights, which is too often where they are many and wide (4096 wide, 32 took 12 ms and cuBLAS 10).
const SOME: usize = 64;
const SOME_WIDE: usize = 64 * 1024;
const THREADS: u32 = 256;
/// Blocks of tiles with which a large GPU is busy: with fewer, tiles are small.
const BUSY: usize = 132;
/// Positions that the longest sequence is taken to have are a multiple of this where each has one new one, so that work is
/// split in the same way while it grows.
pub(in crate::cuda::layer) const ROUND: usize = 256;
pub(in crate::cuda::layer) const NULL: u64 = 0;

/// The kernels for a few positions.
pub(super) struct Few {
    pub(super) attend_in: Kernel,
    pub(super) add_product: Kernel,
    pub(super) gate_up: Kernel,
}

/// What makes the products.
pub(super) enum Products {
    Few(Few),
    Tiles(Tiles),
    Library,
}

/// A kernel of tiles: its blocks, and the shared memory of one.
pub(in crate::cuda::layer) struct Tile {
    pub(in crate::cuda::layer) kernel: Kernel,
    blocks: usize,
    shared: usize,
}

/// The kernels of tiles.
pub(super) struct Tiles {
    pub(super) attend_in: Tile,
    pub(super) attended: Tile,
    pub(super) gate_up: Tile,
    pub(super) down: Tile,
}

impl Tile {
    /// For `rows` positions and `pairs` of weight rows.
    pub(in crate::cuda::layer) fn new(ctx: &Context, name: &str, rows: usize, pairs: usize) -> Result<Self> {
        let eights = rows.div_ceil(8).next_power_of_two();
        let groups = if pairs.div_ceil(16) >= BUSY { 2 } else { 1 };
        let definitions = format!("constexpr int NB = {eights}, G = {groups};\n");
        let kernel = function(&ctx.dev, TILES, &format!("_{eights}_{groups}"), &definitions, name)?;
        // Sums of 16 rows a group, of each of 8 warps and of all.
        let shared = 9 * 16 * groups * 8 * eights * size_of::<f32>();
        kernel.allow_shared(shared)?;
        Ok(Self { kernel, blocks: pairs.div_ceil(8 * groups), shared })
    }

    pub(in crate::cuda::layer) fn config(&self) -> LaunchConfig {
        grid((self.blocks, 1, 1), (THREADS, 1), self.shared)
    }
}

/// Whether `rows` positions `width` wide are read by kernels of tiles.
pub(in crate::cuda::layer) fn fits_tiles(rows: usize, width: usize) -> bool {
    rows <= SOME && rows * width <= SOME_WIDE
}

/// Whether they are few: what they read has room in shared memory.
pub(in crate::cuda::layer) fn is_few(rows: usize, widest: usize) -> bool {
    rows <= FEW && 2 * rows * widest <= FEW_SHARED
}

/// A kernel for `rows` positions, which are few.
pub(in crate::cuda::layer) fn few_kernel(ctx: &Context, name: &str, rows: usize) -> Result<Kernel> {
    let definitions = format!("constexpr int R = {rows};\n");
    let kernel = function(&ctx.dev, FEW_ROWS, &format!("_{rows}"), &definitions, name)?;
    kernel.allow_shared(FEW_SHARED)?;
    Ok(kernel)
}

/// `y`, dense, is the RMS norm of the dense matrix `x`.
pub(in crate::cuda::layer) fn norm_rows(
    ctx: &Context,
    x: Mat,
    weight: &Tensor,
    eps: f64,
    y: Mat,
) -> Result<()> {
    if weight.elem_count() != x.cols || (x.rows, x.cols) != (y.rows, y.cols) || x.stride != x.cols {
        bail!("norm of {}x{} by {:?} into {}x{}", x.rows, x.cols, weight.shape(), y.rows, y.cols);
    }
    let (d, weight, eps) = (int(x.cols)?, ctx.input::<bf16>(weight)?, eps as f32);
    let f = function(&ctx.dev, CACHED, "", "", "norm_rows")?;
    let mut args = Early::new(&f);
    args.arg(&x.address).arg(&weight).arg(&y.address).arg(&d).arg(&eps);
    args.launch(blocks(x.rows, (x.cols / PACK).next_multiple_of(32).clamp(32, 512) as u32))
}

/// A launch with warps for `n` pairs of rows of weights and `inputs` elements in shared memory: of as many blocks as find room
/// at once, and of smaller ones where there would be fewer than processors.
pub(in crate::cuda::layer) fn warps(n: usize, inputs: usize) -> LaunchConfig {
    let largest = THREADS as usize / 32;
    let each = (n / BUSY).clamp(1, largest);
    let each = if each.is_power_of_two() { each } else { each.next_power_of_two() / 2 };
    grid((n.div_ceil(each).min(2 * BUSY * largest / each), 1, 1), (32 * each as u32, 1), 2 * inputs)
}
