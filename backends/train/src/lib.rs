//! Training: of E2LLM, and through the same loop of anything else that is [`Trainable`].
//!
//! - [`prepare`](data::prepare) turns records into memory-mapped ids, each document once.
//! - [`E2llmTask`], [`CepeTask`], [`LlocoTask`] and [`SftTask`] are what can be trained.
//! - [`train`] is the loop: optimiser, order of the data, validation, checkpoints, records of what happened.
//! - [`bench`] says how fast all of it is, on random weights.
//!
//! A training that is resumed is the same as one that was never interrupted: the order of the data, the learning rate
//! and every choice are functions of the seed and the step, and a checkpoint holds weights and moments in float32.

pub mod bench;
pub mod config;
pub mod data;
mod error;
mod objective;
mod optimizer;
mod order;
mod run;
mod schedule;
mod trainable;

pub use config::TrainConfig;
pub use error::{Result, TrainError};
pub use objective::{BaseSource, CepeTask, E2llmTask, LlocoTask, SftTask, Sources};
pub use optimizer::Optimizer;
pub use order::{Order, micro_batches};
pub use run::{
    Best, Crc32c, End, EventFile, ItemLoss, Observer, Outcome, Plot, RunOptions, Series, StepReport,
    ValidationReport, check_folder, item_losses, loss_curve, train,
};
pub use schedule::learning_rate;
pub use trainable::{Batch, Item, Objective, Part, Split, Trainable};
