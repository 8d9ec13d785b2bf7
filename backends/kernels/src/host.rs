//! Access to the data of CPU tensors, and loops over their rows in parallel.

use candle_core::{CpuStorage, Device, Layout, Result, Storage, Tensor, WithDType, bail};
use rayon::prelude::*;

use crate::simd::vectorised;

/// Elements a task handles at least: below this, handing work to another thread costs more than it saves.
const GRAIN: usize = 16 * 1024;

/// The elements of a contiguous CPU tensor.
///
/// # Errors
/// If the layout is not contiguous or the element type is not `T`.
pub(crate) fn slice<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let data = storage.as_slice::<T>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&data[start..end]),
        None => bail!("tensor of shape {:?} is not contiguous", layout.shape()),
    }
}

/// The CPU form of a tensor's storage.
///
/// # Errors
/// If the tensor lives on another device.
pub(crate) fn cpu(storage: &Storage) -> Result<&CpuStorage> {
    match storage {
        Storage::Cpu(storage) => Ok(storage),
        _ => bail!("all tensors of one operation must be on the same device (expected the cpu)"),
    }
}

/// Copies out the elements of a small CPU tensor.
pub(crate) fn to_vec<T: WithDType>(t: &Tensor) -> Result<Vec<T>> {
    t.flatten_all()?.to_vec1::<T>()
}

/// Runs `f` on one of the threads that operations on the CPU are spread over; on the calling thread for other devices.
///
/// From any other thread every operation would hand its work over and sleep until it is done: two switches of threads
/// for each of the hundreds of small operations of a token.
pub fn on_workers<R: Send>(device: &Device, f: impl FnOnce() -> R + Send) -> R {
    if device.is_cpu() { rayon::scope(|_| f()) } else { f() }
}

/// Calls `f(first_row, rows)` on groups of whole rows of `width` elements, in parallel if there is enough work.
///
/// `f` must be an `#[inline(always)]` closure: it is compiled once per vector width.
#[inline(always)]
pub(crate) fn for_rows<T: Send>(out: &mut [T], width: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    for_work(out, width, width, f);
}

/// As [`for_rows`] where the work of one row is worth `cost` elements instead of `width`.
#[inline(always)]
pub(crate) fn for_work<T: Send>(
    out: &mut [T],
    width: usize,
    cost: usize,
    f: impl Fn(usize, &mut [T]) + Sync,
) {
    let width = width.max(1);
    let rows = (GRAIN / cost.max(1)).max(1);
    if out.len() <= rows * width {
        return vectorised(
            #[inline(always)]
            || f(0, out),
        );
    }
    out.par_chunks_mut(rows * width).enumerate().for_each(|(i, chunk)| {
        vectorised(
            #[inline(always)]
            || f(i * rows, chunk),
        )
    });
}

/// As [`for_rows`], over the same rows of two outputs of equal shape.
#[inline(always)]
pub(crate) fn for_rows2<T: Send>(
    a: &mut [T],
    b: &mut [T],
    width: usize,
    f: impl Fn(usize, &mut [T], &mut [T]) + Sync,
) {
    let width = width.max(1);
    let rows = (GRAIN / width).max(1);
    if a.len() <= rows * width {
        return vectorised(
            #[inline(always)]
            || f(0, a, b),
        );
    }
    let chunks = a.par_chunks_mut(rows * width).zip(b.par_chunks_mut(rows * width));
    chunks.enumerate().for_each(|(i, (a, b))| {
        vectorised(
            #[inline(always)]
            || f(i * rows, a, b),
        )
    });
}
