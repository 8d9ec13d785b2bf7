//! The driver's memory pool, which all tensors are taken from.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::result::{device, mem_pool};
use candle_core::cuda_backend::cudarc::driver::sys;
use candle_core::{CudaDevice, Result, bail};

use sys::CUmemPool_attribute_enum as Attribute;

/// The pool of a device.
fn pool(dev: &CudaDevice) -> Result<sys::CUmemoryPool> {
    let stream = dev.cuda_stream();
    let context = stream.context();
    if !context.has_async_alloc() {
        bail!("this gpu or driver has no memory pools, so its memory cannot be measured");
    }
    context.bind_to_thread().w()?;
    // SAFETY: the device is that of a living context.
    unsafe { device::get_mem_pool(context.cu_device()) }.w()
}

fn set(dev: &CudaDevice, attribute: Attribute, mut value: u64) -> Result<()> {
    let pool = pool(dev)?;
    // SAFETY: the pool lives as long as its device, and the attributes set here are 64-bit numbers.
    unsafe { mem_pool::set_attribute(pool, attribute, std::ptr::from_mut(&mut value).cast()) }.w()
}

pub(crate) fn peak(dev: &CudaDevice) -> Result<u64> {
    let (pool, mut value) = (pool(dev)?, 0u64);
    let attribute = Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
    // SAFETY: as in `set`.
    unsafe { mem_pool::get_attribute(pool, attribute, std::ptr::from_mut(&mut value).cast()) }.w()?;
    Ok(value)
}

/// The driver takes only 0 for this, and means what is held now.
pub(crate) fn reset_peak(dev: &CudaDevice) -> Result<()> {
    set(dev, Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, 0)
}

pub(crate) fn keep_freed(dev: &CudaDevice) -> Result<()> {
    if !dev.cuda_stream().context().has_async_alloc() {
        return Ok(());
    }
    set(dev, Attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, u64::MAX)
}
