//! The kernel for a few query rows and many keys, in bf16.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::LaunchConfig;
use candle_core::{CudaDevice, Result};

use super::{ENOUGH_BLOCKS, Params};
use crate::cuda::{Kernel, Module, function, grid, int};

const DECODE: Module = Module {
    name: "attention_decode",
    source: concat!(include_str!("params.cuh"), include_str!("decode.cu")),
};
/// Query rows of a key head up to which it is used.
const FEW: usize = 16;
/// Keys per block of a cluster at least.
const LEAST: usize = 64;

/// A launch of it, which stays right when the sequences grow: what it was chosen for is only what it is fastest for.
pub(in crate::cuda) struct Decode {
    pub(in crate::cuda) kernel: Kernel,
    heads: usize,
    warps: usize,
    cluster: usize,
    shared: usize,
}

impl Decode {
    /// For `rows` query rows of each of `heads` key heads (of all sequences) and up to about `longest` keys. None where tiles
    /// do it: for more rows, heads that are not a multiple of 8 wide, and many keys of few heads on a GPU without clusters
    /// of blocks.
    pub(in crate::cuda) fn new(
        dev: &CudaDevice,
        heads: usize,
        rows: usize,
        d: usize,
        longest: usize,
    ) -> Result<Option<Self>> {
        if rows > FEW || d > 128 || !d.is_multiple_of(8) {
            return Ok(None);
        }
        let padded = if d <= 64 { 64 } else { 128 };
        let (warps, cluster) = shape(heads, padded, longest);
        let (major, _) = dev.cuda_stream().context().compute_capability().w()?;
        if cluster > 1 && major < 9 {
            return Ok(None);
        }
        // The registers of 16 warps hold eight rows.
        let eights = rows.div_ceil(8);
        let warps = warps.min(16 / eights);
        let definitions = format!(
            "#define CLUSTER {cluster}\ntypedef bf16 T;\nconstexpr int D = {padded}, Q = {eights}, W = {warps};\n"
        );
        let variant = format!("_{padded}_{eights}_{warps}_{cluster}");
        let kernel = function(dev, DECODE, &variant, &definitions, DECODE.name)?;
        let shared = warps * rows * padded * size_of::<f32>();
        kernel.allow_shared(shared)?;
        Ok(Some(Self { kernel, heads, warps, cluster, shared }))
    }

    pub(in crate::cuda) fn parameters(&self, p: Params) -> Result<Params> {
        Ok(Params { split_keys: int(LEAST)?, ..p })
    }

    pub(in crate::cuda) fn config(&self) -> LaunchConfig {
        grid((self.cluster, self.heads, 1), (32 * self.warps as u32, 1), self.shared)
    }
}

/// Warps of a block and blocks of a cluster that were fastest on an H100.
fn shape(heads: usize, d: usize, longest: usize) -> (usize, usize) {
    if heads >= ENOUGH_BLOCKS {
        return (4, 1);
    }
    let steps = longest.div_ceil(16 * 16);
    if steps <= 128 / d || 2 * heads > ENOUGH_BLOCKS {
        (16, 1)
    } else if 6 * heads > ENOUGH_BLOCKS {
        (8, 4)
    } else {
        (16, 8)
    }
}
