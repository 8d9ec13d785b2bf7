//! `metrics.jsonl`: what happened, one line a step and one a validation.

use super::curve::loss_curve;
use super::tensorboard::EventFile;
use crate::{Result, TrainError};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A step that was made.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Steps made so far, this one included.
    pub step: usize,
    /// Its phase, from 0.
    pub phase: usize,
    /// The loss that was minimised.
    pub loss: f64,
    /// Reasoning loss, nats per token.
    pub reasoning: Option<f64>,
    /// Reconstruction loss, nats per token.
    pub reconstruction: Option<f64>,
    /// Learning rate.
    pub lr: f64,
    /// Norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Tokens that encoder and decoder read, without padding.
    pub tokens: u64,
    /// Tokens that were predicted.
    pub targets: u64,
    /// Seconds it took.
    pub seconds: f64,
    /// `tokens` by `seconds`.
    pub tokens_per_second: f64,
}

/// Losses on the validation split, nats per token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ValidationReport {
    /// Steps made so far.
    pub step: usize,
    /// The phase of the last of them.
    pub phase: usize,
    /// Reasoning loss.
    pub validation_reasoning: Option<f64>,
    /// Reconstruction loss.
    pub validation_reconstruction: Option<f64>,
    /// Whether it is the best of its phase so far.
    pub best: bool,
    /// Seconds it took.
    pub seconds: f64,
}

impl ValidationReport {
    /// The loss that models are compared by: of reasoning where there is any.
    pub fn deciding(&self) -> Option<f64> {
        self.validation_reasoning.or(self.validation_reconstruction)
    }
}

/// Writes `metrics.jsonl` and the event files.
pub(super) struct Journal {
    folder: PathBuf,
    path: PathBuf,
    file: File,
    events: EventFile,
}

/// What any line has.
#[derive(Deserialize)]
struct Line {
    step: usize,
}

impl Journal {
    /// Opens the records of a training after `step` steps; what a killed process wrote beyond them is removed.
    pub(super) fn open(folder: &Path, step: usize) -> Result<Self> {
        let path = folder.join("metrics.jsonl");
        let old = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(TrainError::io(&path)(e)),
        };
        let kept = |line: &&str| serde_json::from_str::<Line>(line).is_ok_and(|l| l.step <= step);
        let text: String = old.lines().filter(kept).flat_map(|l| [l, "\n"]).collect();
        let partial = folder.join("metrics.jsonl.partial");
        fs::write(&partial, text).map_err(TrainError::io(&partial))?;
        fs::rename(&partial, &path).map_err(TrainError::io(&path))?;
        let file = OpenOptions::new().append(true).open(&path).map_err(TrainError::io(&path))?;
        let events = EventFile::create(&folder.join("tensorboard"), step)?;
        Ok(Self { folder: folder.to_owned(), path, file, events })
    }

    pub(super) fn step(&mut self, r: &StepReport) -> Result<()> {
        self.line(r)?;
        let mut values = vec![
            ("loss/total", r.loss),
            ("optimizer/lr", r.lr),
            ("optimizer/grad_norm", r.grad_norm),
            ("speed/tokens_per_second", r.tokens_per_second),
        ];
        values.extend(r.reasoning.map(|v| ("loss/reasoning", v)));
        values.extend(r.reconstruction.map(|v| ("loss/reconstruction", v)));
        self.events.scalars(r.step, &values)
    }

    pub(super) fn validation(&mut self, r: &ValidationReport) -> Result<()> {
        self.line(r)?;
        let mut values = Vec::new();
        values.extend(r.validation_reasoning.map(|v| ("validation/reasoning", v)));
        values.extend(r.validation_reconstruction.map(|v| ("validation/reconstruction", v)));
        self.events.scalars(r.step, &values)
    }

    /// One write a line: a killed process leaves whole lines, and at most one that is cut.
    fn line(&mut self, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string(value).map_err(|e| TrainError::file(&self.path, e))? + "\n";
        self.file.write_all(text.as_bytes()).map_err(TrainError::io(&self.path))
    }

    /// Draws `loss.svg` out of `metrics.jsonl`.
    pub(super) fn draw(&self) -> Result<()> {
        let text = fs::read_to_string(&self.path).map_err(TrainError::io(&self.path))?;
        let path = self.folder.join("loss.svg");
        fs::write(&path, loss_curve(&text)).map_err(TrainError::io(&path))
    }
}
