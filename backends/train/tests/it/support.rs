//! Small models with prepared data, and observers.

use crate::tiny;
use candle_core::Device;
use e2llm_backend::{CancelFlag, Chunker};
use e2llm_lm::Tokenizer;
use e2llm_train::config::{ModelConfig, Phase, TrainConfig};
use e2llm_train::data::{Assign, Incoming, PrepareSettings, Record, Report, prepare};
use e2llm_train::{BaseSource, E2llmTask, Observer, Sources, StepReport};
use std::path::{Path, PathBuf};

/// Records about `documents` short texts, two questions each.
pub(crate) fn records(documents: usize) -> Vec<Incoming> {
    let mut all = Vec::new();
    for d in 0..documents {
        let words: Vec<_> = (0..6 + d % 7).map(|w| format!("word{}", (w * 31 + d * 17) % 100)).collect();
        for q in 0..2 {
            let record = Record {
                document: Some(format!("document-{d}")),
                context: words.join(" ") + ".",
                instruction: format!("Which is number {q}?"),
                answer: words[q].clone(),
            };
            all.push(Incoming {
                place: format!("test, line {}", all.len() + 1),
                assign: Assign::BySeed,
                record: Ok(record),
            });
        }
    }
    all
}

/// Positions of the encoder, which parts are prepared for.
const ENCODER_WINDOW: usize = 20;

/// Prepares records with the tokenizers of the models in `root`.
pub(crate) fn prepared(root: &Path, records: Vec<Incoming>, max_bad: f64) -> e2llm_train::Result<Report> {
    let (encoder, decoder) = (
        Tokenizer::from_folder(&root.join("encoder")).unwrap(),
        Tokenizer::from_folder(&root.join("decoder")).unwrap(),
    );
    let settings = PrepareSettings {
        chunker: Chunker::new(24, 0.0).unwrap(),
        chunk_chars: 24,
        chunk_overlap: 0.0,
        encoder: &encoder,
        encoder_window: ENCODER_WINDOW,
        decoder: &decoder,
        validation: 0.2,
        seed: 3,
        max_bad,
    };
    prepare(records.into_iter(), &root.join("data"), &settings, &mut |_| true)
}

/// Models and data in a folder.
pub(crate) fn workshop(documents: usize) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    tiny::encoder(&root.path().join("encoder"), ENCODER_WINDOW);
    tiny::decoder(&root.path().join("decoder"), 400);
    prepared(root.path(), records(documents), 0.0).unwrap();
    root
}

/// Settings for a workshop: four steps of reconstruction, then both.
pub(crate) fn config(root: &Path, steps: usize) -> TrainConfig {
    let text = r#"{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}"#;
    let mut config = TrainConfig {
        model: ModelConfig {
            adapter: e2llm::AdapterKind::Mean,
            soft_tokens_per_chunk: 3,
            output_scale: true,
            decoder_lora: serde_json::from_str(text).unwrap(),
            ..ModelConfig::default()
        },
        phase: vec![
            Phase { steps: 4, reconstruction_batch: 6, ..Phase::default() },
            Phase { steps: 0, reasoning_batch: 3, reconstruction_batch: 4, window: 2, ..Phase::default() },
        ],
        ..TrainConfig::default()
    };
    config.data.folder = root.join("data");
    config.data.max_chunks = 2;
    config.data.context = e2llm_train::config::ContextChoice::Random;
    config.optimizer.lr = 3e-3;
    config.optimizer.warmup_steps = 3;
    config.compute.micro_positions = 500;
    config.validation.every = 3;
    config.validation.patience = 0;
    config.output.checkpoint_every = 2;
    config.set_steps(steps);
    config
}

pub(crate) fn sources(root: &Path) -> Sources {
    let base =
        |part: &str| BaseSource { name: part.to_owned(), path: root.join(part), sha256: String::new() };
    Sources { encoder: Some(base("encoder")), decoder: base("decoder") }
}

pub(crate) fn task(root: &Path, config: &TrainConfig) -> E2llmTask {
    E2llmTask::open(&sources(root), config, &Device::Cpu).unwrap()
}

/// Cancels after some steps.
pub(crate) struct CancelAt {
    pub(crate) step: usize,
    pub(crate) cancel: CancelFlag,
}

impl Observer for CancelAt {
    fn step(&mut self, report: &StepReport) {
        if report.step == self.step {
            self.cancel.cancel();
        }
    }
}

/// Everything in `metrics.jsonl` that must not depend on when or where it ran.
pub(crate) fn metrics(folder: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let line = |line: &str| {
        let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
        let object = value.as_object_mut().unwrap();
        object.remove("seconds");
        object.remove("tokens_per_second");
        value
    };
    text.lines().map(line).collect()
}

/// Names of the checkpoints in a folder.
pub(crate) fn checkpoints(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder.join("checkpoints")).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

pub(crate) fn last(folder: &Path) -> PathBuf {
    folder.join("checkpoints").join(checkpoints(folder).pop().unwrap())
}
