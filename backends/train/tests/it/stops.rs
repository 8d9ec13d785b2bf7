//! What stops a training, and what is left then.

use crate::support::{checkpoints, config, task, workshop};
use candle_core::{Tensor, Var};
use e2llm_train::{
    Batch, E2llmTask, End, Item, Observer, Part, Result, RunOptions, Split, StepReport, TrainError,
    Trainable, train,
};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;

/// A task with something wrong about it.
struct Broken {
    task: E2llmTask,
    /// Losses before one that is no number.
    good: Cell<usize>,
    /// Checkpoints before the disk is full.
    room: Cell<usize>,
    /// Whether validation losses rise.
    worsens: bool,
}

impl Trainable for Broken {
    fn vars(&self) -> &BTreeMap<String, Var> {
        self.task.vars()
    }

    fn items(&self, part: Part) -> Result<Vec<Item>> {
        self.task.items(part)
    }

    fn loss(&self, batch: &Batch<'_>) -> Result<Tensor> {
        let loss = self.task.loss(batch)?;
        if batch.part.split == Split::Validation {
            let factor = if self.worsens { 1001.0 - self.good.get() as f64 } else { 1.0 };
            return Ok((loss * factor)?);
        }
        let left = self.good.get();
        self.good.set(left.saturating_sub(1));
        if left == 0 { Ok((loss * f64::NAN)?) } else { Ok(loss) }
    }

    fn document(&self, part: Part, item: u32) -> String {
        self.task.document(part, item)
    }

    fn describe(&self, part: Part, item: u32) -> String {
        self.task.describe(part, item)
    }

    fn fingerprint(&self) -> String {
        self.task.fingerprint()
    }

    fn save(&self, folder: &Path) -> Result<()> {
        self.task.save(folder)?;
        if self.room.get() == 0 {
            let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
            return Err(TrainError::Io { path: folder.to_owned(), source });
        }
        self.room.set(self.room.get() - 1);
        Ok(())
    }
}

fn broken(root: &Path, steps: usize) -> (Broken, e2llm_train::TrainConfig, RunOptions) {
    let mut config = config(root, steps);
    config.compute.micro_positions = 0;
    config.phase = vec![e2llm_train::config::Phase {
        steps,
        reasoning_batch: 3,
        ..e2llm_train::config::Phase::default()
    }];
    let task = task(root, &config);
    let options = RunOptions { folder: root.join("out"), ..RunOptions::default() };
    (Broken { task, good: Cell::new(1000), room: Cell::new(1000), worsens: false }, config, options)
}

/// Tries to train in the same folder at every step.
struct Second<'a>(&'a Broken, &'a e2llm_train::TrainConfig, &'a RunOptions, Vec<String>);

impl Observer for Second<'_> {
    fn step(&mut self, _: &StepReport) {
        let Self(task, config, options, errors) = self;
        errors.push(train(*task, config, options, &mut ()).unwrap_err().to_string());
    }
}

#[test]
fn one_process_trains_in_a_folder() {
    let root = workshop(8);
    let (task, config, options) = broken(root.path(), 2);
    let again = RunOptions { resume: true, ..options.clone() };
    let mut second = Second(&task, &config, &again, Vec::new());
    train(&task, &config, &options, &mut second).unwrap();
    assert_eq!(second.3.len(), 2);
    assert!(second.3.iter().all(|e| e.contains("another process is training")), "{:?}", second.3);
    // Then the folder is free.
    let error = train(&task, &config, &options, &mut ()).unwrap_err().to_string();
    assert!(error.contains("already") && error.contains("--resume"), "{error}");
    train(&task, &config, &again, &mut ()).unwrap();
}

#[test]
fn a_loss_that_is_no_number_stops_it_and_names_the_batch() {
    let root = workshop(8);
    let (model, config, options) = broken(root.path(), 9);
    model.good.set(5);
    let error = train(&model, &config, &options, &mut ()).unwrap_err();
    let TrainError::NotFinite { step: 6, what: "loss", batch, .. } = &error else { panic!("{error}") };
    assert!(batch.contains("document-") && batch.contains("question"), "{batch}");
    assert!(checkpoints(&options.folder).contains(&"step-00000004".into()), "the last good one is kept");
    for var in model.vars().values() {
        let values = var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(values.iter().all(|v| v.is_finite()));
    }
}

#[test]
fn a_full_disk_leaves_the_checkpoint_before() {
    let root = workshop(8);
    let (model, config, mut options) = broken(root.path(), 9);
    model.room.set(2);
    let error = train(&model, &config, &options, &mut ()).unwrap_err();
    assert!(matches!(error, TrainError::Io { .. }), "{error}");
    let left = checkpoints(&options.folder);
    assert_eq!(left.len(), 2, "no unfinished one: {left:?}");
    model.room.set(1000);
    options.resume = true;
    let (model, ..) = broken(root.path(), 9);
    assert_eq!(train(&model, &config, &options, &mut ()).unwrap().end, End::Finished);
}

#[test]
fn a_validation_that_gets_no_better_ends_the_last_phase() {
    let root = workshop(20);
    let (mut model, mut config, options) = broken(root.path(), 30);
    model.worsens = true;
    config.validation.every = 2;
    config.validation.patience = 3;
    let outcome = train(&model, &config, &options, &mut ()).unwrap();
    assert_eq!((outcome.end, outcome.steps, outcome.best.unwrap().step), (End::Early, 8, 2));
    assert!(checkpoints(&options.folder).contains(&"step-00000002".into()), "the best one is kept");
}

#[test]
fn examples_beyond_the_window_are_an_error_before_the_first_step() {
    let root = workshop(8);
    let (.., mut config, options) = broken(root.path(), 2);
    config.model.soft_tokens_per_chunk = 300;
    let model = task(root.path(), &config);
    let error = train(&model, &config, &options, &mut ()).unwrap_err().to_string();
    assert!(error.contains("400 positions") && error.contains("max_chunks"), "{error}");
}
