//! Products that end in GELU or its derivative, on GPUs of compute capability 9.0.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DeviceRepr, PushKernelArg, sys};
use candle_core::{Result, bail};

use super::{Context, Mat};
use crate::cuda::hopper::{self, TensorMap};
use crate::cuda::{Module, alloc, grid, int, launch};

const PRODUCT: Module = Module { name: "product_gelu", source: include_str!("product.cu") };
/// Rows and columns of a tile, and how it is copied: constants of the source.
const TILE: (usize, usize) = (192, 128);
const STAGES: usize = 5;
/// Bytes of 64 rows of a box.
const BOX: usize = 64 * 128;
const THREADS: u32 = 384;

/// The derivatives of GELU at the elements of a matrix, in steps of 1/201 (wrong by 0.0025 at most, where bf16 rounds numbers just below 1 by up
/// to 0.002), in the order in which the kernels hold them: a half of the memory that the elements themselves take.
pub(super) struct Slopes {
    data: CudaSlice<u8>,
    size: (usize, usize),
}

/// What a product leaves beside the activations.
#[derive(Clone, Copy)]
pub(super) enum Beside<'a> {
    Nothing,
    /// The rounded values before the activation, which are then what is activated.
    Before(Mat),
    Slopes(&'a Slopes),
}

/// `Product` of the kernel source.
#[repr(C)]
#[derive(Clone, Copy)]
struct Sizes([i32; 4]);

// SAFETY: `repr(C)`, only numbers, in the order of the struct in the kernel source.
unsafe impl DeviceRepr for Sizes {}

/// Rows and columns of tiles.
fn tiles(rows: usize, cols: usize) -> (usize, usize) {
    (rows.div_ceil(TILE.0), cols.div_ceil(TILE.1))
}

impl Context {
    fn processors(&self) -> Result<usize> {
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        Ok(usize::try_from(self.stream.context().attribute(attribute).w()?).unwrap_or(0))
    }

    /// Whether such products into matrices of that size can be made: not where the device lacks them or has more multiprocessors
    /// than there are tiles.
    pub(super) fn has_product_gelu(&self, rows: usize, cols: usize) -> Result<bool> {
        let (m, n) = tiles(rows, cols);
        Ok(hopper::is_hopper(&self.dev)? && m * n >= self.processors()?)
    }

    /// Room for the derivatives at the elements of a matrix.
    pub(super) fn slopes(&self, rows: usize, cols: usize) -> Result<Slopes> {
        let (m, n) = tiles(rows, cols);
        Ok(Slopes { data: alloc(&self.dev, m * TILE.0 * n * TILE.1)?, size: (rows, cols) })
    }

    /// `y = gelu(a b^T + bias)` in bf16, where `bias` is the address of a row or 0.
    pub(super) fn product_gelu(
        &self,
        (y, beside): (Mat, Beside<'_>),
        a: Mat,
        b: Mat,
        bias: u64,
    ) -> Result<()> {
        let (before, slopes, variant) = match beside {
            Beside::Nothing => (y, None, ""),
            Beside::Before(before) => (before, None, "_before"),
            Beside::Slopes(slopes) => (y, Some(slopes), "_slopes"),
        };
        let size = (a.rows, b.rows);
        if b.cols != a.cols || (before.rows, before.cols) != size {
            bail!("product of {}x{} and {}x{}", a.rows, a.cols, b.rows, b.cols);
        }
        self.run((y, before), a, (b, TILE.1), bias, slopes, variant)
    }

    /// `y = a b`, element by element times derivatives.
    pub(super) fn product_by_slopes(&self, y: Mat, a: Mat, b: Mat, slopes: &Slopes) -> Result<()> {
        if b.rows != a.cols || b.cols != y.cols {
            bail!("product of {}x{} and {}x{} into {} columns", a.rows, a.cols, b.rows, b.cols, y.cols);
        }
        self.run((y, y), a, (b, 64), 0, Some(slopes), "_backward")
    }

    /// `b` is copied in boxes of that many rows.
    fn run(
        &self,
        (y, before): (Mat, Mat),
        a: Mat,
        (b, b_rows): (Mat, usize),
        bias: u64,
        slopes: Option<&Slopes>,
        variant: &str,
    ) -> Result<()> {
        let ((rows, columns), size) = (tiles(y.rows, y.cols), (y.rows, y.cols));
        if a.rows != y.rows
            || slopes.is_some_and(|s| s.size != size)
            || !self.has_product_gelu(size.0, size.1)?
        {
            bail!("a product of {} rows into {}x{} does not fit the kernel", a.rows, size.0, size.1);
        }
        let map = |x: Mat, rows| TensorMap::new(x.address, [x.cols, x.rows], &[x.stride], rows);
        let (ma, mb, my, mbefore) = (map(a, TILE.0)?, map(b, b_rows)?, map(y, 64)?, map(before, 64)?);
        let definitions = format!(
            "constexpr bool BEFORE = {}, SLOPES = {}, BACKWARD = {};\n",
            variant == "_before",
            variant == "_slopes",
            variant == "_backward"
        );
        let f = hopper::function(&self.dev, PRODUCT, variant, &definitions, "product_gelu")?;
        let shared = STAGES * (TILE.0 + TILE.1) / 64 * BOX + 2 * BOX + 16 * STAGES;
        f.allow_shared(shared)?;
        let sizes = Sizes([int(y.cols)?, int(a.cols)?, int(rows)?, int(columns)?]);
        let slopes = slopes.map_or(0, |s| self.address(&s.data));
        let mut args = f.builder();
        args.arg(&ma).arg(&mb).arg(&my).arg(&mbefore).arg(&bias).arg(&slopes).arg(&sizes);
        launch(&mut args, grid((self.processors()?, 1, 1), (THREADS, 1), shared))
    }
}
