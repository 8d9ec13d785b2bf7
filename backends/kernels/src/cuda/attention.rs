//! Attention: tiles in shared memory, scores in registers; tensor cores for bf16.

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, DeviceRepr, LaunchArgs, PushKernelArg};
use candle_core::{CudaDevice, CudaStorage, Layout, Result, Tensor, backend::BackendStorage, bail};

use super::{
    GpuElement, Kernel, Module, alloc, for_gpu_dtype, function, gpu, grid, int, launch, over, storage,
    strided, tensor, view,
};
use crate::attention::{Attention, Size};

const ATTENTION: Module = Module { name: "attention", source: include_str!("attention.cu") };
/// Blocks that occupy a large GPU; with fewer, keys are split over more of them.
const ENOUGH_BLOCKS: usize = 132;
/// Keys per split at least.
const SPLIT: usize = 256;
const NULL: u64 = 0;

/// `Params` of the kernel source.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Params {
    pub(super) q: [i64; 3],
    pub(super) k: [i64; 3],
    pub(super) v: [i64; 3],
    pub(super) o: [i64; 3],
    pub(super) g: [i64; 3],
    pub(super) dq: [i64; 3],
    pub(super) dk: [i64; 3],
    pub(super) dv: [i64; 3],
    pub(super) h: i32,
    pub(super) hkv: i32,
    pub(super) tq: i32,
    pub(super) tk: i32,
    pub(super) d: i32,
    pub(super) causal: i32,
    pub(super) offset: i32,
    pub(super) splits: i32,
    pub(super) split_keys: i32,
    pub(super) scale: f32,
}

// SAFETY: `repr(C)`, only numbers, in the order of the struct in the kernel source.
unsafe impl DeviceRepr for Params {}

/// Tile sizes for an element type and head size, as the constants D, M, N and B of the kernel source.
pub(super) struct Tiles {
    d: usize,
    pub(super) rows: usize,
    pub(super) keys: usize,
    pub(super) queries: usize,
    wide: bool,
    element: usize,
}

impl Tiles {
    pub(super) fn new<T: GpuElement>(d: usize) -> Result<Self> {
        let Some(padded) = [32, 64, 128].into_iter().find(|&p| d <= p) else {
            bail!("attention: head size {d} is not supported on a gpu (at most 128)");
        };
        let (element, wide) = (size_of::<T>(), size_of::<T>() == 4);
        let tile = if wide { 32 } else { 64 };
        // At the largest head size the registers do not hold more.
        let queries = if padded == 128 { 32 } else { tile };
        Ok(Self { d: padded, rows: tile, keys: tile, queries, wide, element })
    }

    pub(super) fn threads(&self) -> u32 {
        2 * self.rows as u32
    }

    pub(super) fn function<T: GpuElement>(&self, dev: &CudaDevice, name: &str) -> Result<Kernel> {
        let Self { d, rows, keys, queries, wide, .. } = self;
        let definitions = format!(
            "{}typedef {} T;\nconstexpr int D = {d}, M = {rows}, N = {keys}, B = {queries};\n",
            if *wide { "#define WIDE\n" } else { "" },
            T::NAME,
        );
        function(dev, ATTENTION, &format!("_{}_{d}", T::SUFFIX), &definitions, name)
    }

    /// Bytes of shared memory for `rows` tile rows and, for float32, scores against `columns` columns.
    pub(super) fn shared(&self, rows: usize, columns: usize) -> usize {
        let scratch = if self.wide { self.rows * (columns + 1) } else { 0 };
        (rows * (self.d + 16 / self.element) + scratch) * self.element
    }
}

/// How many parts `keys` are split into, given how many blocks there are without.
pub(super) fn splits(blocks: usize, keys: usize) -> usize {
    let enough = (2 * ENOUGH_BLOCKS).div_ceil(blocks.max(1)).min(keys / SPLIT);
    if blocks < ENOUGH_BLOCKS { enough.max(1) } else { 1 }
}

fn strides(layout: &Layout) -> [i64; 3] {
    [0, 1, 2].map(|i| layout.stride()[i] as i64)
}

