//! A product that ends in its activation, on GPUs of compute capability 9.0.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{DeviceRepr, PushKernelArg, sys};
use candle_core::{Result, bail};

use super::{Context, Mat};
use crate::cuda::hopper::{self, TensorMap};
use crate::cuda::{Module, grid, int, launch};

const PRODUCT: Module = Module { name: "product_gelu", source: include_str!("product.cu") };
/// Rows and columns of a tile, and how it is copied: constants of the source.
const TILE: (usize, usize) = (192, 128);
const STAGES: usize = 5;
/// Bytes of 64 rows of a box.
const BOX: usize = 64 * 128;
const THREADS: u32 = 384;

/// `Product` of the kernel source.
#[repr(C)]
#[derive(Clone, Copy)]
struct Sizes([i32; 4]);

// SAFETY: `repr(C)`, only numbers, in the order of the struct in the kernel source.
unsafe impl DeviceRepr for Sizes {}

impl Context {
    /// `y = gelu(a b^T + bias)` in bf16, where `bias` is the address of a row or 0, with the rounded value before the activation in
    /// `before`, which is then what is activated. False, and nothing done, where the device lacks it or has more
    /// multiprocessors than there are tiles.
    pub(super) fn product_gelu(
        &self,
        (y, before): (Mat, Option<Mat>),
        a: Mat,
        b: Mat,
        bias: u64,
    ) -> Result<bool> {
        let (m, n, k) = (a.rows, b.rows, a.cols);
        let fits = |d: &Mat| (d.rows, d.cols) == (m, n);
        if b.cols != k || !fits(&y) || !before.as_ref().is_none_or(fits) {
            bail!("product of {m}x{k} and {n}x{} into {}x{}", b.cols, y.rows, y.cols);
        }
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let processors = usize::try_from(self.stream.context().attribute(attribute).w()?).unwrap_or(0);
        let (rows, columns) = (m.div_ceil(TILE.0), n.div_ceil(TILE.1));
        if !hopper::is_hopper(&self.dev)? || rows * columns < processors {
            return Ok(false);
        }
        let map = |x: Mat, rows| TensorMap::new(x.address, [x.cols, x.rows], &[x.stride], rows);
        let (ma, mb, my) = (map(a, TILE.0)?, map(b, TILE.1)?, map(y, 64)?);
        let mbefore = map(before.unwrap_or(y), 64)?;
        let variant = if before.is_some() { "_before" } else { "" };
        let definitions = format!("constexpr bool BEFORE = {};\n", before.is_some());
        let f = hopper::function(&self.dev, PRODUCT, variant, &definitions, "product_gelu")?;
        let shared = STAGES * (TILE.0 + TILE.1) / 64 * BOX + 2 * BOX + 16 * STAGES;
        f.allow_shared(shared)?;
        let sizes = Sizes([int(n)?, int(k)?, int(rows)?, int(columns)?]);
        let mut args = f.builder();
        args.arg(&ma).arg(&mb).arg(&my).arg(&mbefore).arg(&bias).arg(&sizes);
        launch(&mut args, grid((processors, 1, 1), (THREADS, 1), shared))?;
        Ok(true)
    }
}
