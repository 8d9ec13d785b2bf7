//! The loop.

use super::folder::{Best, RunFolder, State};
use super::metrics::{Journal, StepReport, ValidationReport};
use crate::config::{Phase, Reduction, TrainConfig};
use crate::order::{Order, generator, micro_batches};
use crate::schedule::learning_rate;
use crate::{Batch, Item, Objective, Optimizer, Part, Result, Split, TrainError, Trainable};
use candle_core::{DType, Tensor};
use e2llm_backend::CancelFlag;
use rand_chacha::rand_core::Rng;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// How [`train`] is called.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// Folder of the training.
    pub folder: PathBuf,
    /// Go on with what is in it, if anything.
    pub resume: bool,
    /// Ends the training after the current step, with a checkpoint.
    pub cancel: CancelFlag,
}

/// Sees a training go on.
pub trait Observer {
    /// It begins after `step` steps of `total`.
    fn start(&mut self, _step: usize, _total: usize) {}
    /// A step was made.
    fn step(&mut self, _report: &StepReport) {}
    /// A validation was made.
    fn validation(&mut self, _report: &ValidationReport) {}
    /// A checkpoint was written.
    fn checkpoint(&mut self, _folder: &Path) {}
}

impl Observer for () {}

/// Why a training ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// All steps were made.
    Finished,
    /// The validation got no better any more.
    Early,
    /// It was cancelled; it can be resumed.
    Cancelled,
}

/// What a training came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Why it ended.
    pub end: End,
    /// Steps made in all.
    pub steps: usize,
    /// The best validation of the last phase.
    pub best: Option<Best>,
    /// The last checkpoint.
    pub last: PathBuf,
}

/// Trains a model: all phases of `config`, or what is left of them.
///
/// # Errors
/// Settings or data that cannot be trained on; another configuration than the one that is resumed; a loss that is no
/// number; a disk that is full. The last checkpoint survives all of them.
pub fn train(
    model: &dyn Trainable,
    config: &TrainConfig,
    options: &RunOptions,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    config.check()?;
    let mut optimizer = Optimizer::new(model.vars(), &config.optimizer)?;
    let folder = RunFolder::open(&options.folder, config, options.resume)?;
    let fingerprint = model.fingerprint();
    let state = folder.restore(&fingerprint, &mut optimizer)?.unwrap_or_else(|| State::new(fingerprint));
    let journal = Journal::open(folder.path(), state.step)?;
    let total = config.steps();
    observer.start(state.step, total);
    let mut run = Run { model, config, folder, optimizer, state, journal, observer, total };
    let end = run.all(&options.cancel)?;
    let last = run.save()?;
    run.journal.draw()?;
    Ok(Outcome { end, steps: run.state.step, best: run.state.best, last })
}

struct Run<'a> {
    model: &'a dyn Trainable,
    config: &'a TrainConfig,
    folder: RunFolder,
    optimizer: Optimizer,
    state: State,
    journal: Journal,
    observer: &'a mut dyn Observer,
    total: usize,
}

/// The items of an objective in a phase, with their order.
struct Stream {
    part: Part,
    weight: f64,
    items: Vec<Item>,
    order: Order,
}

