//! What only GPUs of compute capability 9.0 have: kernels for exactly that one, and copies of tiles by maps of matrices.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{DeviceRepr, sys};
use candle_core::{CudaDevice, Result, bail};

use super::{Kernel, Module, SHARED_SOURCES, load};

/// Columns of bf16 elements in a box: 128 bytes, which the copies swizzle.
pub(super) const BOX: usize = 64;

/// Whether the device is one.
pub(super) fn is_hopper(dev: &CudaDevice) -> Result<bool> {
    Ok(dev.cuda_stream().context().compute_capability().w()? == (9, 0))
}

/// As [`function`](super::function), for sources behind `hopper.cuh` and `wgmma.cuh`.
pub(super) fn function(
    dev: &CudaDevice,
    module: Module,
    variant: &str,
    definitions: &str,
    name: &str,
) -> Result<Kernel> {
    let [ptx, common] = SHARED_SOURCES;
    let (copies, products) = (include_str!("hopper.cuh"), include_str!("wgmma.cuh"));
    let sources = [ptx, common, copies, products, definitions, module.source];
    load(dev, &format!("{}{variant}", module.name), "a", &sources, name)
}

/// `TensorMap` of the kernel sources: a matrix, or several of one size, and the box that a copy moves.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(super) struct TensorMap([u64; 16]);

// SAFETY: `repr(C)`, only numbers; the kernels take it as 128 bytes on a boundary of 64.
unsafe impl DeviceRepr for TensorMap {}

impl TensorMap {
    /// bf16 elements at `address`, in boxes of [`BOX`] columns and `rows` rows. `dims` are columns, rows and, where there are
    /// several, matrices; `strides` elements from a row to the next, and from a matrix to the next. What a copy reads outside
    /// is zero, and what it would write there is dropped.
    ///
    /// # Errors
    /// An address or stride that is not a multiple of 16 bytes, sizes that the driver does not take.
    pub(super) fn new<const N: usize>(
        address: u64,
        dims: [usize; N],
        strides: &[usize],
        rows: usize,
    ) -> Result<Self> {
        let dims = dims.map(|n| n as u64);
        let bytes: Vec<u64> = strides.iter().map(|n| 2 * *n as u64).collect();
        let (mut boxes, ones) = ([1u32; N], [1u32; N]);
        if N < 2 || bytes.len() != N - 1 {
            bail!("a map of {N} dimensions and {} strides", bytes.len());
        }
        (boxes[0], boxes[1]) = (BOX as u32, rows as u32);
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        // SAFETY: the arrays are as long as the rank says, and are read before the call returns.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &raw mut map,
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                N as u32,
                address as *mut _,
                dims.as_ptr(),
                bytes.as_ptr(),
                boxes.as_ptr(),
                ones.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .w()?;
        Ok(Self(map.opaque))
    }
}
