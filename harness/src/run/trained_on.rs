//! Whether a model was trained on the texts it is asked about.

use super::backends::fetcher;
use crate::config::RunSettings;
use crate::failure::{Failure, Result};
use e2llm_backend::fingerprint::hex;
use e2llm_backend::{BackendInfo, CancelFlag};
use e2llm_train::data::{DIGITS, TRAINED_ON};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// The documents of a model's training, as its checkpoint lists them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainedOn(BTreeSet<String>);

impl TrainedOn {
    /// The lists in the folder of the model that `backend` runs and in that of a LoRA; `None` where there are none and
    /// nothing is known, and where the backend uses nothing that was trained.
    ///
    /// # Errors
    /// A list that cannot be read; a model whose files are gone.
    pub fn of(
        settings: &RunSettings,
        backend: &BackendInfo,
        quiet: bool,
        cancel: &CancelFlag,
    ) -> Result<Option<Self>> {
        if backend.trained_parameters == 0 {
            return Ok(None);
        }
        let lora = settings.backend_options.get("lora").map(PathBuf::from);
        let named = settings.model.as_deref();
        let known = named.map(|name| {
            let files =
                fetcher(settings.models_file.as_deref(), settings.offline, quiet, cancel)?.resolve(name)?;
            Ok::<_, Box<Failure>>(files.checkpoint.unwrap_or_else(|| PathBuf::from(name)))
        });
        Self::read(known.transpose()?.into_iter().chain(lora))
    }

    fn read(folders: impl Iterator<Item = PathBuf>) -> Result<Option<Self>> {
        let mut found = None;
        for path in folders.map(|f| f.join(TRAINED_ON)) {
            if path.is_file() {
                let text = std::fs::read_to_string(&path).map_err(|e| Failure::io("read", &path, &e))?;
                found.get_or_insert_with(BTreeSet::new).extend(text.lines().map(str::to_owned));
            }
        }
        Ok(found.map(Self))
    }

    /// Whether a text is one of them.
    pub fn has(&self, text: &str) -> bool {
        let hash = hex(&Sha256::digest(text.as_bytes()));
        self.0.contains(&hash[..DIGITS])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_found_by_their_hashes() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().display().to_string();
        let read = || TrainedOn::read(["no-folder", folder.as_str()].into_iter().map(PathBuf::from)).unwrap();
        assert_eq!(read(), None);
        // printf 'abc' | sha256sum
        std::fs::write(dir.path().join(TRAINED_ON), "ba7816bf8f01cfea\n").unwrap();
        let list = read().unwrap();
        assert!(list.has("abc") && !list.has("abd"));
    }
}
