//! The kernels that hold tiles of rows in shared memory: how they are compiled and started.

use candle_core::cuda_backend::cudarc::driver::LaunchConfig;
use candle_core::{CudaDevice, Result, bail};

use super::ENOUGH_BLOCKS;
use crate::cuda::{GpuElement, Kernel, Module, function, grid};

const FORWARD: Module = Module {
    name: "attention_forward",
    source: concat!(
        include_str!("params.cuh"),
        include_str!("quads.cuh"),
        include_str!("tiles.cuh"),
        include_str!("forward.cu")
    ),
};
const QUERIES: Module = Module {
    name: "attention_queries",
    source: concat!(
        include_str!("params.cuh"),
        include_str!("quads.cuh"),
        include_str!("tiles.cuh"),
        include_str!("queries.cu")
    ),
};
const KEYS: Module = Module {
    name: "attention_keys",
    source: concat!(
        include_str!("params.cuh"),
        include_str!("quads.cuh"),
        include_str!("tiles.cuh"),
        include_str!("keys.cu")
    ),
};

/// Constants of the sources.
#[derive(Clone, Copy)]
struct Constants {
    /// R, sixteens of rows that a warp owns.
    rows: usize,
    /// W, warps that share a tile.
    warps: usize,
    /// N, rows of the tiles that pass by.
    passing: usize,
    /// BLOCKS, which a multiprocessor is to have room for.
    blocks: usize,
    /// S, parts of a block that take every S-th of the passing tiles each (of the gradients of keys and values).
    parts: usize,
}

const fn constants([rows, warps, passing, blocks, parts]: [usize; 5]) -> Constants {
    Constants { rows, warps, passing, blocks, parts }
}

/// float32 is computed without tensor cores, in tiles small enough for GPUs of 99 KiB of shared memory a block.
const WIDE: Constants = constants([1, 2, 16, 1, 1]);

/// A kernel of tiles for one element type and head size.
pub(in crate::cuda) struct Tiles {
    pub(in crate::cuda) kernel: Kernel,
    constants: Constants,
    padded: usize,
    packed: bool,
    shared: usize,
}

impl Tiles {
    /// The forward pass for heads of `d`, `packed` where all rows are whole 16-byte packs. The constants, here and below, are
    /// the fastest ones on an H100.
    pub(in crate::cuda) fn forward<T: GpuElement>(
        dev: &CudaDevice,
        (d, packed): (usize, bool),
    ) -> Result<Self> {
        let fastest = match padded(d)? {
            32 => [2, 4, 64, 4, 1],
            64 => [1, 4, 64, 4, 1],
            _ => [1, 4, 64, 2, 1],
        };
        Self::new::<T>(dev, FORWARD, (d, packed), constants(fastest), 1)
    }

    /// The gradient of the queries, likewise.
    pub(in crate::cuda) fn queries<T: GpuElement>(
        dev: &CudaDevice,
        (d, packed): (usize, bool),
    ) -> Result<Self> {
        let fastest = match padded(d)? {
            32 => [1, 4, 64, 4, 1],
            64 => [1, 4, 32, 4, 1],
            _ => [1, 4, 32, 2, 1],
        };
        Self::new::<T>(dev, QUERIES, (d, packed), constants(fastest), 2)
    }

    /// The gradients of `keys` keys of each of `heads` key heads (of all sequences), and of their values.
    pub(in crate::cuda) fn keys<T: GpuElement>(
        dev: &CudaDevice,
        (d, packed): (usize, bool),
        keys: usize,
        heads: usize,
    ) -> Result<Self> {
        let fastest = match padded(d)? {
            32 => [2, 4, 32, 3, 1],
            64 if keys.div_ceil(64) * heads > ENOUGH_BLOCKS => [2, 4, 32, 2, 1],
            64 => [1, 2, 32, 1, 4],
            _ => [1, 4, 32, 2, 1],
        };
        Self::new::<T>(dev, KEYS, (d, packed), constants(fastest), 2)
    }

    /// A module's kernel, which has the module's name and holds `own` tiles of the rows that a block owns.
    fn new<T: GpuElement>(
        dev: &CudaDevice,
        module: Module,
        (d, packed): (usize, bool),
        fastest: Constants,
        own: usize,
    ) -> Result<Self> {
        let wide = size_of::<T>() == 4;
        let (d, constants) = (padded(d)?, if wide { WIDE } else { fastest });
        let Constants { rows, warps, passing, parts, .. } = constants;
        // Two of keys and values each, and for float32 what a warp's scores go through.
        let tiles = own * 16 * rows * warps + parts * 4 * passing;
        let scratch = if wide { parts * warps * 16 * (passing + 1) } else { 0 };
        let shared = (tiles * (d + 16 / size_of::<T>()) + scratch) * size_of::<T>();
        let kernel = compiled::<T>(dev, module, (d, packed), constants, module.name)?;
        kernel.allow_shared(shared)?;
        Ok(Self { kernel, constants, padded: d, packed, shared })
    }

    /// The kernel that combines what the forward pass made of split keys.
    pub(in crate::cuda) fn merge<T: GpuElement>(&self, dev: &CudaDevice) -> Result<Kernel> {
        compiled::<T>(dev, FORWARD, (self.padded, self.packed), self.constants, "attention_merge")
    }

    /// Blocks for `rows` rows.
    pub(in crate::cuda) fn blocks(&self, rows: usize) -> usize {
        rows.div_ceil(16 * self.constants.rows * self.constants.warps)
    }

    /// A launch for `rows` rows of each of `heads` heads, in `splits` parts.
    pub(in crate::cuda) fn config(&self, rows: usize, heads: usize, splits: usize) -> LaunchConfig {
        let threads = 32 * self.constants.warps * self.constants.parts;
        grid((self.blocks(rows), heads, splits), (threads as u32, 1), self.shared)
    }
}

/// The head size that heads of `d` are padded to.
fn padded(d: usize) -> Result<usize> {
    let Some(padded) = [32, 64, 128].into_iter().find(|&p| d <= p) else {
        bail!("attention: head size {d} is not supported on a gpu (at most 128)");
    };
    Ok(padded)
}

fn compiled<T: GpuElement>(
    dev: &CudaDevice,
    module: Module,
    (d, packed): (usize, bool),
    Constants { rows, warps, passing, blocks, parts }: Constants,
    name: &str,
) -> Result<Kernel> {
    let variant = format!("_{}_{d}_{packed}_{rows}_{warps}_{passing}_{blocks}_{parts}", T::SUFFIX);
    let definitions = format!(
        "{}typedef {} T;\nconstexpr bool PACKED = {packed};\nconstexpr int D = {d}, R = {rows}, W = {warps}, N = {passing}, \
         BLOCKS = {blocks}, S = {parts};\n",
        if size_of::<T>() == 4 { "#define WIDE\n" } else { "" },
        T::NAME,
    );
    function(dev, module, &variant, &definitions, name)
}
