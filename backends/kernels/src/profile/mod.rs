//! Where the time of a computation goes, by kind of operation.
//!
//! Operations of the CPU are done when their call returns, so a clock around each call ([`timer`]) tells the truth. A GPU's
//! are not: it is asked itself ([`traced`]). While nobody measures, an operation pays for reading one flag.

mod trace;

pub use trace::{GpuTime, Span, traced};

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Matrix products, with their bias and LoRA.
    Product,
    /// Attention: scores, softmax, weighted values.
    Attention,
    /// Layer and RMS norms.
    Norm,
    /// Activations and rotary positions.
    Elementwise,
}

impl Kind {
    /// All, in the order of [`stop`].
    pub const ALL: [Self; 4] = [Self::Product, Self::Attention, Self::Norm, Self::Elementwise];

    /// Its name in a profile.
    pub fn name(self) -> &'static str {
        match self {
            Self::Product => "product",
            Self::Attention => "attention",
            Self::Norm => "norm",
            Self::Elementwise => "elementwise",
        }
    }
}

static MEASURING: AtomicBool = AtomicBool::new(false);
static NANOSECONDS: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

thread_local! {
    /// Whether an operation of this thread is being measured: those it is made of belong to it.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Begins to measure, from nothing.
pub fn start() {
    NANOSECONDS.iter().for_each(|n| n.store(0, Ordering::Relaxed));
    MEASURING.store(true, Ordering::Relaxed);
}

/// Ends it and tells the time of each kind since [`start`], of all threads that called operations.
pub fn stop() -> [(Kind, Duration); 4] {
    MEASURING.store(false, Ordering::Relaxed);
    Kind::ALL.map(|kind| (kind, Duration::from_nanos(NANOSECONDS[kind as usize].load(Ordering::Relaxed))))
}

/// Counts the time until it is dropped.
#[must_use]
#[derive(Debug)]
pub struct Timer(Option<(Kind, Instant)>);

/// The timer of an operation.
pub fn timer(kind: Kind) -> Timer {
    let counts = MEASURING.load(Ordering::Relaxed) && !INSIDE.replace(true);
    Timer(counts.then(|| (kind, Instant::now())))
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let Some((kind, start)) = self.0 {
            INSIDE.set(false);
            let time = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
            NANOSECONDS[kind as usize].fetch_add(time, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outermost_operation_gets_the_time_and_only_while_measuring() {
        let wait = Duration::from_millis(20);
        drop(timer(Kind::Norm));
        start();
        {
            let _outer = timer(Kind::Product);
            let _inner = timer(Kind::Attention);
            std::thread::sleep(wait);
        }
        let _other = timer(Kind::Elementwise);
        drop(_other);
        let times = stop();
        assert!(times[0].1 >= wait, "{times:?}");
        assert_eq!((times[1].1, times[2].1), (Duration::ZERO, Duration::ZERO));
        assert!(times[3].1 > Duration::ZERO && times[3].1 < wait, "{times:?}");
    }
}
