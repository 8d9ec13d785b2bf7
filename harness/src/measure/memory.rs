//! The most memory that something took.

use crate::failure::Result;
use e2llm_backend::{BackendError, Device};
use e2llm_kernels::{peak_memory, reset_peak_memory};
use e2llm_lm::open_device;

/// Counts from a reset on.
pub trait PeakMemory {
    /// Forgets the peak so far.
    fn reset(&mut self);

    /// The peak in bytes since then, where it can be told.
    fn peak(&mut self) -> Option<u64>;
}

/// What counts the memory of a backend on a device: its tensors on a GPU, the whole process on the CPU.
///
/// # Errors
/// A device that cannot be used.
pub fn memory_of(device: Device) -> Result<Box<dyn PeakMemory>> {
    Ok(match device {
        Device::Cpu => Box::new(ResidentMemory::default()),
        Device::Cuda(_) => Box::new(DeviceMemory::new(device)?),
    })
}

/// The process's resident memory, as Linux counts it; nothing elsewhere.
#[derive(Debug, Default)]
pub struct ResidentMemory {
    was_reset: bool,
}

impl PeakMemory for ResidentMemory {
    fn reset(&mut self) {
        give_back_freed();
        // 5 resets the high-water mark: proc_pid_clear_refs(5)
        self.was_reset = std::fs::write("/proc/self/clear_refs", "5").is_ok();
    }

    fn peak(&mut self) -> Option<u64> {
        // a peak of the whole process's life would be taken for this measurement's
        if !self.was_reset {
            return None;
        }
        high_water_mark(&std::fs::read_to_string("/proc/self/status").ok()?)
    }
}

/// Gives the system what was freed, which is else counted with what is taken next; only glibc is asked.
fn give_back_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes no pointer, and any thread may call it at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// What all tensors on a GPU take together, weights included, as its memory pool counts it.
pub struct DeviceMemory {
    device: candle_core::Device,
    was_reset: bool,
}

impl DeviceMemory {
    /// The memory of a device.
    ///
    /// # Errors
    /// A device that cannot be used.
    pub fn new(device: Device) -> Result<Self> {
        let device = open_device(device).map_err(BackendError::from)?;
        Ok(Self { device, was_reset: false })
    }
}

impl PeakMemory for DeviceMemory {
    fn reset(&mut self) {
        self.was_reset = reset_peak_memory(&self.device).is_ok();
    }

    fn peak(&mut self) -> Option<u64> {
        if self.was_reset { peak_memory(&self.device).ok().flatten() } else { None }
    }
}

/// `VmHWM` of a `/proc/<pid>/status`, in bytes.
fn high_water_mark(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_is_read_and_only_after_a_reset() {
        assert_eq!(high_water_mark("VmPeak:\t 9 kB\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\n"), Some(2 << 20));
        assert_eq!(high_water_mark("VmRSS: 1 kB"), None);
        assert_eq!(ResidentMemory::default().peak(), None);
    }

    #[test]
    fn what_is_allocated_is_seen_and_forgotten_again() {
        const SIZE: usize = 64 << 20;
        let mut memory = ResidentMemory::default();
        memory.reset();
        let Some(before) = memory.peak() else {
            eprintln!("SKIPPED: this system does not tell the peak of resident memory");
            return;
        };
        let block = std::hint::black_box(vec![1u8; SIZE]);
        let during = memory.peak().unwrap();
        drop(block);
        memory.reset();
        let after = memory.peak().unwrap();
        assert!(during >= before + SIZE as u64 / 2, "{before} {during}");
        assert!(after < during, "{during} {after}");
    }
}
