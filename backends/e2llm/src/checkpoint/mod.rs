//! The folder of a model.
//!
//! ```text
//! encoder/, decoder/     the base models in HF layout (the decoder may be a .gguf file instead); left out
//!                        where base.json names them, and then given by path
//! base.json              names and hashes of the base models that the rest was trained on (optional)
//! e2llm_config.json      E2llmConfig
//! e2llm.safetensors      all that is trained: adapter.*, output_scale, encoder.<module>.lora_{A,B}.weight,
//!                        decoder.<module>.lora_{A,B}.weight; or shards of it with e2llm.safetensors.index.json
//! ```

mod base;
mod exchange;
mod load;
mod save;

pub use base::{BaseModel, BaseModels, weights_hash};
pub use exchange::{Trained, merge_lora};
pub use load::{BaseHashes, Loaded, Settings, load, untrained};
pub use save::{save, save_named};

use crate::ConfigError;
use e2llm_backend::ModelFiles;
use e2llm_lm::LmError;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

pub(crate) const CONFIG: &str = "e2llm_config.json";
/// What the files of trained tensors are called, before `.safetensors`.
pub const TRAINED: &str = "e2llm";
pub(crate) const BASE: &str = "base.json";

/// What a method's settings are called in its checkpoints.
pub fn settings_file(method: &str) -> String {
    format!("{method}_config.json")
}

/// Why a checkpoint cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file that cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Settings that cannot be used.
    #[error("{}: {source}", path.display())]
    Config {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: ConfigError,
    },
    /// A base model of which nobody says where it is.
    #[error("no {part} given, and {searched}")]
    NoBase {
        /// `encoder` or `decoder`.
        part: &'static str,
        /// Where it was looked for.
        searched: String,
    },
    /// Everything found wrong with the parts.
    #[error("{0}")]
    Parts(Problems),
    /// A model of which a part cannot be built.
    #[error(transparent)]
    Model(#[from] LmError),
    /// A failing tensor operation.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl CheckpointError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        |source| Self::Io { path, source }
    }
}

/// Several errors, shown one a line.
#[derive(Debug)]
pub struct Problems(pub Vec<LmError>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            write!(f, "{}{problem}", if i == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

/// Where the parts of a model are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// The checkpoint; without one the model is untrained, with the given settings.
    pub checkpoint: Option<PathBuf>,
    /// The encoder's folder.
    pub encoder: PathBuf,
    /// The decoder's folder or `.gguf` file.
    pub decoder: PathBuf,
}

impl Sources {
    /// Base models given by path win over those inside the checkpoint.
    ///
    /// # Errors
    /// A checkpoint that is no folder; a base model that is neither given nor inside.
    pub fn find(files: &ModelFiles) -> Result<Self, CheckpointError> {
        if let Some(folder) = &files.checkpoint {
            std::fs::read_dir(folder).map_err(CheckpointError::io(folder))?;
        }
        let checkpoint = files.checkpoint.as_deref();
        Ok(Self {
            encoder: part("encoder", files.encoder.as_deref(), checkpoint, &["encoder"])?,
            decoder: part("decoder", files.decoder.as_deref(), checkpoint, &["decoder", "decoder.gguf"])?,
            checkpoint: files.checkpoint.clone(),
        })
    }
}

fn part(
    part: &'static str,
    given: Option<&Path>,
    checkpoint: Option<&Path>,
    inside: &[&str],
) -> Result<PathBuf, CheckpointError> {
    if let Some(path) = given {
        return Ok(path.to_owned());
    }
    let Some(folder) = checkpoint else {
        return Err(CheckpointError::NoBase { part, searched: "there is no checkpoint to hold one".into() });
    };
    let found = inside.iter().map(|name| folder.join(name)).find(|path| path.exists());
    found.ok_or_else(|| {
        let searched = format!("{} has no `{}`", folder.display(), inside.join("` or `"));
        CheckpointError::NoBase { part, searched }
    })
}
