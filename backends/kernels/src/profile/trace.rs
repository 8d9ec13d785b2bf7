//! What a GPU did and when, and what that says.

use super::Kind;
use candle_core::{Device, Result};
use std::collections::BTreeMap;
use std::time::Duration;

/// One kernel, copy or fill on a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The kernel's name, or `memcpy` or `memset`.
    pub name: String,
    /// When it began, in nanoseconds of the GPU's clock.
    pub start: u64,
    /// When it ended.
    pub end: u64,
}

/// All spans of `work`, which is waited for, in the order of their beginnings; `None` on devices that do nothing of their
/// own. They are what CUPTI records, the library of NVIDIA's profilers, which is looked for when this is called.
///
/// # Errors
/// No CUPTI; failures of it or of the device.
pub fn traced<T>(device: &Device, work: impl FnOnce() -> T) -> Result<(T, Option<Vec<Span>>)> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => {
            device.synchronize()?;
            let trace = crate::cuda::cupti::Trace::start()?;
            let done = work();
            device.synchronize()?;
            let mut spans = trace.finish()?;
            spans.sort_by_key(|s| s.start);
            Ok((done, Some(spans)))
        }
        _ => Ok((work(), None)),
    }
}

/// Where a GPU's time went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GpuTime {
    /// By kind, in the order of [`Kind::ALL`]; what is neither product, attention nor norm is element-wise.
    pub kinds: [Duration; 4],
    /// Copies and fills of memory.
    pub copies: Duration,
    /// Time without any work between the first and the last.
    pub gaps: Duration,
    /// From the beginning of the first to the end of the last.
    pub span: Duration,
    /// Time and number by name, longest first.
    pub names: Vec<(String, Duration, usize)>,
}

impl GpuTime {
    /// Adds up spans in the order of their beginnings.
    pub fn of(spans: &[Span]) -> Self {
        let mut sum = Self::default();
        let mut names = BTreeMap::<&str, (Duration, usize)>::new();
        let first = spans.first().map_or(0, |s| s.start);
        let mut reached = first;
        for span in spans {
            let time = Duration::from_nanos(span.end.saturating_sub(span.start));
            match kind(&span.name) {
                Some(kind) => sum.kinds[kind as usize] += time,
                None => sum.copies += time,
            }
            let named = names.entry(&span.name).or_default();
            *named = (named.0 + time, named.1 + 1);
            sum.gaps += Duration::from_nanos(span.start.saturating_sub(reached));
            reached = reached.max(span.end);
        }
        sum.span = Duration::from_nanos(reached - first);
        sum.names = names.into_iter().map(|(name, (time, n))| (name.to_owned(), time, n)).collect();
        sum.names.sort_by_key(|(_, time, _)| std::cmp::Reverse(*time));
        sum
    }
}

/// By the names of kernels: our own, candle's and those of NVIDIA's libraries. `None` for copies and fills.
fn kind(name: &str) -> Option<Kind> {
    const PRODUCTS: [&str; 9] =
        ["gemm", "gemv", "nvjet", "cutlass", "splitk", "product", "attend_in", "gate_up", "assemble"];
    let name = name.to_lowercase();
    let has = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
    Some(match () {
        () if name.starts_with("memcpy") || name.starts_with("memset") => return None,
        () if has(&PRODUCTS) => Kind::Product,
        () if has(&["attention", "flash"]) => Kind::Attention,
        () if has(&["norm"]) => Kind::Norm,
        () => Kind::Elementwise,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_by_kind_and_what_overlaps_is_no_gap() {
        let span = |name: &str, start, end| Span { name: name.into(), start, end };
        let spans = [
            span("nvjet_sm90_tst_128x256_64x4", 100, 150),
            span("attention_forward", 160, 200),
            span("norm_4", 190, 220),
            span("gelu_rows", 220, 230),
            span("memset", 250, 260),
            span("norm_4", 260, 270),
        ];
        let sum = GpuTime::of(&spans);
        let ns = |d: Duration| d.as_nanos();
        assert_eq!(sum.kinds.map(ns), [50, 40, 40, 10]);
        assert_eq!((ns(sum.copies), ns(sum.gaps), ns(sum.span)), (10, 30, 170));
        assert_eq!(sum.names[0], ("nvjet_sm90_tst_128x256_64x4".into(), Duration::from_nanos(50), 1));
        assert!(sum.names.contains(&("norm_4".into(), Duration::from_nanos(40), 2)));
        assert_eq!(GpuTime::of(&[]), GpuTime::default());
    }

    #[test]
    fn the_cpu_has_no_trace() {
        let (done, spans) = traced(&Device::Cpu, || 7).unwrap();
        assert_eq!((done, spans), (7, None));
    }
}
