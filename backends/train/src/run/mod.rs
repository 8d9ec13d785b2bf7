//! The training loop and what it leaves on the disk.
//!
//! ```text
//! config.toml                  the settings
//! metrics.jsonl                one line a step, one a validation
//! loss.svg                     the loss curve
//! tensorboard/                 event files, one for each start
//! checkpoints/step-00000200/   what `Trainable::save` writes, and:
//!     config.toml, state.json, state.safetensors   what resuming needs (float32 weights and moments)
//! best, last                   links to two of them (unix); to the last one both, where nothing was validated
//! ```

mod crc;
mod curve;
mod folder;
mod measure;
mod metrics;
mod plot;
mod tensorboard;
mod trainer;

pub use crc::Crc32c;
pub use curve::loss_curve;
pub use folder::{Best, check_folder};
pub use measure::{ItemLoss, item_losses};
pub use metrics::{StepReport, ValidationReport};
pub use plot::{Plot, Series};
pub use tensorboard::EventFile;
pub use trainer::{End, Observer, Outcome, RunOptions, train};
