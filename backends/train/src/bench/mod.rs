//! How fast the model is on random weights: no files, no data, the same work every time.
//!
//! The benches and shapes are those of the PyTorch reference's own measurement, so that a row of ours can be put beside
//! a row of its.

mod measure;
mod shape;
mod work;

pub use measure::{Outcome, Row};
pub use shape::Shape;

use crate::{Result, TrainError};
use candle_core::Device;
use e2llm_lm::Precision;
use measure::row;
use std::str::FromStr;
use work::Subject;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bench {
    /// Chunks to soft tokens.
    Encode,
    /// Embeddings of a prompt to the logits behind it.
    Prefill,
    /// Chunks to an answer, token by token.
    Decode,
    /// A step of the optimiser: loss, gradients, clipping, AdamW.
    Train,
    /// Chunks to the first token of an answer, from 4k tokens up, each time four times as many.
    Context,
}

impl Bench {
    /// All, in the order of the reference.
    pub const ALL: [Self; 5] = [Self::Encode, Self::Prefill, Self::Decode, Self::Train, Self::Context];

    /// Its name in rows and flags.
    pub fn name(self) -> &'static str {
        match self {
            Self::Encode => "encode",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
            Self::Train => "train",
            Self::Context => "context",
        }
    }
}

impl FromStr for Bench {
    type Err = TrainError;

    fn from_str(name: &str) -> Result<Self> {
        let known = || Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|b| b.name() == name);
        found.ok_or_else(|| TrainError::Config(format!("bench `{name}` is none of {}", known())))
    }
}

/// On what it is measured, and how often.
#[derive(Debug, Clone)]
pub struct BenchSettings {
    /// The model and its work.
    pub shape: Shape,
    /// Where.
    pub device: Device,
    /// The device's name in rows.
    pub device_name: String,
    /// Element type of weights and activations; what is trained has float32 masters.
    pub precision: Precision,
    /// Measured runs, after one that is not; decoding takes half as many, long contexts two.
    pub repeats: usize,
    /// Tokens of the longest context.
    pub max_context: usize,
    /// Examples that are decoded side by side; everything else takes one at a time, as the reference does.
    pub batch: usize,
    /// Whether LoRA updates are added to the weights for inference; the reference keeps them beside.
    pub merge_lora: bool,
    /// Whether training computes layers again in the backward pass instead of keeping their activations.
    pub checkpointing: bool,
    /// Whether one more run tells where the time goes.
    pub profile: bool,
    /// Seed of weights and inputs.
    pub seed: u64,
}

/// Measures each of `benches` and hands its rows to `each` as they come. Exhausted memory is a row too.
///
/// # Errors
/// Any other failure of model or device.
pub fn bench(settings: &BenchSettings, benches: &[Bench], each: &mut dyn FnMut(Row)) -> Result<()> {
    if settings.repeats == 0 || settings.batch == 0 {
        let message = "no repeats, or a batch of none: at least one run of one example must be measured";
        return Err(TrainError::Config(message.into()));
    }
    let mut subject: Option<Subject<'_>> = None;
    for &bench in benches {
        let trained = bench == Bench::Train;
        if subject.as_ref().is_none_or(|s| s.is_trained() != trained) {
            // Given back before the next one is made: two would not fit.
            drop(subject.take());
            match Subject::new(settings, trained) {
                Ok(made) => subject = Some(made),
                Err(error) if error.is_out_of_memory() => {
                    each(row(settings, bench, settings.shape.tokens(bench), Outcome::out_of_memory())?);
                    continue;
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(subject) = &mut subject {
            subject.run(bench, each)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Mutex, PoisonError};

    /// A profile counts the work of the whole process, so one test measures at a time.
    static MEASURING: Mutex<()> = Mutex::new(());

    #[test]
    fn every_bench_runs_and_tells_its_work() {
        let _alone = MEASURING.lock().unwrap_or_else(PoisonError::into_inner);
        let shape = Shape::named("tiny").unwrap();
        let settings = BenchSettings {
            shape,
            device: Device::Cpu,
            device_name: "cpu".into(),
            precision: Precision::F32,
            repeats: 2,
            max_context: 4 * 4096,
            batch: 1,
            merge_lora: false,
            checkpointing: false,
            profile: false,
            seed: 0,
        };
        let mut rows = Vec::new();
        bench(&settings, &Bench::ALL, &mut |row| rows.push(serde_json::to_value(row).unwrap())).unwrap();
        let names: Vec<_> = rows.iter().map(|r| r["bench"].as_str().unwrap()).collect();
        assert_eq!(names, ["encode", "prefill", "decode", "train", "context", "context"]);
        // 4 chunks of 16 tokens, 2 soft tokens each, a prompt of 16 + 8 + 32, an answer of 12 or 6 tokens
        let tokens: Vec<_> = rows.iter().map(|r| r["tokens"].as_u64().unwrap()).collect();
        assert_eq!(tokens, [64, 56, 6, 64 + 56 + 12, 4096, 16384]);
        for row in &rows {
            assert_eq!((&row["impl"], &row["dtype"]), (&"e2llm-bench".into(), &"f32".into()));
            let (ms, speed) = (row["ms"].as_f64().unwrap(), row["tokens_per_s"].as_f64().unwrap());
            let told = row["tokens"].as_f64().unwrap() / ms * 1e3;
            assert!(ms > 0.0 && (speed / told - 1.0).abs() < 0.1 + 0.01 / ms, "{row}");
            assert!(row["peak_gib"].is_null() && row.get("error").is_none());
        }
        assert_eq!(
            (rows[3]["encoder_tokens"].as_u64(), rows[3]["decoder_tokens"].as_u64()),
            (Some(64), Some(68))
        );
    }

    #[test]
    fn other_settings_run_too() {
        let _alone = MEASURING.lock().unwrap_or_else(PoisonError::into_inner);
        let settings = BenchSettings {
            shape: Shape::named("tiny").unwrap(),
            device: Device::Cpu,
            device_name: "cpu".into(),
            precision: Precision::BF16,
            repeats: 1,
            max_context: 0,
            batch: 3,
            merge_lora: true,
            checkpointing: true,
            profile: false,
            seed: 1,
        };
        let mut rows = Vec::new();
        bench(&settings, &Bench::ALL, &mut |row| rows.push(row)).unwrap();
        assert_eq!(rows.len(), 4, "no context is that short");
        assert!(rows.iter().all(|r| matches!(r.outcome, Outcome::Done { .. })));
        assert_eq!((rows[2].tokens, rows[2].more["batch"].as_u64()), (3 * 6, Some(3)));
        let profiled = BenchSettings { profile: true, max_context: 4096, ..settings.clone() };
        let mut rows = Vec::new();
        bench(&profiled, &Bench::ALL, &mut |row| rows.push(serde_json::to_value(row).unwrap())).unwrap();
        for row in rows {
            let ms = |key: &str| row["profile"][key]["ms"].as_f64().unwrap();
            let parts: f64 = ["product", "attention", "norm", "elementwise", "other"].map(ms).iter().sum();
            assert!(ms("product") > 0.0 && ms("attention") > 0.0 && ms("norm") > 0.0, "{row}");
            let all = row["profile"]["ms"].as_f64().unwrap();
            assert!((parts - all).abs() < 0.01 && row["profile"]["other"]["percent"].is_number(), "{row}");
        }
        let none = BenchSettings { repeats: 0, ..settings };
        assert!(bench(&none, &Bench::ALL, &mut |_| ()).is_err());
        assert!("encod".parse::<Bench>().unwrap_err().to_string().contains("encode, prefill"));
    }
}
