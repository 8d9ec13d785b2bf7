//! Which base models a checkpoint belongs to, where it does not hold them itself.

use super::{BASE, CheckpointError};
use crate::config::ConfigError;
use e2llm_backend::Fingerprint;
use e2llm_backend::fingerprint::sha256_file;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

/// A base model that is fetched apart from the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseModel {
    /// Its public name, e.g. `sentence-transformers/all-MiniLM-L6-v2`.
    pub source: String,
    /// [`weights_hash`] of its weights.
    pub sha256: String,
}

/// The content of `base.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseModels {
    /// The text encoder.
    pub encoder: Option<BaseModel>,
    /// The decoder.
    pub decoder: Option<BaseModel>,
}

impl BaseModels {
    /// Reads `base.json` of a checkpoint; empty where it has none.
    ///
    /// # Errors
    /// A file that cannot be read or is damaged.
    pub fn of(folder: &Path) -> Result<Self, CheckpointError> {
        let path = folder.join(BASE);
        match std::fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text)
                .map_err(|e| CheckpointError::Config { path, source: ConfigError::Json(e) }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(CheckpointError::Io { path, source }),
        }
    }

    /// What to tell a reader where the weights in use are not those that were trained on.
    pub(super) fn differences(&self, encoder: &str, decoder: &str) -> Vec<String> {
        let pairs = [("encoder", &self.encoder, encoder), ("decoder", &self.decoder, decoder)];
        let other = pairs.into_iter().filter_map(|(part, expected, got)| {
            let expected = expected.as_ref().filter(|e| e.sha256 != got)?;
            let source = &expected.source;
            Some(format!("the {part}'s weights are not those the model was trained on ({source})"))
        });
        other.collect()
    }
}

/// Identifies weights: the SHA-256 of the file, or of all files' names and hashes where there are several.
///
/// # Errors
/// A file that cannot be read.
pub fn weights_hash(files: &[PathBuf]) -> Result<String, CheckpointError> {
    let hash = |path: &PathBuf| sha256_file(path).map_err(CheckpointError::io(path));
    if let [only] = files {
        return hash(only);
    }
    let mut all = Fingerprint::new("weights", "1");
    for path in files {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        all.text(&name, &hash(path)?);
    }
    Ok(all.finish())
}
