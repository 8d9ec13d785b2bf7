//! `data.lock.toml` beside a task's files: what was fetched from where, and its sha256.

use crate::failure::{Failure, Result};
use crate::models::install::part_in;
use serde::{Deserialize, Serialize};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Its name in the task's folder.
pub const LOCK: &str = "data.lock.toml";

const HEADING: &str = "\
# Written by `e2llm-bench data fetch`; `e2llm-bench data verify` checks the files here against it. Keep it with them.
";

/// What was fetched into a task's folder.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// The task.
    pub task: String,
    /// The licence that was shown and accepted.
    pub licence: String,
    /// By download.
    #[serde(default, rename = "download")]
    pub downloads: Vec<Locked>,
}

/// One download.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Locked {
    /// Its name in the catalogue.
    pub name: String,
    /// Where it came from.
    pub source: String,
    /// Bytes.
    pub size: u64,
    /// Of its bytes as they were fetched.
    pub sha256: String,
    /// Whether the catalogue knew this sha256; otherwise it is only what came the first time.
    pub pinned: bool,
    /// Of an archive: the file in this folder that lists what was taken out of it, in the form of `sha256sum`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listing: Option<String>,
}

impl Lock {
    /// Reads the lock of a folder; an empty one where there is none.
    ///
    /// # Errors
    /// A file that cannot be read or is damaged.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(LOCK);
        match std::fs::read_to_string(&path) {
            Ok(text) => crate::config::parse_toml("data lock", &path.display().to_string(), &text),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(Failure::io("read", &path, &e)),
        }
    }

    /// Writes it whole.
    ///
    /// # Errors
    /// A failure to write.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let text = toml::to_string(self).map_err(|e| Failure::failed(format!("cannot write {LOCK}: {e}")))?;
        write_whole(&folder.join(LOCK), &(HEADING.to_owned() + &text))
    }

    /// A download by name.
    pub fn get(&self, name: &str) -> Option<&Locked> {
        self.downloads.iter().find(|d| d.name == name)
    }

    /// Adds or replaces a download.
    pub fn put(&mut self, locked: Locked) {
        match self.downloads.iter_mut().find(|d| d.name == locked.name) {
            Some(old) => *old = locked,
            None => self.downloads.push(locked),
        }
    }
}

/// Writes a listing of files and their sha256.
///
/// # Errors
/// A failure to write.
pub(super) fn write_listing(path: &Path, files: &[(String, String)]) -> Result<()> {
    let lines: String = files.iter().map(|(name, sha256)| format!("{sha256}  {name}\n")).collect();
    write_whole(path, &lines)
}

/// Reads such a listing.
///
/// # Errors
/// A file that is missing or is none.
pub(super) fn read_listing(path: &Path) -> Result<Vec<(String, String)>> {
    let text = std::fs::read_to_string(path).map_err(|e| Failure::io("read", path, &e))?;
    let line = |(i, line): (usize, &str)| match line.split_once("  ") {
        Some((sha256, name)) if sha256.len() == 64 => Ok((name.to_owned(), sha256.to_owned())),
        _ => Err(Failure::failed(format!("{}, line {}: not `<sha256>  <file>`", path.display(), i + 1))),
    };
    text.lines().enumerate().map(line).collect()
}

fn write_whole(path: &Path, text: &str) -> Result<()> {
    let folder = path.parent().map_or_else(PathBuf::new, Path::to_owned);
    let write = || -> std::io::Result<()> {
        let mut file = part_in(&folder)?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(|e| Failure::io("write", path, &e))
}
