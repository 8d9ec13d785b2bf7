//! The forward pass by products of warpgroups, which only GPUs of compute capability 9.0 have.

use candle_core::cuda_backend::cudarc::driver::DeviceRepr;
use candle_core::{CudaDevice, Result};

use crate::cuda::hopper::{self, TensorMap};
use crate::cuda::{Early, Kernel, Module, grid, int};

/// The kernels for heads of 64 and of 128.
const WARPGROUPS: Module = Module {
    name: "attention_warpgroups",
    source: concat!(include_str!("quads.cuh"), include_str!("heads.cuh"), include_str!("warpgroups.cu")),
};
const OVERLAPPED: Module = Module {
    name: "attention_overlapped",
    source: concat!(include_str!("quads.cuh"), include_str!("heads.cuh"), include_str!("overlapped.cu")),
};
/// Query rows of a warpgroup.
const ROWS: usize = 64;
/// Warpgroups of a block that multiply, and keys that pass by at a time: the fastest on an H100.
const GROUPS: usize = 2;
const KEYS: usize = 128;

/// Matrices of one size, their rows being positions.
#[derive(Clone, Copy)]
pub(in crate::cuda) struct Positions {
    /// Of the first element.
    pub(in crate::cuda) address: u64,
    /// Columns, rows, and matrices.
    pub(in crate::cuda) size: [usize; 3],
    /// Elements from a row to the next, and from a matrix to the next.
    pub(in crate::cuda) strides: [usize; 2],
}

impl Positions {
    pub(super) fn map(&self, rows: usize) -> Result<TensorMap> {
        TensorMap::new(self.address, self.size, &self.strides, rows)
    }
}

/// Sizes of attention, what is hidden, and how keys lie in their matrices.
#[derive(Clone, Copy)]
pub(in crate::cuda) struct Sizes {
    /// Query and key heads.
    pub(in crate::cuda) heads: (usize, usize),
    /// Whether what stands behind a position is hidden, and how many keys stand before the first one.
    pub(in crate::cuda) causal: Option<usize>,
    /// Columns, and matrices, from a key head to the next.
    pub(in crate::cuda) of_head: (usize, usize),
    /// Matrices from the keys of a sequence to those of the next.
    pub(in crate::cuda) of_sequence: usize,
}

/// `Attention` of the kernel source.
#[repr(C)]
#[derive(Clone, Copy)]
struct Params {
    sizes: [i32; 10],
    scale: f32,
}

// SAFETY: `repr(C)`, only numbers, in the order of the struct in the kernel source.
unsafe impl DeviceRepr for Params {}

/// The kernel for one head size.
pub(in crate::cuda) struct Warpgroups {
    kernel: Kernel,
    d: usize,
    warpgroups: usize,
    shared: usize,
}

impl Warpgroups {
    /// For heads of `d` with `queries` rows each; nothing where the device, the size or so few rows suit the other kernels.
    pub(in crate::cuda) fn new(dev: &CudaDevice, d: usize, queries: usize) -> Result<Option<Self>> {
        // With heads of 128 one more copies.
        let (module, warpgroups) = match d {
            64 => (WARPGROUPS, GROUPS),
            128 => (OVERLAPPED, GROUPS + 1),
            _ => return Ok(None),
        };
        if queries <= ROWS || !hopper::is_hopper(dev)? {
            return Ok(None);
        }
        let definitions = format!("constexpr int D = {d}, W = {GROUPS}, N = {KEYS}, BLOCKS = 2;\n");
        let kernel = hopper::function(dev, module, "", &definitions, module.name)?;
        let shared = (GROUPS * ROWS + 4 * KEYS) * d * 2;
        kernel.allow_shared(shared)?;
        Ok(Some(Self { kernel, d, warpgroups, shared }))
    }

    /// Blocks for `queries` rows of `heads` heads of all sequences.
    pub(in crate::cuda) fn blocks(queries: usize, heads: usize) -> usize {
        queries.div_ceil(GROUPS * ROWS) * heads
    }

    /// Writes the heads' outputs side by side to the rows at `o`, `stride` elements apart, and the log-sum-exp `[b, h, tq]` to the
    /// address `lse`. Values lie at the address `values` as `keys` do; `lengths` is the address of the keys of each sequence, or 0.
    pub(in crate::cuda) fn run(
        &self,
        (q, keys, values): (Positions, Positions, u64),
        (o, stride): (u64, usize),
        lse: u64,
        lengths: u64,
        sizes: Sizes,
    ) -> Result<()> {
        let [_, tq, sequences] = q.size;
        let ((h, hkv), scale) = (sizes.heads, 1.0 / (self.d as f32).sqrt());
        let numbers = [
            tq,
            keys.size[1],
            h,
            hkv,
            usize::from(sizes.causal.is_some()),
            sizes.causal.unwrap_or(0),
            sizes.of_head.0,
            sizes.of_sequence,
            sizes.of_head.1,
            stride,
        ];
        let mut p = Params { sizes: [0; 10], scale };
        for (to, n) in p.sizes.iter_mut().zip(numbers) {
            *to = int(n)?;
        }
        let (mq, mk) = (q.map(GROUPS * ROWS)?, keys.map(KEYS)?);
        let mv = Positions { address: values, ..keys }.map(KEYS)?;
        let mut args = Early::new(&self.kernel);
        args.arg(&mq).arg(&mk).arg(&mv).arg(&o).arg(&lse).arg(&lengths).arg(&p);
        let blocks = (tq.div_ceil(GROUPS * ROWS), sequences * h, 1);
        args.launch(grid(blocks, ((128 * self.warpgroups) as u32, 1), self.shared))
    }
}
