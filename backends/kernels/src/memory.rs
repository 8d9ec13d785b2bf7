//! How much of a device's memory tensors take.

use candle_core::{DType, Device, Result, Shape, Tensor};

/// Bytes that tensors on `device` took at most at once since the last [`reset_peak_memory`], as the allocator counts
/// them: what libraries take for themselves is not in it. `None` on devices that do not count.
///
/// # Errors
/// Any of the driver.
pub fn peak_memory(device: &Device) -> Result<Option<u64>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(dev) => crate::cuda::memory::peak(dev).map(Some),
        _ => Ok(None),
    }
}

/// Waits for the device and starts [`peak_memory`] anew, at what is held now.
///
/// # Errors
/// Any of the driver.
pub fn reset_peak_memory(device: &Device) -> Result<()> {
    device.synchronize()?;
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(dev) => crate::cuda::memory::reset_peak(dev),
        _ => Ok(()),
    }
}

/// A tensor to be written before it is read: on a GPU its elements are whatever the memory held, NaN included.
///
/// # Errors
/// Memory that cannot be had.
pub fn unwritten(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
    let shape = shape.into();
    match (device, dtype) {
        #[cfg(feature = "cuda")]
        (Device::Cuda(dev), DType::BF16) => crate::cuda::unwritten::<half::bf16>(shape, dev),
        #[cfg(feature = "cuda")]
        (Device::Cuda(dev), DType::F32) => crate::cuda::unwritten::<f32>(shape, dev),
        _ => Tensor::zeros(shape, dtype, device),
    }
}

/// Keeps memory that tensors gave back for the next ones, instead of returning it to the driver or the system, which costs
/// new mappings each time: on a CPU an eighth of the time of an encoder in bf16. Of no effect on a CPU with another C library
/// than glibc, whose `malloc_trim` gives everything back at once.
///
/// # Errors
/// Any of the driver.
pub fn keep_freed_memory(device: &Device) -> Result<()> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(dev) => crate::cuda::memory::keep_freed(dev),
        Device::Cpu => {
            keep_in_heap();
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Blocks of up to 32 MiB, the most that glibc allows for this, come from the heap, which is not made smaller.
fn keep_in_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes two integers, and any thread may call it at any time.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_does_not_count() {
        reset_peak_memory(&Device::Cpu).unwrap();
        keep_freed_memory(&Device::Cpu).unwrap();
        assert_eq!(peak_memory(&Device::Cpu).unwrap(), None);
    }
}
