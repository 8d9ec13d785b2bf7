//! The backward pass by products of warpgroups, which only GPUs of compute capability 9.0 have.

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DeviceRepr, PushKernelArg};
use candle_core::{CudaDevice, Result, bail};

use super::warpgroups::Positions;
use crate::cuda::hopper;
use crate::cuda::{Kernel, Module, alloc, grid, int, launch};

const GRADIENTS: Module = Module {
    name: "attention_gradients",
    source: concat!(include_str!("quads.cuh"), include_str!("gradients.cu")),
};
/// Rows of a block, and of those that pass by.
const ROWS: usize = 64;
const THREADS: u32 = 128;

/// `Gradients` of the kernel source.
#[repr(C)]
#[derive(Clone, Copy)]
struct Params {
    sizes: [i32; 8],
    scale: f32,
}

// SAFETY: `repr(C)`, only numbers, in the order of the struct in the kernel source.
unsafe impl DeviceRepr for Params {}

/// Matrices of positions and their gradients, whose heads stand side by side.
pub(in crate::cuda) struct Inputs {
    pub(in crate::cuda) q: Positions,
    pub(in crate::cuda) k: Positions,
    pub(in crate::cuda) v: Positions,
    /// The gradient of the output.
    pub(in crate::cuda) g: Positions,
    /// Address of the output, and elements from a position to the next.
    pub(in crate::cuda) o: (u64, usize),
    /// Address of the log-sum-exp, `[b, h, t]`.
    pub(in crate::cuda) lse: u64,
    /// Address of the keys of each sequence, or 0.
    pub(in crate::cuda) lengths: u64,
    /// Query and key heads.
    pub(in crate::cuda) heads: (usize, usize),
    pub(in crate::cuda) causal: bool,
}

/// The kernels for one head size.
pub(in crate::cuda) struct Gradients {
    queries: Kernel,
    keys: Kernel,
    d: usize,
    shared: usize,
}

impl Gradients {
    /// For heads of `d` with `t` positions each; nothing where the device, the size or so few rows suit the other kernels.
    pub(in crate::cuda) fn new(dev: &CudaDevice, d: usize, t: usize) -> Result<Option<Self>> {
        // As many blocks of each kernel as a multiprocessor has registers for, or shared memory.
        let blocks = match d {
            64 => (4, 3),
            128 => (2, 2),
            _ => return Ok(None),
        };
        if t <= ROWS || !hopper::is_hopper(dev)? {
            return Ok(None);
        }
        let definitions =
            format!("constexpr int D = {d}, QUERY_BLOCKS = {}, KEY_BLOCKS = {};\n", blocks.0, blocks.1);
        let kernel = |name| hopper::function(dev, GRADIENTS, &format!("_{d}"), &definitions, name);
        let (queries, keys) = (kernel("attention_queries_64")?, kernel("attention_keys_64")?);
        let shared = 6 * ROWS * d * 2;
        queries.allow_shared(shared)?;
        keys.allow_shared(shared)?;
        Ok(Some(Self { queries, keys, d, shared }))
    }

    /// Writes the gradients of queries, keys and values to the addresses `to`, where positions are `stride` elements apart.
    pub(in crate::cuda) fn run(
        &self,
        dev: &CudaDevice,
        of: &Inputs,
        to: [u64; 3],
        stride: usize,
    ) -> Result<()> {
        let ([_, t, sequences], (h, hkv)) = (of.q.size, of.heads);
        if [of.k, of.v, of.g].iter().any(|x| x.size[1..] != of.q.size[1..]) {
            bail!("gradients of attention: matrices of other sizes than {:?}", of.q.size);
        }
        let tiles = t.div_ceil(ROWS);
        let mut p = Params { sizes: [0; 8], scale: 1.0 / (self.d as f32).sqrt() };
        let causal = usize::from(of.causal);
        let sizes = [t, tiles * ROWS, h, hkv, causal, of.o.1, of.g.strides[0], stride];
        for (to, n) in p.sizes.iter_mut().zip(sizes) {
            *to = int(n)?;
        }
        let map = |x: Positions| x.map(ROWS);
        let (q, k, v, g) = (map(of.q)?, map(of.k)?, map(of.v)?, map(of.g)?);
        let mut terms: CudaSlice<f32> = alloc(dev, 2 * sequences * h * tiles * ROWS)?;
        let mut args = self.queries.builder();
        args.arg(&q).arg(&k).arg(&v).arg(&g).arg(&of.o.0).arg(&of.g.address).arg(&of.lse);
        args.arg(&mut terms).arg(&to[0]).arg(&of.lengths).arg(&p);
        launch(&mut args, grid((tiles, sequences * h, 1), (THREADS, 1), self.shared))?;
        let mut args = self.keys.builder();
        args.arg(&q).arg(&k).arg(&v).arg(&g).arg(&terms).arg(&to[1]).arg(&to[2]).arg(&of.lengths).arg(&p);
        launch(&mut args, grid((tiles, sequences * hkv, 1), (THREADS, 1), self.shared))
    }
}
