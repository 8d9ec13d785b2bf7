//! Runs that were asked for together: a folder with a run folder each.
//!
//! ```text
//! runs.toml              the runs, in order
//! <label>/               a run's folder
//! leaderboard.csv        of all that have results
//! leaderboard.md         the same for a reader, one row per run
//! ```

use super::{claim, write_whole};
use crate::failure::{Failure, Result};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::{Path, PathBuf};

const FILE: &str = "runs.toml";
/// The current layout.
const FORMAT: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Listed {
    format: u32,
    runs: Vec<String>,
}

/// A folder of runs.
#[derive(Debug)]
pub struct RunSet {
    path: PathBuf,
    labels: Vec<String>,
    /// Held while its runs are written.
    _lock: Option<File>,
}

impl RunSet {
    /// Creates the folder, or opens it to go on; `labels` are added to those that are there.
    ///
    /// # Errors
    /// A folder that holds runs (without `resume`), a single run, or other files; one that cannot be written.
    pub fn create(path: &Path, resume: bool, labels: &[String]) -> Result<Self> {
        let known = Self::open(path)?;
        if known.is_some() && !resume {
            return Err(Failure::usage(format!("{} holds runs already", path.display()))
                .help("continue them, or add backends, with --resume, or name another folder with --out"));
        }
        let filled = path.read_dir().is_ok_and(|mut d| d.any(|e| e.is_ok_and(|e| e.file_name() != ".lock")));
        if known.is_none() && filled {
            return Err(Failure::usage(format!("{} is not empty and holds no set of runs", path.display()))
                .help("name another folder with --out"));
        }
        std::fs::create_dir_all(path).map_err(|e| Failure::io("create", path, &e))?;
        let lock = claim(path)?;
        let mut all = known.map(|k| k.labels).unwrap_or_default();
        for label in labels {
            if !all.contains(label) {
                all.push(label.clone());
            }
        }
        let listed = Listed { format: FORMAT, runs: all.clone() };
        let text =
            toml::to_string(&listed).map_err(|e| Failure::failed(format!("cannot write {FILE}: {e}")))?;
        write_whole(path, FILE, &text)?;
        Ok(Self { path: path.to_owned(), labels: all, _lock: lock })
    }

    /// Opens a folder of runs for reading; `None` where it is none.
    ///
    /// # Errors
    /// A damaged list of runs, or one of a layout this program does not know.
    pub fn open(path: &Path) -> Result<Option<Self>> {
        let file = path.join(FILE);
        let Ok(text) = std::fs::read_to_string(&file) else { return Ok(None) };
        let damaged = |what: &str| Failure::failed(format!("{} is damaged: {what}", file.display()));
        let listed: Listed = toml::from_str(&text).map_err(|e| damaged(e.message()))?;
        if listed.format != FORMAT {
            return Err(Failure::failed(format!(
                "{} has layout {}, this program knows {FORMAT}",
                file.display(),
                listed.format
            )));
        }
        // a label may only point into this folder
        if let Some(label) =
            listed.runs.iter().find(|l| Path::new(l).file_name().is_none_or(|f| f != l.as_str()))
        {
            return Err(damaged(&format!("`{label}` is no folder's name")));
        }
        Ok(Some(Self { path: path.to_owned(), labels: listed.runs, _lock: None }))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A run's folder.
    pub fn folder(&self, label: &str) -> PathBuf {
        self.path.join(label)
    }

    /// The runs that were begun: label and folder, in order.
    pub fn runs(&self) -> Vec<(String, PathBuf)> {
        let all = self.labels.iter().map(|l| (l.clone(), self.folder(l)));
        all.filter(|(_, folder)| folder.join("manifest.toml").is_file()).collect()
    }

    /// Writes a file of the set whole.
    ///
    /// # Errors
    /// As [`super::RunFolder::write`].
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        write_whole(&self.path, name, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_grows_and_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("set");
        let labels = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        drop(RunSet::create(&path, false, &labels(&["b", "a"])).unwrap());
        let error = RunSet::create(&path, false, &labels(&["c"])).unwrap_err();
        assert!(error.to_string().contains("holds runs already"), "{error}");
        drop(RunSet::create(&path, true, &labels(&["a", "c"])).unwrap());
        let set = RunSet::open(&path).unwrap().unwrap();
        assert_eq!(set.labels, ["b", "a", "c"]);
        assert!(set.runs().is_empty(), "none was begun");
        std::fs::create_dir(path.join("a")).unwrap();
        std::fs::write(path.join("a/manifest.toml"), "").unwrap();
        assert_eq!(set.runs(), [("a".to_owned(), path.join("a"))]);
    }

    #[test]
    fn what_is_no_set_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        assert!(RunSet::open(dir.path()).unwrap().is_none());
        std::fs::write(dir.path().join("letter.txt"), "x").unwrap();
        assert!(RunSet::create(dir.path(), true, &[]).is_err());
        std::fs::write(dir.path().join(FILE), "format = 1\nruns = [\"../elsewhere\"]\n").unwrap();
        assert!(RunSet::open(dir.path()).unwrap_err().to_string().contains("no folder's name"));
        std::fs::write(dir.path().join(FILE), "format = 9\nruns = []\n").unwrap();
        assert!(RunSet::open(dir.path()).unwrap_err().to_string().contains("layout 9"));
    }
}
