//! Whole layers in bf16: one node of the graph each, with a backward pass that calls products and kernels directly.

mod attention;
mod biased;
mod cached;
mod choice;
mod decoder;
mod embed;
mod encoder;
mod gelu_product;
mod group;
mod head;
mod lt;
mod ops;
mod scores;
mod shifted;
mod stack;
mod steps;

pub(crate) use biased::biased_product;
pub use cached::{CachedLayer, CachedPass, Cross, Plain, Positions, Rolling, Span};
pub use choice::likeliest;
pub use embed::embed_norm;
pub(crate) use head::head_loss;
pub use scores::float_scores;
pub use steps::{GreedySteps, StepModel};

use std::ffi::c_void;
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::cublas::{CudaBlas, result::gemm_ex, sys};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use candle_core::cuda_backend::{CudaDType, WrapErr};
use candle_core::{CudaDevice, DType, Device, Result, Shape, Tensor, bail};
use half::bf16;

use super::{Module, alloc, gpu, int, tensor};

const LAYER: Module = Module { name: "layer", source: include_str!("layer.cu") };

/// Elements that widths, strides and addresses are multiples of: one 16-byte access.
pub(super) const PACK: usize = 8;

/// A device and what work is given to it with.
///
/// Everything goes to one stream in order, so memory may be released as soon as the work that uses it is queued.
struct Context {
    dev: CudaDevice,
    stream: Arc<CudaStream>,
    blas: Arc<CudaBlas>,
}

/// A row-major matrix somewhere in device memory.
#[derive(Clone, Copy, Debug)]
struct Mat {
    address: u64,
    rows: usize,
    cols: usize,
    stride: usize,
}

impl Mat {
    /// Columns `from .. from + cols` of bf16 elements.
    fn columns(self, from: usize, cols: usize) -> Self {
        Self { address: self.address + 2 * from as u64, cols, ..self }
    }

    /// Rows `from .. from + rows` of bf16 elements.
    fn part(self, from: usize, rows: usize) -> Self {
        Self { address: self.address + 2 * (from * self.stride) as u64, rows, ..self }
    }
}

/// A bf16 matrix that owns its memory.
struct Buffer {
    data: CudaSlice<bf16>,
    mat: Mat,
}

impl Buffer {
    /// The first columns.
    fn first(&self, cols: usize) -> Mat {
        Mat { cols, ..self.mat }
    }

    fn into_tensor(self, shape: impl Into<Shape>, ctx: &Context) -> Tensor {
        tensor(self.data, shape, &ctx.dev)
    }
}

impl Context {
    fn new(device: &Device) -> Result<Self> {
        let Device::Cuda(dev) = device else { bail!("a layer of the gpu got tensors of another device") };
        Ok(Self { dev: dev.clone(), stream: dev.cuda_stream(), blas: dev.cublas_handle() })
    }

    fn address<T>(&self, data: &CudaSlice<T>) -> u64 {
        data.device_ptr(&self.stream).0
    }

    /// The address of a contiguous tensor's first element.
    fn input<T: CudaDType>(&self, t: &Tensor) -> Result<u64> {
        let (storage, layout) = t.storage_and_layout();
        if !layout.is_contiguous() {
            bail!("tensor of shape {:?} is not contiguous", t.shape());
        }
        let base = self.address(gpu(&storage)?.as_cuda_slice::<T>()?);
        Ok(base + (layout.start_offset() * size_of::<T>()) as u64)
    }

    /// A contiguous bf16 tensor as a matrix whose rows are its last dimension.
    fn matrix(&self, t: &Tensor) -> Result<Mat> {
        let cols = t.dim(candle_core::D::Minus1)?;
        let address = self.input::<bf16>(t)?;
        if address % 16 != 0 || cols % PACK != 0 {
            bail!("a layer's tensor of shape {:?} does not start and end on a 16-byte boundary", t.shape());
        }
        Ok(Mat { address, rows: t.elem_count() / cols.max(1), cols, stride: cols })
    }

    fn buffer(&self, rows: usize, cols: usize) -> Result<Buffer> {
        let data = alloc::<bf16>(&self.dev, rows * cols)?;
        let mat = Mat { address: self.address(&data), rows, cols, stride: cols };
        Ok(Buffer { data, mat })
    }

    fn floats(&self, rows: usize, cols: usize) -> Result<(CudaSlice<f32>, Mat)> {
        let data = alloc::<f32>(&self.dev, rows * cols)?;
        let mat = Mat { address: self.address(&data), rows, cols, stride: cols };
        Ok((data, mat))
    }

    /// `c = alpha op(a) op(b) + beta c` for bf16 `a` and `b` and `c` of type `out`, summed in float32; `op` transposes
    /// where its flag is set.
    fn product(&self, c: (Mat, DType), a: (Mat, bool), b: (Mat, bool), alpha: f32, beta: f32) -> Result<()> {
        let ((c, out), (a, at), (b, bt)) = (c, a, b);
        let (m, k) = if at { (a.cols, a.rows) } else { (a.rows, a.cols) };
        let (k2, n) = if bt { (b.cols, b.rows) } else { (b.rows, b.cols) };
        if k != k2 || c.rows != m || c.cols != n {
            bail!("product of {m}x{k} and {k2}x{n} into {}x{}", c.rows, c.cols);
        }
        let ctype =
            if out == DType::F32 { sys::cudaDataType::CUDA_R_32F } else { sys::cudaDataType::CUDA_R_16BF };
        let op =
            |t| if t { sys::cublasOperation_t::CUBLAS_OP_T } else { sys::cublasOperation_t::CUBLAS_OP_N };
        let bf = sys::cudaDataType::CUDA_R_16BF;
        let pointer = |x: &f32| std::ptr::from_ref(x).cast::<c_void>();
        // cuBLAS counts by columns: it is given the transposed product.
        // SAFETY: shapes were compared above, every matrix lies inside memory that its owner keeps until the work is
        // queued, and the factors are read before the call returns (the handle's pointer mode is the host's).
        unsafe {
            gemm_ex(
                *self.blas.handle(),
                op(bt),
                op(at),
                int(n)?,
                int(m)?,
                int(k)?,
                pointer(&alpha),
                b.address as *const c_void,
                bf,
                int(b.stride)?,
                a.address as *const c_void,
                bf,
                int(a.stride)?,
                pointer(&beta),
                c.address as *mut c_void,
                ctype,
                int(c.stride)?,
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT_TENSOR_OP,
            )
        }
        .w()
    }
}