fn parameters(op: &Attention, q: &Layout, k: &Layout, v: &Layout) -> Result<Params> {
    let Size { h, hkv, tq, tk, d, .. } = op.size;
    let heads_first = |heads: usize, t: usize| [heads * t * d, t * d, d].map(|n| n as i64);
    Ok(Params {
        q: strides(q),
        k: strides(k),
        v: strides(v),
        o: [tq * h * d, d, h * d].map(|n| n as i64),
        g: [0; 3],
        dq: heads_first(h, tq),
        dk: heads_first(hkv, tk),
        dv: heads_first(hkv, tk),
        h: int(h)?,
        hkv: int(hkv)?,
        tq: int(tq)?,
        tk: int(tk)?,
        d: int(d)?,
        causal: i32::from(op.visible.offset.is_some()),
        // A larger offset than there are keys hides nothing, and could overflow.
        offset: int(op.visible.offset.unwrap_or(0).min(tk))?,
        splits: 1,
        split_keys: int(tk)?,
        scale: op.scale as f32,
    })
}

/// Adds the key lengths, which live beside the operation if it has any.
fn arg_lengths<'a>(args: &mut LaunchArgs<'a>, lengths: Option<&'a CudaView<'a, u32>>) {
    match lengths {
        Some(lengths) => args.arg(lengths),
        None => args.arg(&NULL),
    };
}

/// Output `[B, Tq, H, d]` and log-sum-exp `[B, H, Tq]`.
pub(crate) fn forward(
    op: &Attention,
    q: (&CudaStorage, &Layout),
    k: (&CudaStorage, &Layout),
    v: (&CudaStorage, &Layout),
) -> Result<(CudaStorage, Tensor)> {
    for_gpu_dtype!("attention", q.0.dtype(), T => forward_of::<T>(op, q, k, v))
}

fn forward_of<T: GpuElement>(
    op: &Attention,
    q: (&CudaStorage, &Layout),
    k: (&CudaStorage, &Layout),
    v: (&CudaStorage, &Layout),
) -> Result<(CudaStorage, Tensor)> {
    let dev = q.0.device();
    let Size { b, h, hkv, tq, tk, d } = op.size;
    let tiles = Tiles::new::<T>(d)?;
    let mut p = parameters(op, q.1, k.1, v.1)?;
    let (rows, row_tiles) = (b * h * tq, (op.size.group() * tq).div_ceil(tiles.rows));
    let splits = splits(row_tiles * b * hkv, tk);
    (p.splits, p.split_keys) = (int(splits)?, int(tk.div_ceil(splits))?);

    let held = op.lengths.as_ref().map(Tensor::storage_and_layout);
    let lengths = held.as_ref().map(|(s, l)| view::<u32>(gpu(s)?, l)).transpose()?;
    let (qv, kv, vv) = (strided::<T>(q.0, q.1)?, strided::<T>(k.0, k.1)?, strided::<T>(v.0, v.1)?);
    let (mut o, mut lse) = (alloc::<T>(dev, rows * d)?, alloc::<f32>(dev, rows)?);
    // Scratch for the splits; without splits the kernel does not touch it.
    let partial = if splits > 1 { splits * rows } else { 1 };
    let mut acc = alloc::<f32>(dev, partial * d)?;
    let (mut tops, mut totals) = (alloc::<f32>(dev, partial)?, alloc::<f32>(dev, partial)?);
    let f = tiles.function::<T>(dev, "attention_forward")?;
    let shared = tiles.shared(tiles.rows + 2 * tiles.keys, tiles.keys);
    f.allow_shared(shared)?;
    let mut args = f.builder();
    args.arg(&qv).arg(&kv).arg(&vv).arg(&mut o).arg(&mut lse).arg(&mut acc).arg(&mut tops).arg(&mut totals);
    arg_lengths(&mut args, lengths.as_ref());
    args.arg(&p);
    launch(&mut args, grid((row_tiles, b * hkv, splits), (tiles.threads(), 1), shared))?;
    if splits > 1 {
        let f = tiles.function::<T>(dev, "attention_merge")?;
        let (count, mut args) = (rows as i64, f.builder());
        args.arg(&acc).arg(&tops).arg(&totals).arg(&mut o).arg(&mut lse).arg(&count).arg(&p);
        launch(&mut args, over(rows * 32))?;
    }
    Ok((storage(o, dev), tensor(lse, (b, h, tq), dev)))
}