impl Run<'_> {
    fn all(&mut self, cancel: &CancelFlag) -> Result<End> {
        let mut streams: Option<(usize, Vec<Stream>)> = None;
        while let Some((phase, at)) = self.config.phase_at(self.state.step) {
            if cancel.is_cancelled() {
                return Ok(End::Cancelled);
            }
            if self.is_stale(phase) {
                return Ok(End::Early);
            }
            let mut own = match streams.take() {
                Some((of, own)) if of == phase => own,
                _ => self.streams(phase)?,
            };
            let report = self.step(phase, at, &mut own)?;
            self.journal.step(&report)?;
            self.observer.step(&report);
            let is_last = at + 1 == self.config.phase[phase].steps;
            let due = |every: usize| every > 0 && self.state.step.is_multiple_of(every);
            let mut save = due(self.config.output.checkpoint_every);
            if is_last || due(self.config.validation.every) {
                save |= self.validate(phase, &own)?;
            }
            if save {
                self.save()?;
            }
            streams = Some((phase, own));
        }
        Ok(End::Finished)
    }

    fn is_stale(&self, phase: usize) -> bool {
        let patience = self.config.validation.patience;
        let is_last = phase + 1 == self.config.phase.len();
        let same = self.state.best.is_some_and(|b| b.phase == phase);
        is_last && same && patience > 0 && self.state.stale >= patience
    }

    /// What a phase learns from.
    fn streams(&self, phase: usize) -> Result<Vec<Stream>> {
        let p: &Phase = &self.config.phase[phase];
        let both = p.reasoning_batch > 0;
        let mut streams = Vec::new();
        for objective in Objective::ALL {
            let (batch, weight) = match objective {
                Objective::Reasoning => (p.reasoning_batch, 1.0),
                Objective::Reconstruction => (p.reconstruction_batch, if both { p.lambda } else { 1.0 }),
            };
            if batch == 0 {
                continue;
            }
            let part = Part { split: Split::Train, objective, window: p.window };
            let items = self.model.items(part)?;
            if items.is_empty() {
                let name = objective.name();
                return Err(TrainError::Data(format!("there is nothing to train {name} on in this data")));
            }
            let name = format!("{} in phase {phase}", objective.name());
            let order = Order::new(&name, self.config.seed, &items, batch);
            streams.push(Stream { part, weight, items, order });
        }
        Ok(streams)
    }

    fn step(&mut self, phase: usize, at: usize, streams: &mut [Stream]) -> Result<StepReport> {
        let start = Instant::now();
        let lr = learning_rate(&self.config.optimizer, self.state.step, self.total)
            * self.config.phase[phase].lr_scale;
        let step = self.state.step + 1;
        let mut report = StepReport {
            step,
            phase,
            loss: 0.0,
            reasoning: None,
            reconstruction: None,
            lr,
            grad_norm: 0.0,
            tokens: 0,
            targets: 0,
            seconds: 0.0,
            tokens_per_second: 0.0,
        };
        let mut sums = Vec::new();
        let mut used = Vec::new();
        for stream in streams {
            let (batch, epoch) = stream.order.batch(at);
            let draw = generator(self.config.seed, "draw", epoch).next_u64();
            let mut targets = 0u64;
            for item in batch.iter().map(|i| stream.items[*i as usize]) {
                targets += u64::from(item.targets);
                report.tokens += u64::from(item.encoder) + u64::from(item.decoder);
            }
            report.targets += targets;
            let factor = stream.weight
                / match self.config.loss_reduction {
                    Reduction::Mean => targets.max(1) as f64,
                    Reduction::Sum => batch.len() as f64,
                };
            let mut sum: Option<Tensor> = None;
            for micro in micro_batches(batch, &stream.items, self.config.compute.micro_positions) {
                let loss = self.model.loss(&Batch { part: stream.part, items: micro, draw })?;
                self.optimizer.accumulate(&mut e2llm_kernels::backward(&(&loss * factor)?)?)?;
                let loss = loss.detach();
                sum = Some(match sum {
                    Some(before) => (before + loss)?,
                    None => loss,
                });
            }
            sums.push((stream.part.objective, sum, factor, targets));
            used.push((stream.part, batch.to_vec()));
        }
        // Everything up to here was only queued on an accelerator; from here on it is waited for.
        report.grad_norm = self.optimizer.gradient_norm()?;
        for (objective, sum, factor, targets) in sums {
            let Some(sum) = sum else { continue };
            let sum = scalar(&sum)?;
            report.loss += factor * sum;
            let mean = Some(sum / targets.max(1) as f64);
            match objective {
                Objective::Reasoning => report.reasoning = mean,
                Objective::Reconstruction => report.reconstruction = mean,
            }
        }
        for (what, value) in [("loss", report.loss), ("gradient norm", report.grad_norm)] {
            if !value.is_finite() {
                self.optimizer.discard();
                return Err(TrainError::NotFinite { step, what, value, batch: self.describe(&used) });
            }
        }
        self.optimizer.step(lr, report.grad_norm)?;
        self.state.step = step;
        report.seconds = start.elapsed().as_secs_f64();
        report.tokens_per_second = report.tokens as f64 / report.seconds.max(1e-9);
        Ok(report)
    }

    fn describe(&self, used: &[(Part, Vec<u32>)]) -> String {
        const MOST: usize = 16;
        let mut texts = Vec::new();
        for (part, items) in used {
            let names: Vec<_> = items.iter().take(MOST).map(|i| self.model.describe(*part, *i)).collect();
            let more =
                if items.len() > MOST { format!(" and {} more", items.len() - MOST) } else { String::new() };
            texts.push(format!("{}: {}{more}", part.objective.name(), names.join(", ")));
        }
        texts.join("; ")
    }

    /// Measures the validation split; whether the model got better.
    fn validate(&mut self, phase: usize, streams: &[Stream]) -> Result<bool> {
        let start = Instant::now();
        let mut report = ValidationReport {
            step: self.state.step,
            phase,
            validation_reasoning: None,
            validation_reconstruction: None,
            best: false,
            seconds: 0.0,
        };
        for stream in streams {
            let part = Part { split: Split::Validation, ..stream.part };
            let mean = self.mean_loss(part, stream.order.size())?;
            match part.objective {
                Objective::Reasoning => report.validation_reasoning = mean,
                Objective::Reconstruction => report.validation_reconstruction = mean,
            }
        }
        let Some(loss) = report.deciding() else { return Ok(false) };
        let before = self.state.best.filter(|b| b.phase == phase);
        report.best = before.is_none_or(|b| loss < b.loss);
        if report.best {
            self.state.best = Some(Best { step: self.state.step, phase, loss });
            self.state.stale = 0;
        } else {
            self.state.stale += 1;
        }
        report.seconds = start.elapsed().as_secs_f64();
        self.journal.validation(&report)?;
        self.journal.draw()?;
        self.observer.validation(&report);
        Ok(report.best)
    }

    /// Mean loss of a part in nats per token, over evenly spread items.
    fn mean_loss(&self, part: Part, batch: usize) -> Result<Option<f64>> {
        let items = self.model.items(part)?;
        let (n, most) = (items.len(), self.config.validation.items);
        if n == 0 {
            return Ok(None);
        }
        let count = if most == 0 { n } else { most.min(n) };
        let mut chosen: Vec<u32> = (0..count).map(|i| (i * n / count) as u32).collect();
        chosen.sort_by_key(|i| (items[*i as usize].decoder, items[*i as usize].encoder, *i));
        let targets: u64 = chosen.iter().map(|i| u64::from(items[*i as usize].targets)).sum();
        let mut total = 0.0;
        for batch in chosen.chunks(batch) {
            for micro in micro_batches(batch, &items, self.config.compute.micro_positions) {
                total += scalar(&self.model.loss(&Batch { part, items: micro, draw: 0 })?)?;
            }
        }
        Ok(Some(total / targets.max(1) as f64))
    }

    fn save(&mut self) -> Result<PathBuf> {
        let folder = self.folder.save(self.model, &self.optimizer, self.config, &self.state)?;
        self.folder.tidy(self.state.best, self.config.output.keep)?;
        self.observer.checkpoint(&folder);
        Ok(folder)
    }
}

fn scalar(t: &Tensor) -> Result<f64> {
    Ok(t.to_dtype(DType::F64)?.to_scalar()?)
}
