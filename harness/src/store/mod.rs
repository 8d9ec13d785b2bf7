//! The run store: a folder, and nothing else is the truth.
//!
//! ```text
//! manifest.toml          what was asked, versions, seeds, hashes
//! samples/<task>.jsonl   one line per finished sample, written as it finishes
//! results.json           scores with intervals, made from the samples
//! leaderboard.csv        the same, one row per task, slice and metric
//! timings.csv            what it took; not expected to repeat
//! ```

mod lines;
mod manifest;
mod run_set;
mod sample;

pub use manifest::{FORMAT, FileUsed, Manifest, PluginUsed, TaskEntry};
pub use run_set::RunSet;
pub use sample::{KnownSample, Outcome, SampleRecord};

use crate::failure::{Failure, Result};
use lines::Appender;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// A run's folder.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Held while the run is written; a second process is refused.
    _lock: Option<File>,
}

/// Appends finished samples of one task.
pub struct SampleWriter(Appender);

impl RunFolder {
    /// Creates the folder, or opens it to go on, and makes sure that it can be written before anything is done.
    ///
    /// # Errors
    /// A folder that holds a run (without `resume`) or other files, that cannot be written, or that another
    /// process is writing.
    pub fn create(path: &Path, resume: bool) -> Result<Self> {
        let exists = path.join("manifest.toml").exists();
        if exists && !resume {
            return Err(Failure::usage(format!("{} holds a run already", path.display()))
                .help("continue it with --resume, or name another folder with --out"));
        }
        let filled = path.read_dir().is_ok_and(|mut d| d.any(|e| e.is_ok_and(|e| e.file_name() != ".lock")));
        if !exists && filled && !path.join("samples").is_dir() {
            return Err(Failure::usage(format!("{} is not empty and holds no run", path.display()))
                .help("name another folder with --out"));
        }
        std::fs::create_dir_all(path.join("samples")).map_err(|e| Failure::io("create", path, &e))?;
        Ok(Self { path: path.to_owned(), _lock: claim(path)? })
    }

    /// Opens a finished or interrupted run for reading.
    ///
    /// # Errors
    /// A folder that holds no run.
    pub fn open(path: &Path) -> Result<(Self, Manifest)> {
        let manifest = Manifest::read(&path.join("manifest.toml"))?;
        Ok((Self { path: path.to_owned(), _lock: None }, manifest))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The manifest of a run that is gone on with.
    ///
    /// # Errors
    /// A damaged manifest.
    pub fn manifest(&self) -> Result<Option<Manifest>> {
        let path = self.path.join("manifest.toml");
        if path.exists() { Manifest::read(&path).map(Some) } else { Ok(None) }
    }

    /// Writes a file of the run whole: a reader sees the old one or the new one.
    ///
    /// # Errors
    /// A failure to write; the old file is still there.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        write_whole(&self.path, name, text)
    }

    fn samples_path(&self, task: &str) -> PathBuf {
        self.path.join("samples").join(format!("{task}.jsonl"))
    }

    /// The finished samples of a task in the order of its plan; of several at one place the last written, which is
    /// what a batch that was redone whole leaves.
    ///
    /// # Errors
    /// A damaged file.
    pub fn samples(&self, task: &TaskEntry) -> Result<Vec<SampleRecord>> {
        let by_index: BTreeMap<u64, SampleRecord> = self
            .records(task)?
            .map(|s| Ok((s.as_ref().map_or(0, |s| s.index), s?)))
            .collect::<Result<_>>()?;
        Ok(by_index.into_values().collect())
    }

    /// The finished samples of a task one by one, as they were written: of several at one place the last counts.
    ///
    /// # Errors
    /// A file that cannot be read; each item, where it is damaged.
    pub fn records(&self, task: &TaskEntry) -> Result<impl Iterator<Item = Result<SampleRecord>> + use<>> {
        let planned = task.samples;
        let lines = lines::Lines::<SampleRecord>::open(&self.samples_path(&task.id))?;
        Ok(lines.filter(move |s| s.as_ref().map_or(true, |s| s.index < planned)))
    }

    /// Whether a task has finished samples.
    ///
    /// # Errors
    /// A file that cannot be read or is damaged.
    pub fn has_samples(&self, task: &TaskEntry) -> Result<bool> {
        Ok(self.records(task)?.next().transpose()?.is_some())
    }

    /// Opens a task's samples for appending; `known` gets those that are there, as they were written.
    ///
    /// # Errors
    /// A damaged file, or one that cannot be written.
    pub fn append(&self, task: &str, known: impl FnMut(KnownSample)) -> Result<SampleWriter> {
        Appender::open(&self.samples_path(task), known).map(SampleWriter)
    }
}

impl SampleWriter {
    /// Writes one sample; it is safe from a kill when this returns.
    ///
    /// # Errors
    /// A full disk, or any other failure to write.
    pub fn append(&mut self, sample: &SampleRecord) -> Result<()> {
        self.0.append(sample)
    }

    /// Makes sure that everything is on the disk.
    ///
    /// # Errors
    /// A failure to write.
    pub fn sync(&self) -> Result<()> {
        self.0.sync()
    }
}

/// What a folder is called, however it is written.
fn folder_name(path: &Path) -> String {
    let canonical = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    canonical.file_name().map_or_else(|| "run".into(), |n| n.to_string_lossy().into_owned())
}

/// What runs are called side by side: each as its folder, or by its path where another one's folder is called the same.
pub fn names_apart(paths: &[PathBuf]) -> Vec<String> {
    let names: Vec<_> = paths.iter().map(|p| folder_name(p)).collect();
    let apart = |(path, name): (&PathBuf, &String)| {
        let is_alone = names.iter().filter(|n| *n == name).count() == 1;
        if is_alone { name.clone() } else { path.components().as_path().display().to_string() }
    };
    paths.iter().zip(&names).map(apart).collect()
}

/// Locks a folder against other processes for as long as the file is held.
fn claim(folder: &Path) -> Result<Option<File>> {
    let lock = folder.join(".lock");
    let file = File::create(&lock).map_err(|e| Failure::io("write", &lock, &e))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(Failure::failed(format!("another process is writing the run {}", folder.display())))
        }
        // a file system without locks: two writers are the user's to avoid
        Err(std::fs::TryLockError::Error(_)) => Ok(None),
    }
}

/// Writes a file of a folder whole: a reader sees the old one or the new one.
fn write_whole(folder: &Path, name: &str, text: &str) -> Result<()> {
    let (path, temporary) = (folder.join(name), folder.join(format!(".{name}.new")));
    let write = || -> std::io::Result<()> {
        use std::io::Write;
        let mut file = File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, &path)
    };
    write().map_err(|e| {
        let _ = std::fs::remove_file(&temporary);
        Failure::io("write", &path, &e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_one_name_are_told_apart() {
        let paths = ["a/run", "b/run/", "b/other"].map(PathBuf::from);
        assert_eq!(names_apart(&paths), ["a/run", "b/run", "other"]);
        assert_eq!(names_apart(&paths[1..]), ["run", "other"]);
    }
}
