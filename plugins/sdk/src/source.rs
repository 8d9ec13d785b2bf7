//! Where examples come from: a folder of the user's, or the records embedded in the plugin.

use crate::json_array::JsonArray;
use crate::json_lines::JsonLines;
use crate::record::Record;
use crate::{Error, Example, Examples, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// A stream of records.
pub type Records = Box<dyn Iterator<Item = Result<Record>> + Send>;

/// What to read.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct Source {
    /// The task's data folder; absent for the records embedded in the plugin.
    pub folder: Option<PathBuf>,
    /// The split.
    pub split: String,
    /// Seed of what is generated.
    pub seed: u64,
    #[serde(skip)]
    opened: Arc<Mutex<Vec<PathBuf>>>,
}

/// The examples that `read` makes of each record, in order. After an error the stream ends.
pub fn examples<F>(records: Records, mut read: F) -> Examples
where
    F: FnMut(&Record) -> Result<Vec<Example>> + Send + 'static,
{
    let mut failed = false;
    let read = move |record: Result<Record>| {
        let (examples, error) = match record.and_then(|r| read(&r)) {
            Ok(examples) => (examples, None),
            Err(e) => (Vec::new(), Some(e)),
        };
        examples.into_iter().map(Ok).chain(error.map(Err))
    };
    Box::new(records.flat_map(read).take_while(move |item| !std::mem::replace(&mut failed, item.is_err())))
}

/// The plain format's file name.
pub const PLAIN: &str = "{split}.jsonl";

const SUFFIXES: [&str; 3] = ["", ".zst", ".gz"];

impl Source {
    /// The records embedded in the plugin.
    pub fn sample() -> Self {
        Self { split: "sample".into(), ..Self::default() }
    }

    /// A split of a folder.
    pub fn folder(folder: impl Into<PathBuf>, split: &str) -> Self {
        Self { folder: Some(folder.into()), split: split.into(), ..Self::default() }
    }

    /// Whether `name` is the split or another usual name of it (`validation`, `val`, `valid`, `dev`).
    pub fn is_split(&self, name: &str) -> bool {
        split_names(&self.split).contains(&name)
    }

    /// The first of `patterns` that exists in the folder, each also as `.zst` and `.gz`; `{split}` stands for the
    /// split or another usual name of it (see [`Source::is_split`]). A pattern that ends with `/` is a folder.
    ///
    /// # Errors
    /// A folder that is missing, or that has no such file: the message lists the splits it has.
    pub fn locate(&self, patterns: &[&str]) -> Result<PathBuf> {
        let Some(folder) = &self.folder else {
            return Err(Error::bad_request("the embedded sample has no files"));
        };
        if !folder.is_dir() {
            return Err(Error::io(format!("no data folder {}", folder.display())));
        }
        for pattern in patterns {
            for split in split_names(&self.split) {
                for suffix in SUFFIXES {
                    let path = folder.join(pattern.replace("{split}", split) + suffix);
                    if path.exists() {
                        if path.is_file() {
                            self.note(&path);
                        }
                        return Ok(path);
                    }
                }
            }
        }
        let wanted: Vec<_> = patterns.iter().map(|p| p.replace("{split}", &self.split)).collect();
        let wanted = wanted.join(" or ");
        if !patterns.iter().any(|p| p.contains("{split}")) {
            return Err(Error::io(format!("{} has no {wanted}", folder.display())));
        }
        let found: Vec<_> = splits_in(folder, patterns).into_iter().collect();
        let found = if found.is_empty() {
            "none of its splits is there".to_owned()
        } else {
            format!("splits found: {}", found.join(", "))
        };
        Err(Error::io(format!("{} has no split `{}`; {found}", folder.display(), self.split))
            .with_help(format!("expected {wanted} (also .zst or .gz)")))
    }

    /// Remembers a file that was read, for the run's manifest.
    pub fn note(&self, path: &Path) {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if !opened.iter().any(|p| p == path) {
            opened.push(path.to_owned());
        }
    }

    /// Files read so far.
    pub fn opened_files(&self) -> Vec<PathBuf> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The records of the first of `patterns` that exists (see [`Source::locate`]), or of `sample`, a JSON Lines
    /// text that is part of the plugin.
    ///
    /// # Errors
    /// As [`Source::locate`] and [`Source::read`].
    pub fn records(&self, patterns: &[&str], sample: &'static str) -> Result<Records> {
        if self.folder.is_none() {
            return Ok(Box::new(JsonLines::embedded("embedded sample", sample)));
        }
        self.read(&self.locate(patterns)?)
    }

    /// The records of a file. A `.json` file is one array, anything else JSON Lines.
    ///
    /// # Errors
    /// A file that cannot be opened, or that is empty. A broken record is an error item.
    pub fn read(&self, path: &Path) -> Result<Records> {
        self.note(path);
        let records: Records = if bare_name(path).ends_with(".json") {
            Box::new(JsonArray::open(path)?)
        } else {
            Box::new(JsonLines::open(path)?)
        };
        let mut records = records.peekable();
        if records.peek().is_none() {
            return Err(Error::io(format!("{} is empty", path.display())));
        }
        Ok(Box::new(records))
    }
}

