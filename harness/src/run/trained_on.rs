//! Whether a model was trained on the texts it is asked about.

use crate::config::RunSettings;
use crate::failure::{Failure, Result};
use e2llm_backend::fingerprint::hex;
use e2llm_train::data::{DIGITS, TRAINED_ON};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::path::Path;

/// The documents of a model's training, as its checkpoint lists them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainedOn(BTreeSet<String>);

impl TrainedOn {
    /// The lists in the model's folder and in that of a LoRA; `None` where there are none, and nothing is known.
    ///
    /// # Errors
    /// A list that cannot be read.
    pub fn of(settings: &RunSettings) -> Result<Option<Self>> {
        let lora = settings.backend_options.get("lora");
        Self::read(settings.model.as_deref().into_iter().chain(lora.map(String::as_str)))
    }

    fn read<'a>(folders: impl Iterator<Item = &'a str>) -> Result<Option<Self>> {
        let mut found = None;
        for path in folders.map(|f| Path::new(f).join(TRAINED_ON)) {
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
        let read = || TrainedOn::read(["no-folder", folder.as_str()].into_iter()).unwrap();
        assert_eq!(read(), None);
        // printf 'abc' | sha256sum
        std::fs::write(dir.path().join(TRAINED_ON), "ba7816bf8f01cfea\n").unwrap();
        let list = read().unwrap();
        assert!(list.has("abc") && !list.has("abd"));
    }
}
