//! The most memory that something took.

/// Counts from a reset on.
pub trait PeakMemory {
    /// Forgets the peak so far.
    fn reset(&mut self);

    /// The peak in bytes since then, where it can be told.
    fn peak(&mut self) -> Option<u64>;
}

/// The process's resident memory, as Linux counts it; nothing elsewhere.
#[derive(Debug, Default)]
pub struct ResidentMemory {
    was_reset: bool,
}

impl PeakMemory for ResidentMemory {
    fn reset(&mut self) {
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
