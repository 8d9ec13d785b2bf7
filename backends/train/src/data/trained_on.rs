//! `trained_on.txt` in a checkpoint: which documents it was trained on, so that results about them can be marked.

use crate::{Result, TrainError};
use std::collections::BTreeSet;
use std::path::Path;

/// The file's name.
pub const TRAINED_ON: &str = "trained_on.txt";

/// Digits of a hash that are kept: 64 bits tell documents apart.
pub const DIGITS: usize = 16;

/// The list for checkpoints of a training on prepared data, one document a line: the beginning of the SHA-256 of its text.
/// The documents of the checkpoint that it started from are among them.
///
/// # Errors
/// Files that cannot be read.
pub fn trained_on(folder: &Path, start: Option<&Path>) -> Result<String> {
    let path = folder.join("train/documents.txt");
    let documents = std::fs::read_to_string(&path).map_err(TrainError::io(&path))?;
    let mut all: BTreeSet<String> =
        documents.lines().filter_map(|l| l.get(..DIGITS)).map(str::to_owned).collect();
    let before = start.map(|start| start.join(TRAINED_ON)).filter(|path| path.is_file());
    if let Some(path) = before {
        let text = std::fs::read_to_string(&path).map_err(TrainError::io(&path))?;
        all.extend(text.lines().map(str::to_owned));
    }
    Ok(all.into_iter().map(|hash| hash + "\n").collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_of_the_start_are_among_them() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("train")).unwrap();
        let documents = format!("{} a b\n{} c\n", "f".repeat(64), "0".repeat(64));
        std::fs::write(dir.path().join("train/documents.txt"), documents).unwrap();
        assert_eq!(trained_on(dir.path(), Some(dir.path())).unwrap(), "0000000000000000\nffffffffffffffff\n");
        std::fs::write(dir.path().join(TRAINED_ON), "5555555555555555\n0000000000000000\n").unwrap();
        let all = trained_on(dir.path(), Some(dir.path())).unwrap();
        assert_eq!(all, "0000000000000000\n5555555555555555\nffffffffffffffff\n");
    }
}
