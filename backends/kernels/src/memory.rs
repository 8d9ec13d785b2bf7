//! How much of a device's memory tensors take.

use candle_core::{Device, Result};

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

/// Keeps memory that tensors gave back for the next ones, instead of returning it to the driver whenever the device
/// is waited for, which costs a new mapping each time. Of no effect on devices without such a pool.
///
/// # Errors
/// Any of the driver.
pub fn keep_freed_memory(device: &Device) -> Result<()> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(dev) => crate::cuda::memory::keep_freed(dev),
        _ => Ok(()),
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
