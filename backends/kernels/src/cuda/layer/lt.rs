//! Products that add a bias, or a matrix that is not the one they write to.
//!
//! cuBLASLt adds both where it writes its sums, in float32 and without a pass over memory of its own.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::cublaslt::result::{self, CublasError};
use candle_core::cuda_backend::cudarc::cublaslt::sys;
use candle_core::{Error, Result, bail};

use super::{Context, Mat};

/// Bytes that all addresses are multiples of.
const ALIGNMENT: u32 = 16;

/// What cuBLASLt's choice of a kernel depends on: `[m, n, k]`, the strides of the three or four matrices, whether there
/// is a bias and something to add, and the device.
type Key = [usize; 9];

/// The library's handle, which is good for every stream of one device.
#[derive(Clone, Copy)]
struct Handle(sys::cublasLtHandle_t);

// SAFETY: the library allows calls with one handle from several threads.
unsafe impl Send for Handle {}

/// The library's errors as candle's.
trait Checked<T> {
    fn checked(self) -> Result<T>;
}

impl<T> Checked<T> for std::result::Result<T, CublasError> {
    fn checked(self) -> Result<T> {
        self.map_err(|e| Error::Msg(format!("cublasLt: {e}")))
    }
}

/// Descriptions that are destroyed when they are no longer needed.
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    /// Of a row-major matrix, which the library takes for its transpose by columns.
    fn new(m: Mat) -> Result<Self> {
        let (rows, cols, stride) = (m.cols as u64, m.rows as u64, m.stride as i64);
        Ok(Self(result::create_matrix_layout(sys::cudaDataType::CUDA_R_16BF, rows, cols, stride).checked()?))
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made by `new` and destroyed once. There is nothing to be done about a failure.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

struct Product(sys::cublasLtMatmulDesc_t);

impl Product {
    fn new() -> Result<Self> {
        let (compute, scale) = (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F);
        Ok(Self(result::create_matmul_desc(compute, scale).checked()?))
    }

    fn set<T>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<()> {
        let value_of = std::ptr::from_ref(value).cast::<c_void>();
        // SAFETY: the callers pass each attribute a value of its documented type, which is copied.
        unsafe { result::set_matmul_desc_attribute(self.0, attribute, value_of, size_of::<T>()) }.checked()
    }
}

impl Drop for Product {
    fn drop(&mut self) {
        // SAFETY: as for layouts.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    /// Kernels without memory of their own, for matrices that start at multiples of [`ALIGNMENT`].
    fn new() -> Result<Self> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let own = Self(result::create_matmul_pref().checked()?);
        let set = |attribute, value: *const c_void, bytes| {
            // SAFETY: the values below are of the attributes' documented types and are copied.
            unsafe { result::set_matmul_pref_attribute(own.0, attribute, value, bytes) }.checked()
        };
        let none = 0u64;
        let bytes = size_of::<u64>();
        set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::ptr::from_ref(&none).cast(), bytes)?;
        for attribute in [
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            set(attribute, std::ptr::from_ref(&ALIGNMENT).cast(), size_of::<u32>())?;
        }
        Ok(own)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: as for layouts.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

/// The handle of a device, made once.
fn handle(ctx: &Context) -> Result<Handle> {
    static HANDLES: Mutex<BTreeMap<usize, Handle>> = Mutex::new(BTreeMap::new());
    let context = ctx.stream.context();
    let mut handles = HANDLES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(handle) = handles.get(&context.ordinal()) {
        return Ok(*handle);
    }
    // It belongs to the device that is current.
    context.bind_to_thread().w()?;
    let new = Handle(result::create_handle().checked()?);
    handles.insert(context.ordinal(), new);
    Ok(new)
}

impl Context {
    /// `d = a b^T + bias + c` in bf16, where `bias` is the address of a row or 0.
    pub(super) fn product_onto(&self, d: Mat, a: Mat, b: Mat, bias: u64, c: Option<Mat>) -> Result<()> {
        static CHOSEN: Mutex<BTreeMap<Key, sys::cublasLtMatmulAlgo_t>> = Mutex::new(BTreeMap::new());
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let (m, n, k) = (a.rows, b.rows, a.cols);
        let same = |c: &Mat| (c.rows, c.cols) == (m, n);
        if b.cols != k || !same(&d) || c.is_some_and(|c| !same(&c)) {
            bail!("product of {m}x{k} and {n}x{} into {}x{} ({c:?})", b.cols, d.rows, d.cols);
        }
        // The transposed product, d^T = b a^T: what is `a` here comes second.
        let product = Product::new()?;
        product.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &1i32)?;
        if bias != 0 {
            product.set(
                Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE,
                &sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS,
            )?;
            product.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        let onto = c.unwrap_or(d);
        let (la, lb, lc, ld) = (Layout::new(b)?, Layout::new(a)?, Layout::new(onto)?, Layout::new(d)?);
        let device = self.stream.context().ordinal();
        let kinds = usize::from(bias != 0) + 2 * usize::from(c.is_some());
        let key = [m, n, k, a.stride, b.stride, d.stride, onto.stride, kinds, device];
        let library = handle(self)?;
        let chosen = CHOSEN.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied();
        let algorithm = match chosen {
            Some(algorithm) => algorithm,
            None => {
                let preference = Preference::new()?;
                // SAFETY: everything was made above and lives until the end of this call.
                let found = unsafe {
                    result::get_matmul_algo_heuristic(
                        library.0,
                        product.0,
                        la.0,
                        lb.0,
                        lc.0,
                        ld.0,
                        preference.0,
                    )
                }
                .checked()?
                .algo;
                CHOSEN.lock().unwrap_or_else(PoisonError::into_inner).insert(key, found);
                found
            }
        };
        let (one, beta) = (1f32, if c.is_some() { 1f32 } else { 0. });
        let pointer = |x: &f32| std::ptr::from_ref(x).cast::<c_void>();
        // SAFETY: shapes were compared above, every matrix lies inside memory that its owner keeps until the work is
        // queued, and the factors are read before the call returns (the pointer mode is the host's).
        unsafe {
            result::matmul(
                library.0,
                product.0,
                pointer(&one),
                pointer(&beta),
                b.address as *const c_void,
                la.0,
                a.address as *const c_void,
                lb.0,
                onto.address as *const c_void,
                lc.0,
                d.address as *mut c_void,
                ld.0,
                &raw const algorithm,
                std::ptr::null_mut(),
                0,
                self.stream.cu_stream().cast(),
            )
        }
        .checked()
    }
}
