//! What can stop a preparation or a training.

use e2llm_backend::{BackendError, ErrorKind};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Result of this crate's functions.
pub type Result<T> = std::result::Result<T, TrainError>;

/// Why training cannot start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A file or folder that cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that is damaged or of another kind.
    #[error("{}: {message}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A setting that is missing or out of range.
    #[error("{0}")]
    Config(String),
    /// Data that cannot be trained on.
    #[error("{0}")]
    Data(String),
    /// Resuming with other settings.
    #[error("the training in {} was started with other settings", folder.display())]
    Changed {
        /// Folder of the training.
        folder: PathBuf,
        /// One line for each setting.
        differences: Vec<String>,
    },
    /// A loss or gradient that is no number. Nothing was changed by it.
    #[error(
        "step {step}: the {what} is {value}; the last checkpoint holds the weights before it. The batch: {batch}"
    )]
    NotFinite {
        /// The step that was not made.
        step: usize,
        /// `loss` or `gradient norm`.
        what: &'static str,
        /// Its value.
        value: f64,
        /// The items of the batch.
        batch: String,
    },
    /// A model that cannot be loaded or run.
    #[error(transparent)]
    Model(e2llm_lm::LmError),
    /// A checkpoint that cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] e2llm::checkpoint::CheckpointError),
    /// A failing tensor operation.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl TrainError {
    /// Makes an error of a path out of one of the system.
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        |source| Self::Io { path, source }
    }

    /// Whether the device's memory was exhausted.
    pub fn is_out_of_memory(&self) -> bool {
        BackendError::failed(self).kind == ErrorKind::OutOfMemory
    }

    pub(crate) fn file(path: &Path, message: impl fmt::Display) -> Self {
        Self::File { path: path.to_owned(), message: message.to_string() }
    }
}

impl From<e2llm_lm::LmError> for TrainError {
    fn from(error: e2llm_lm::LmError) -> Self {
        match error {
            e2llm_lm::LmError::Io { path, source } => Self::Io { path, source },
            other => Self::Model(other),
        }
    }
}