/// A file's name without `.zst` or `.gz`; empty where it is not UTF-8.
pub fn bare_name(path: &Path) -> &str {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    SUFFIXES[1..].iter().find_map(|s| name.strip_suffix(s)).unwrap_or(name)
}

/// Usual names of one split, the one asked for first.
fn split_names(split: &str) -> Vec<&str> {
    const VALIDATION: [&str; 4] = ["validation", "val", "valid", "dev"];
    let mut names = vec![split];
    if VALIDATION.contains(&split) {
        names.extend(VALIDATION.into_iter().filter(|n| *n != split));
    }
    names
}

/// Splits that files of `folder` are named after.
fn splits_in(folder: &Path, patterns: &[&str]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for pattern in patterns {
        let Some((before, after)) = pattern.split_once("{split}") else { continue };
        let (inside, prefix) = before
            .rsplit_once('/')
            .map_or((folder.to_owned(), before), |(dir, name)| (folder.join(dir), name));
        // `{split}/file.csv`: a folder is a split if it has that file
        let (end, rest) = after.split_once('/').map_or((after, None), |(end, rest)| (end, Some(rest)));
        let Ok(entries) = std::fs::read_dir(inside) else { continue };
        for entry in entries.flatten() {
            if rest.is_some_and(|rest| !entry.path().is_dir() || !entry.path().join(rest).exists()) {
                continue;
            }
            let name = entry.file_name().to_string_lossy().into_owned();
            let bare = SUFFIXES[1..].iter().find_map(|s| name.strip_suffix(s)).unwrap_or(&name);
            let split = bare.strip_prefix(prefix).and_then(|name| name.strip_suffix(end));
            if let Some(split) = split.filter(|s| !s.is_empty()) {
                found.insert(split.to_owned());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_by_usual_names() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("val.jsonl.gz"), "").unwrap();
        std::fs::write(dir.path().join("train.jsonl"), "").unwrap();
        let at = |split| Source::folder(dir.path(), split).locate(&[PLAIN]);
        assert!(at("validation").unwrap().ends_with("val.jsonl.gz"));
        assert!(at("train").unwrap().ends_with("train.jsonl"));
        let error = at("test").unwrap_err();
        assert!(error.message.contains("no split `test`; splits found: train, val"), "{error}");
        assert!(error.help.contains("test.jsonl"), "{}", error.help);
    }

    #[test]
    fn folders_can_be_splits() {
        let dir = tempfile::tempdir().unwrap();
        for split in ["ALL/train", "ALL/dev", "ALL/bare"] {
            std::fs::create_dir_all(dir.path().join(split)).unwrap();
        }
        std::fs::write(dir.path().join("ALL/train/a.csv.gz"), "x").unwrap();
        std::fs::write(dir.path().join("ALL/readme.txt"), "x").unwrap();
        let source = Source::folder(dir.path(), "val");
        assert!(source.locate(&[PLAIN, "ALL/{split}/"]).unwrap().ends_with("ALL/dev"));
        assert!(source.opened_files().is_empty(), "a folder is no file that was read");
        let error = Source::folder(dir.path(), "test").locate(&["ALL/{split}/"]).unwrap_err();
        assert!(error.message.ends_with("splits found: bare, dev, train"), "{error}");
        let train = Source::folder(dir.path(), "train");
        assert!(train.locate(&["ALL/{split}/a.csv"]).unwrap().ends_with("a.csv.gz"));
        let error = source.locate(&["x.csv", "y.csv"]).unwrap_err();
        assert!(error.message.ends_with("has no x.csv or y.csv"), "{error}");
        assert!(source.is_split("dev") && !source.is_split("train"));
    }

    #[test]
    fn a_record_gives_any_number_of_examples_and_an_error_ends_them() {
        let lines = "{\"n\":2}\n{\"n\":0}\n{\"n\":1}\n{}\n{\"n\":1}\n";
        let records = Box::new(JsonLines::embedded("lines", lines));
        let read = |r: &Record| {
            let n = r.value["n"].as_u64().ok_or_else(|| r.error("no n"))?;
            Ok(vec![Example::default(); n as usize])
        };
        let got: Vec<_> = examples(records, read).collect();
        assert_eq!(got.len(), 4);
        assert!(got[..3].iter().all(Result::is_ok));
        assert_eq!(got[3].as_ref().unwrap_err().message, "lines, line 4: no n");
    }

    #[test]
    fn an_empty_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("test.jsonl"), "\n").unwrap();
        let source = Source::folder(dir.path(), "test");
        assert!(source.records(&[PLAIN], "").err().unwrap().message.ends_with("test.jsonl is empty"));
        assert_eq!(source.opened_files().len(), 1);
    }
}