/// Gradients of queries, keys and values. `o` is the output `[B, Tq, H, d]`, `g` its gradient viewed as
/// `[B, H, Tq, d]`, `lse` what [`forward`] returned.
pub(crate) fn gradients(
    op: &Attention,
    [q, k, v, o, g]: [&Tensor; 5],
    lse: &Tensor,
) -> Result<(Tensor, Tensor, Tensor)> {
    for_gpu_dtype!("attention", q.dtype(), T => gradients_of::<T>(op, [q, k, v, o, g], lse))
}

fn gradients_of<T: GpuElement>(
    op: &Attention,
    [q, k, v, o, g]: [&Tensor; 5],
    lse: &Tensor,
) -> Result<(Tensor, Tensor, Tensor)> {
    let Size { b, h, hkv, tq, tk, d } = op.size;
    let tiles = Tiles::new::<T>(d)?;
    let [(qs, ql), (ks, kl), (vs, vl), (os, ol), (gs, gl)] = [q, k, v, o, g].map(Tensor::storage_and_layout);
    let (ls, ll) = lse.storage_and_layout();
    let dev = gpu(&qs)?.device();
    let mut p = parameters(op, ql, kl, vl)?;
    p.g = strides(gl);
    let held = op.lengths.as_ref().map(Tensor::storage_and_layout);
    let lengths = held.as_ref().map(|(s, l)| view::<u32>(gpu(s)?, l)).transpose()?;
    let (qv, kv, vv) =
        (strided::<T>(gpu(&qs)?, ql)?, strided::<T>(gpu(&ks)?, kl)?, strided::<T>(gpu(&vs)?, vl)?);
    let (ov, gv) = (view::<T>(gpu(&os)?, ol)?, strided::<T>(gpu(&gs)?, gl)?);
    let lse = view::<f32>(gpu(&ls)?, ll)?;

    let rows = b * h * tq;
    let mut delta = alloc::<f32>(dev, rows)?;
    let f = tiles.function::<T>(dev, "attention_delta")?;
    let (count, mut args) = (rows as i64, f.builder());
    args.arg(&ov).arg(&gv).arg(&mut delta).arg(&count).arg(&p);
    launch(&mut args, over(rows * 8))?;

    let mut dq = alloc::<T>(dev, rows * d)?;
    let f = tiles.function::<T>(dev, "attention_queries")?;
    let shared = tiles.shared(2 * tiles.rows + 2 * tiles.keys, tiles.keys);
    f.allow_shared(shared)?;
    let mut args = f.builder();
    args.arg(&qv).arg(&kv).arg(&vv).arg(&gv).arg(&lse).arg(&delta).arg(&mut dq);
    arg_lengths(&mut args, lengths.as_ref());
    args.arg(&p);
    let row_tiles = (op.size.group() * tq).div_ceil(tiles.rows);
    launch(&mut args, grid((row_tiles, b * hkv, 1), (tiles.threads(), 1), shared))?;

    let size = b * hkv * tk * d;
    let (mut dk, mut dv): (CudaSlice<T>, CudaSlice<T>) = (alloc(dev, size)?, alloc(dev, size)?);
    let f = tiles.function::<T>(dev, "attention_keys")?;
    let shared = tiles.shared(2 * tiles.rows + 2 * tiles.queries, tiles.queries);
    f.allow_shared(shared)?;
    let mut args = f.builder();
    args.arg(&qv).arg(&kv).arg(&vv).arg(&gv).arg(&lse).arg(&delta).arg(&mut dk).arg(&mut dv);
    arg_lengths(&mut args, lengths.as_ref());
    args.arg(&p);
    launch(&mut args, grid((tk.div_ceil(tiles.rows), b * hkv, 1), (tiles.threads(), 1), shared))?;
    Ok((tensor(dq, q.shape(), dev), tensor(dk, k.shape(), dev), tensor(dv, v.shape(), dev)))
}
