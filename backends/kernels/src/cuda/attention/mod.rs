//! Attention: tiles in shared memory, scores in registers; tensor cores for bf16. A few query rows have a kernel of their own. On GPUs of
//! compute capability 9.0 so have many, and the backward pass of whole layers.

mod decode;
mod gradients;
mod tiles;
mod warpgroups;

pub(super) use decode::Decode;
pub(super) use gradients::{Gradients, Inputs};
pub(super) use tiles::Tiles;
pub(super) use warpgroups::{Positions, Sizes, Warpgroups};

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, DeviceRepr, LaunchArgs, PushKernelArg};
use candle_core::{CudaStorage, DType, Layout, Result, Tensor, backend::BackendStorage, bail};

use super::{GpuElement, alloc, for_gpu_dtype, gpu, int, launch, over, storage, strided, tensor, view};
use crate::attention::{Attention, Size};

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
    pub(super) window: i32,
}

// SAFETY: `repr(C)`, only numbers, in the order of the struct in the kernel source.
unsafe impl DeviceRepr for Params {}

/// How many parts `keys` are split into, given how many blocks there are without.
pub(super) fn splits(blocks: usize, keys: usize) -> usize {
    let enough = (2 * ENOUGH_BLOCKS).div_ceil(blocks.max(1)).min(keys / SPLIT);
    if blocks < ENOUGH_BLOCKS { enough.max(1) } else { 1 }
}

fn strides(layout: &Layout) -> [i64; 3] {
    [0, 1, 2].map(|i| layout.stride()[i] as i64)
}

/// Whether rows are whole 16-byte packs and start at one, if their storages do.
fn packed<T>(layouts: &[&Layout]) -> bool {
    let of_pack = |n: &usize| (n * size_of::<T>()).is_multiple_of(16);
    layouts
        .iter()
        .all(|l| l.stride()[..3].iter().all(of_pack) && of_pack(&l.start_offset()) && of_pack(&l.dims()[3]))
}

fn parameters(op: &Attention, q: &Layout, k: &Layout, v: &Layout) -> Result<Params> {
    let Size { h, hkv, tq, tk, d, .. } = op.size;
    if op.scale.is_nan() || op.scale <= 0.0 {
        bail!("attention: a scale of {} is not supported on a gpu (it must be positive)", op.scale);
    }
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
        window: 0,
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
    let mut p = parameters(op, q.1, k.1, v.1)?;
    let (rows, of_group) = (b * h * tq, op.size.group() * tq);
    let packed = packed::<T>(&[q.1, k.1, v.1]);
    let held = op.lengths.as_ref().map(Tensor::storage_and_layout);
    let lengths = held.as_ref().map(|(s, l)| view::<u32>(gpu(s)?, l)).transpose()?;
    let (qv, kv, vv) = (strided::<T>(q.0, q.1)?, strided::<T>(k.0, k.1)?, strided::<T>(v.0, v.1)?);
    let (mut o, mut lse) = (alloc::<T>(dev, rows * d)?, alloc::<f32>(dev, rows)?);

    if T::DTYPE == DType::BF16
        && packed
        && let Some(decode) = Decode::new(dev, b * hkv, of_group, d, tk)?
    {
        let (p, mut args) = (decode.parameters(p)?, decode.kernel.builder());
        args.arg(&qv).arg(&kv).arg(&vv).arg(&mut o).arg(&mut lse);
        arg_lengths(&mut args, lengths.as_ref());
        args.arg(&p);
        launch(&mut args, decode.config())?;
        return Ok((storage(o, dev), tensor(lse, (b, h, tq), dev)));
    }

    let tiles = Tiles::forward::<T>(dev, (d, packed))?;
    let splits = splits(tiles.blocks(of_group) * b * hkv, tk);
    (p.splits, p.split_keys) = (int(splits)?, int(tk.div_ceil(splits))?);
    // Scratch for the splits; without splits the kernel does not touch it.
    let partial = if splits > 1 { splits * rows } else { 1 };
    let mut acc = alloc::<f32>(dev, partial * d)?;
    let (mut tops, mut totals) = (alloc::<f32>(dev, partial)?, alloc::<f32>(dev, partial)?);
    let mut args = tiles.kernel.builder();
    args.arg(&qv).arg(&kv).arg(&vv).arg(&mut o).arg(&mut lse).arg(&mut acc).arg(&mut tops).arg(&mut totals);
    arg_lengths(&mut args, lengths.as_ref());
    args.arg(&p);
    launch(&mut args, tiles.config(of_group, b * hkv, splits))?;
    if splits > 1 {
        let f = tiles.merge::<T>(dev)?;
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
    let [(qs, ql), (ks, kl), (vs, vl), (os, ol), (gs, gl)] = [q, k, v, o, g].map(Tensor::storage_and_layout);
    let (ls, ll) = lse.storage_and_layout();
    let dev = gpu(&qs)?.device();
    let mut p = parameters(op, ql, kl, vl)?;
    p.g = strides(gl);
    let packed = packed::<T>(&[ql, kl, vl, ol, gl]);
    let held = op.lengths.as_ref().map(Tensor::storage_and_layout);
    let lengths = held.as_ref().map(|(s, l)| view::<u32>(gpu(s)?, l)).transpose()?;
    let (qv, kv, vv) =
        (strided::<T>(gpu(&qs)?, ql)?, strided::<T>(gpu(&ks)?, kl)?, strided::<T>(gpu(&vs)?, vl)?);
    let (ov, gv) = (view::<T>(gpu(&os)?, ol)?, strided::<T>(gpu(&gs)?, gl)?);
    let lse = view::<f32>(gpu(&ls)?, ll)?;

    let (rows, of_group) = (b * h * tq, op.size.group() * tq);
    let (mut dq, mut terms) = (alloc::<T>(dev, rows * d)?, alloc::<f32>(dev, 2 * rows)?);
    let tiles = Tiles::queries::<T>(dev, (d, packed))?;
    let mut args = tiles.kernel.builder();
    args.arg(&qv).arg(&kv).arg(&vv).arg(&ov).arg(&gv).arg(&lse).arg(&mut terms).arg(&mut dq);
    arg_lengths(&mut args, lengths.as_ref());
    args.arg(&p);
    launch(&mut args, tiles.config(of_group, b * hkv, 1))?;

    let size = b * hkv * tk * d;
    let (mut dk, mut dv): (CudaSlice<T>, CudaSlice<T>) = (alloc(dev, size)?, alloc(dev, size)?);
    let tiles = Tiles::keys::<T>(dev, (d, packed), tk, b * hkv)?;
    let mut args = tiles.kernel.builder();
    args.arg(&qv).arg(&kv).arg(&vv).arg(&gv).arg(&terms).arg(&mut dk).arg(&mut dv);
    arg_lengths(&mut args, lengths.as_ref());
    args.arg(&p);
    launch(&mut args, tiles.config(tk, b * hkv, 1))?;
    Ok((tensor(dq, q.shape(), dev), tensor(dk, k.shape(), dev), tensor(dv, v.shape(), dev)))
}
