//! The CUDA forms: kernels in CUDA C, compiled by nvrtc for the device at hand the first time they are needed.
//!
//! Nothing here waits for the device except [`optimizer::sum_of_squares`], whose result is a number on the host.

pub(crate) mod attention;
pub(crate) mod cupti;
mod hopper;
pub(crate) mod layer;
pub(crate) mod loss;
pub(crate) mod memory;
pub(crate) mod optimizer;
pub(crate) mod rows;

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaSlice, CudaStream, CudaView, DeviceRepr, LaunchArgs, LaunchConfig, sys,
};
use candle_core::cuda_backend::cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use candle_core::cuda_backend::{CudaDType, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, Layout, Result, Shape, Storage, Tensor, bail};

use crate::element::Element;

/// An element type that the kernels are compiled for.
pub(crate) trait GpuElement: Element<Acc = f32> + CudaDType + DeviceRepr {
    /// The end of the names of its kernels.
    const SUFFIX: &'static str;
    /// Its name in the sources.
    const NAME: &'static str;
}

impl GpuElement for f32 {
    const SUFFIX: &'static str = "f32";
    const NAME: &'static str = "float";
}

impl GpuElement for half::bf16 {
    const SUFFIX: &'static str = "bf16";
    const NAME: &'static str = "bf16";
}

/// As [`for_dtype`](crate::element::for_dtype), for the types that GPUs are programmed for here.
macro_rules! for_gpu_dtype {
    ($op:expr, $dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $t = f32;
                $body
            }
            candle_core::DType::BF16 => {
                type $t = half::bf16;
                $body
            }
            other => {
                candle_core::bail!("{}: element type {other:?} is not supported on a gpu (f32, bf16)", $op)
            }
        }
    };
}
pub(crate) use for_gpu_dtype;

/// Sources that are compiled together, after what all of them share.
#[derive(Clone, Copy)]
pub(crate) struct Module {
    pub(crate) name: &'static str,
    pub(crate) source: &'static str,
}

const SHARED_SOURCES: [&str; 2] = [include_str!("ptx.cuh"), include_str!("common.cuh")];

/// A loaded function and the stream it is started on.
pub(crate) struct Kernel {
    function: CudaFunction,
    stream: Arc<CudaStream>,
}

impl Kernel {
    /// The list that arguments are added to before [`launch`].
    pub(crate) fn builder(&self) -> LaunchArgs<'_> {
        self.stream.launch_builder(&self.function)
    }

    /// Lets the function use more than the 48 KiB of shared memory that every GPU grants. What its source declares, at most
    /// 8 KiB, comes on top of `bytes`.
    pub(crate) fn allow_shared(&self, bytes: usize) -> Result<()> {
        if bytes > 40 * 1024 {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            self.function.set_attribute(attribute, int(bytes)?).w()?;
        }
        Ok(())
    }
}

/// Arguments of a kernel that may start before those ahead of it have ended, and waits for them by itself once it needs
/// what they write. (GPUs before compute capability 9.0 start it when they have ended.)
pub(crate) struct Early<'a> {
    kernel: &'a Kernel,
    args: Vec<*mut c_void>,
}

impl<'a> Early<'a> {
    pub(crate) fn new(kernel: &'a Kernel) -> Self {
        Self { kernel, args: Vec::with_capacity(16) }
    }

    pub(crate) fn arg<T: DeviceRepr>(&mut self, arg: &'a T) -> &mut Self {
        self.args.push(std::ptr::from_ref(arg).cast_mut().cast());
        self
    }

    /// Starts the kernel, whose arguments have been given in the order and types of its definition.
    pub(crate) fn launch(&mut self, config: LaunchConfig) -> Result<()> {
        let stream = &self.kernel.stream;
        stream.context().bind_to_thread().w()?;
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let early = stream.context().compute_capability().w()?.0 >= 9;
        let config = sys::CUlaunchConfig {
            gridDimX: config.grid_dim.0,
            gridDimY: config.grid_dim.1,
            gridDimZ: config.grid_dim.2,
            blockDimX: config.block_dim.0,
            blockDimY: config.block_dim.1,
            blockDimZ: config.block_dim.2,
            sharedMemBytes: config.shared_mem_bytes,
            hStream: stream.cu_stream(),
            attrs: &raw mut attribute,
            numAttrs: u32::from(early),
        };
        let (function, args) = (self.kernel.function.cu_function(), self.args.as_mut_ptr());
        // SAFETY: as in `launch`; the configuration and its attribute live until the call returns.
        unsafe { sys::cuLaunchKernelEx(&raw const config, function, args, std::ptr::null_mut()) }.result().w()
    }
}

/// The kernel `name` for element type `T`.
pub(crate) fn kernel<T: GpuElement>(dev: &CudaDevice, module: Module, name: &str) -> Result<Kernel> {
    function(dev, module, "", "", &format!("{name}_{}", T::SUFFIX))
}

/// A function of a module that is compiled with `definitions` before its own source; `variant` names them.
pub(crate) fn function(
    dev: &CudaDevice,
    module: Module,
    variant: &str,
    definitions: &str,
    name: &str,
) -> Result<Kernel> {
    let [ptx, common] = SHARED_SOURCES;
    load(dev, &format!("{}{variant}", module.name), "", &[ptx, common, definitions, module.source], name)
}

