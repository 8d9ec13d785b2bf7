//! `timings.csv`: what it took, per task. Measured, so it is the one table that does not repeat.

use super::columns::Column;
use super::leaderboard::{decimals, into_text, unwritable};
use super::samples::Samples;
use super::stats::{mean, quantile};
use crate::failure::Result;
use serde::Serialize;

/// The times of one task's answered samples.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TaskTimings {
    /// The task's id.
    pub task: String,
    /// Answered samples.
    pub n: usize,
    /// Seconds to the first token; absent where nothing was answered.
    pub first_token: Option<FirstToken>,
    /// Tokens after the first, per second of decoding; absent where no sample has two tokens.
    pub decode_tokens_per_second: Option<f64>,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// The highest peak in bytes, where the backend can tell.
    pub peak_memory: Option<u64>,
}

/// Seconds from the request to the first generated token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FirstToken {
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 95th percentile.
    pub p95: f64,
}

impl TaskTimings {
    /// The times of a task's samples.
    pub fn of(task: &str, samples: &Samples) -> Self {
        let answered = || (0..samples.end()).filter(|p| samples.is_answered(*p));
        let (tokens, times) = (samples.tokens(), samples.times());
        let sorted = |column: &Column<f64>| {
            let mut values: Vec<f64> = answered().map(|p| column.get(p)).collect();
            values.sort_unstable_by(f64::total_cmp);
            values
        };
        let first = sorted(&times.to_first_token);
        let n = first.len();
        let first_token = (n > 0).then(|| FirstToken {
            mean: mean(&first),
            p50: quantile(&first, 0.5),
            p95: quantile(&first, 0.95),
        });
        drop(first);
        let seconds: f64 = sorted(&times.decode).iter().sum();
        let generated = || answered().map(|p| u64::from(tokens.generated.get(p)));
        let decoded: u64 = generated().map(|n| n.saturating_sub(1)).sum();
        Self {
            task: task.to_owned(),
            n,
            first_token,
            decode_tokens_per_second: (decoded > 0 && seconds > 0.0).then(|| decoded as f64 / seconds),
            generated_tokens: generated().sum(),
            peak_memory: answered().filter_map(|p| times.peak_memory.get(p)).max(),
        }
    }
}

/// The columns, in order.
#[derive(Serialize)]
struct Line<'a> {
    /// Task id.
    task: &'a str,
    /// Answered samples.
    n: usize,
    /// Mean seconds to the first token.
    ttft_mean_s: String,
    /// Median.
    ttft_p50_s: String,
    /// 95th percentile.
    ttft_p95_s: String,
    /// Tokens after the first, per second of decoding.
    decode_tokens_per_s: String,
    /// Tokens generated.
    generated_tokens: u64,
    /// Highest peak in MiB.
    peak_memory_mib: String,
}

/// The text of `timings.csv`.
///
/// # Errors
/// None in practice: everything here can be written.
pub fn timings_csv(tasks: &[TaskTimings]) -> Result<String> {
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
    for t in tasks {
        let seconds =
            |f: fn(&FirstToken) -> f64| t.first_token.as_ref().map(f).map_or_else(String::new, four);
        let line = Line {
            task: &t.task,
            n: t.n,
            ttft_mean_s: seconds(|f| f.mean),
            ttft_p50_s: seconds(|f| f.p50),
            ttft_p95_s: seconds(|f| f.p95),
            decode_tokens_per_s: t.decode_tokens_per_second.map_or_else(String::new, four),
            generated_tokens: t.generated_tokens,
            peak_memory_mib: t.peak_memory.map_or_else(String::new, |b| four(b as f64 / (1u64 << 20) as f64)),
        };
        writer.serialize(line).map_err(unwritable)?;
    }
    into_text(writer)
}

fn four(x: f64) -> String {
    decimals(x, 4)
}
