//! Clock, memory and the rows that come of them.

use super::{Bench, BenchSettings};
use crate::Result;
use candle_core::Device;
use e2llm_kernels::profile::{self, GpuTime, Kind};
use e2llm_kernels::{peak_memory, reset_peak_memory};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};

/// A measurement, with the keys of the reference's.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was measured.
    pub bench: &'static str,
    /// The model.
    pub shape: &'static str,
    /// Whose row it is.
    #[serde(rename = "impl")]
    pub implementation: &'static str,
    /// Element type of weights and activations.
    pub dtype: String,
    /// Where.
    pub device: String,
    /// Tokens of one run.
    pub tokens: usize,
    /// Memory of all tensors together at most, in GiB; none where the device does not count (the CPU).
    pub peak_gib: Option<f64>,
    /// How it went.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Figures that only some benches have.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// How a measurement went.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Outcome {
    /// It was measured.
    Done {
        /// Median time of a run, in milliseconds.
        ms: f64,
        /// Tokens in that time.
        tokens_per_s: f64,
    },
    /// It could not be.
    Failed {
        /// Why.
        error: String,
    },
}

impl Outcome {
    pub(super) fn out_of_memory() -> Self {
        Self::Failed { error: "out of memory".into() }
    }
}

/// A row without figures of its own.
pub(super) fn row(settings: &BenchSettings, bench: Bench, tokens: usize, outcome: Outcome) -> Result<Row> {
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    Ok(Row {
        bench: bench.name(),
        shape: settings.shape.name,
        implementation: "e2llm-bench",
        dtype: settings.precision.to_string(),
        device: settings.device_name.clone(),
        tokens,
        peak_gib: peak_memory(&settings.device)?.map(|bytes| rounded(gib(bytes), 3)),
        outcome,
        more: Map::new(),
    })
}

/// Runs `work` once unmeasured and then `repeats` times, each until the device has done all of it. `work` gives figures
/// of its own; those of the median run are in the row.
pub(super) fn timed(
    settings: &BenchSettings,
    bench: Bench,
    tokens: usize,
    repeats: usize,
    mut work: impl FnMut() -> Result<Map<String, Value>>,
) -> Result<Row> {
    let device = &settings.device;
    let mut measure = || -> Result<(f64, Map<String, Value>)> {
        work()?;
        reset_peak_memory(device)?;
        let mut runs = Vec::with_capacity(repeats);
        for _ in 0..repeats {
            let start = Instant::now();
            let more = work()?;
            device.synchronize()?;
            runs.push((start.elapsed().as_secs_f64(), more));
        }
        runs.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (seconds, mut more) = runs.swap_remove(repeats / 2);
        if settings.profile {
            more.insert("profile".into(), profiled(device, &mut work)?);
        }
        Ok((seconds, more))
    };
    match measure() {
        Ok((seconds, more)) => {
            let speed = rounded(tokens as f64 / seconds, 1);
            let outcome = Outcome::Done { ms: milliseconds(seconds), tokens_per_s: speed };
            Ok(Row { more, ..row(settings, bench, tokens, outcome)? })
        }
        Err(error) if error.is_out_of_memory() => {
            // What was begun before memory ran out still has to end.
            device.synchronize()?;
            row(settings, bench, tokens, Outcome::out_of_memory())
        }
        Err(error) => Err(error),
    }
}

/// Kernels that are named in a profile of a GPU.
const NAMED: usize = 12;

/// Where the time of one more run goes: milliseconds and percent of each kind of operation. On the CPU, what is none of
/// them (residuals, copies, embeddings, choosing tokens) is `other`. On a GPU `elementwise` is what is neither product,
/// attention nor norm, `gaps` the time without work between the first and the last, and `host` that before and behind.
fn profiled(device: &Device, work: &mut impl FnMut() -> Result<Map<String, Value>>) -> Result<Value> {
    profile::start();
    let start = Instant::now();
    let traced = profile::traced(device, || (work(), start.elapsed(), device.synchronize(), start.elapsed()));
    let times = profile::stop();
    let ((done, on_cpu, waited, on_gpu), spans) = traced?;
    done?;
    waited?;
    let all = if spans.is_some() { on_gpu } else { on_cpu };
    let share = |time: Duration| {
        let (ms, percent) =
            (milliseconds(time.as_secs_f64()), 100.0 * time.as_secs_f64() / all.as_secs_f64());
        json!({"ms": ms, "percent": rounded(percent, 1)})
    };
    let mut parts = Map::new();
    parts.insert("ms".into(), milliseconds(all.as_secs_f64()).into());
    let mut of_kinds = |times: [Duration; 4]| {
        for (kind, time) in Kind::ALL.into_iter().zip(times) {
            parts.insert(kind.name().into(), share(time));
        }
    };
    if let Some(spans) = spans {
        let sum = GpuTime::of(&spans);
        of_kinds(sum.kinds);
        parts.insert("copies".into(), share(sum.copies));
        parts.insert("gaps".into(), share(sum.gaps));
        parts.insert("host".into(), share(all.saturating_sub(sum.span)));
        let named = sum.names.iter().take(NAMED).map(|(name, time, count)| {
            json!({"name": name, "count": count, "ms": milliseconds(time.as_secs_f64())})
        });
        parts.insert("kernels".into(), named.collect());
    } else {
        let times = times.map(|(_, time)| time);
        of_kinds(times);
        parts.insert("other".into(), share(all.saturating_sub(times.iter().sum())));
    }
    Ok(Value::Object(parts))
}

pub(super) fn milliseconds(seconds: f64) -> f64 {
    rounded(seconds * 1e3, 3)
}

pub(super) fn rounded(value: f64, digits: i32) -> f64 {
    let unit = 10f64.powi(digits);
    (value * unit).round() / unit
}