/// The kernel `name` of sources that are compiled together under a key; `suffix` is that of [`compiled`].
fn load(dev: &CudaDevice, key: &str, suffix: &str, sources: &[&str], name: &str) -> Result<Kernel> {
    let key = format!("e2llm_{key}");
    let ptx = compiled(dev, &key, suffix, || sources.join("\n"))?;
    let function = dev.get_or_load_custom_func(name, &key, &ptx)?.into_cuda_function();
    Ok(Kernel { function, stream: dev.cuda_stream() })
}

/// Compiles a source for the device's architecture, once per process; with the suffix "a" for exactly that one, with
/// instructions that others lack.
fn compiled(dev: &CudaDevice, key: &str, suffix: &str, source: impl FnOnce() -> String) -> Result<Arc<str>> {
    static COMPILED: Mutex<BTreeMap<(String, i32), Arc<str>>> = Mutex::new(BTreeMap::new());
    let (major, minor) = dev.cuda_stream().context().compute_capability().w()?;
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    let arch = 10 * major + minor;
    if let Some(ptx) = compiled.get(&(key.to_string(), arch)) {
        return Ok(ptx.clone());
    }
    let options = CompileOptions {
        options: vec![format!("--gpu-architecture=compute_{arch}{suffix}"), "--std=c++17".into()],
        ..Default::default()
    };
    let ptx = match compile_ptx_with_opts(source(), options) {
        Ok(ptx) => Arc::<str>::from(ptx.to_src()),
        Err(e) => bail!("the kernels of {key} do not compile for compute capability {major}.{minor}: {e:?}"),
    };
    compiled.insert((key.to_string(), arch), ptx.clone());
    Ok(ptx)
}

/// Starts a kernel whose arguments have been given in the order and types of its definition.
pub(crate) fn launch(args: &mut LaunchArgs<'_>, config: LaunchConfig) -> Result<()> {
    // SAFETY: the callers, all in this module, pass what the kernel of that name declares: buffers whose lengths they
    // have checked against the sizes beside them, and those sizes in the declared integer types.
    unsafe { args.launch(config) }.w()?;
    Ok(())
}

/// A launch of `blocks` blocks, at least one.
pub(crate) fn blocks(blocks: usize, threads: u32) -> LaunchConfig {
    grid((blocks, 1, 1), (threads, 1), 0)
}

/// A launch that gives every thread about one of `n` units of work, with at most 16 blocks of 256 per processor of a
/// large GPU; the kernels loop over the rest.
pub(crate) fn over(n: usize) -> LaunchConfig {
    blocks(n.div_ceil(256).min(132 * 16), 256)
}

/// A launch on a grid; every extent is at least 1.
pub(crate) fn grid(blocks: (usize, usize, usize), threads: (u32, u32), shared: usize) -> LaunchConfig {
    let extent = |n: usize| u32::try_from(n.max(1)).unwrap_or(u32::MAX);
    LaunchConfig {
        grid_dim: (extent(blocks.0), extent(blocks.1), extent(blocks.2)),
        block_dim: (threads.0, threads.1, 1),
        shared_mem_bytes: u32::try_from(shared).unwrap_or(u32::MAX),
    }
}

/// A new buffer; its contents are undefined, so every kernel here writes all of its output.
pub(crate) fn alloc<T: DeviceRepr>(dev: &CudaDevice, n: usize) -> Result<CudaSlice<T>> {
    // SAFETY: see above; numbers of any bit pattern are valid.
    unsafe { dev.alloc::<T>(n) }
}

/// The elements of a contiguous tensor.
///
/// # Errors
/// If the layout is not contiguous or the element type is not `T`.
pub(crate) fn view<'a, T: CudaDType>(storage: &'a CudaStorage, layout: &Layout) -> Result<CudaView<'a, T>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(storage.as_cuda_slice::<T>()?.slice(start..end)),
        None => bail!("tensor of shape {:?} is not contiguous", layout.shape()),
    }
}

/// The storage from the first element of a tensor on, to be read with its strides.
pub(crate) fn strided<'a, T: CudaDType>(
    storage: &'a CudaStorage,
    layout: &Layout,
) -> Result<CudaView<'a, T>> {
    Ok(storage.as_cuda_slice::<T>()?.slice(layout.start_offset()..))
}

/// The CUDA form of a tensor's storage.
///
/// # Errors
/// If the tensor lives on another device.
pub(crate) fn gpu(storage: &Storage) -> Result<&CudaStorage> {
    match storage {
        Storage::Cuda(storage) => Ok(storage),
        _ => bail!("all tensors of one operation must be on the same device (expected a gpu)"),
    }
}

/// A storage that owns a buffer.
pub(crate) fn storage<T: CudaDType>(data: CudaSlice<T>, dev: &CudaDevice) -> CudaStorage {
    CudaStorage::wrap_cuda_slice(data, dev.clone())
}

/// A tensor that owns a buffer.
pub(crate) fn tensor<T: CudaDType>(data: CudaSlice<T>, shape: impl Into<Shape>, dev: &CudaDevice) -> Tensor {
    Tensor::from_storage(Storage::Cuda(storage(data, dev)), shape, BackpropOp::none(), false)
}

/// A tensor whose elements are whatever the memory held.
pub(crate) fn unwritten<T: CudaDType + DeviceRepr>(shape: Shape, dev: &CudaDevice) -> Result<Tensor> {
    let data = alloc::<T>(dev, shape.elem_count())?;
    Ok(tensor(data, shape, dev))
}

/// A size as the kernels take it.
pub(crate) fn int(n: usize) -> Result<i32> {
    i32::try_from(n)
        .map_err(|_| candle_core::Error::Msg(format!("size {n} is too large for the gpu kernels")))
}
