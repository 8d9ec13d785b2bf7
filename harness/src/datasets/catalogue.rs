//! The catalogue of benchmark data: where a task's files come from, under which licence.

use crate::config::parse_toml;
use crate::failure::{Failure, Result, did_you_mean};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Component, Path};

/// The catalogue that is built in.
const BUILT_IN: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/data.toml"));

/// A task's data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataEntry {
    /// One line.
    pub description: String,
    /// Name of the licence, and what it does not cover.
    pub licence: String,
    /// Where the licence or the terms stand.
    pub licence_url: String,
    /// Paper or page to cite.
    pub citation: String,
    /// What a user has to do besides; usually empty.
    #[serde(default)]
    pub note: String,
    /// What is fetched.
    pub downloads: Vec<DownloadSpec>,
}

/// One file to fetch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DownloadSpec {
    /// Where it belongs in the task's folder; of an archive, its name in the cache. May contain `/`.
    pub name: String,
    /// A plain address.
    pub url: Option<String>,
    /// Or a file of a model hub's data set.
    pub hub: Option<HubData>,
    /// Bytes, where known.
    pub size: Option<u64>,
    /// Lower-case hexadecimal, where known.
    pub sha256: Option<String>,
    /// Where it is an archive: what is taken out of it.
    pub unpack: Option<Unpack>,
}

/// A file of a data set on a model hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubData {
    /// `owner/name`.
    pub repo: String,
    /// A commit, or `main` where none is known.
    pub revision: String,
    /// The file in the repository.
    pub file: String,
}

/// How an archive becomes files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unpack {
    /// Its form.
    pub form: ArchiveForm,
    /// The folder of the archive whose files are taken; all where it is empty.
    #[serde(default)]
    pub folder: String,
    /// Of these files, only these; all where it is empty.
    #[serde(default)]
    pub only: Vec<String>,
}

/// Forms of archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ArchiveForm {
    /// `.zip`.
    #[serde(rename = "zip")]
    Zip,
    /// `.tar.gz`.
    #[serde(rename = "tar.gz")]
    TarGz,
}

impl DownloadSpec {
    /// Its source in words.
    pub fn source(&self) -> String {
        match (&self.url, &self.hub) {
            (Some(url), _) => url.clone(),
            (None, Some(hub)) => format!("hub data set {}, {} at {}", hub.repo, hub.file, hub.revision),
            (None, None) => String::new(),
        }
    }

    fn check(&self) -> std::result::Result<(), String> {
        if !is_plain_relative(&self.name) {
            return Err(format!("name `{}` must be relative, without `..`", self.name));
        }
        match (&self.url, &self.hub) {
            (None, None) => return Err(format!("`{}` has neither `url` nor `hub`", self.name)),
            (Some(_), Some(_)) => return Err(format!("`{}` has both `url` and `hub`", self.name)),
            (Some(url), None) if !is_https_or_local(url) => {
                return Err(format!("`{}`: {url} does not begin with https://", self.name));
            }
            _ => {}
        }
        let hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        match &self.sha256 {
            Some(sha) if sha.len() != 64 || !sha.bytes().all(hex) => {
                Err(format!("sha256 of `{}` must be 64 lower-case hexadecimal digits", self.name))
            }
            _ => Ok(()),
        }
    }
}

/// Plain HTTP is for this machine only: what has no checksum must come from whom it says.
fn is_https_or_local(url: &str) -> bool {
    url.starts_with("https://") || url.starts_with("http://127.0.0.1") || url.starts_with("http://localhost")
}

pub(super) fn is_plain_relative(name: &str) -> bool {
    !name.is_empty() && Path::new(name).components().all(|c| matches!(c, Component::Normal(_)))
}

/// All known data.
#[derive(Debug, Clone)]
pub struct DataCatalogue {
    entries: BTreeMap<String, DataEntry>,
}

impl DataCatalogue {
    /// The built-in entries, then those of a file of the same form, which replace others of their name.
    ///
    /// # Errors
    /// A file that cannot be read or has a mistake, with its line.
    pub fn load(extra: Option<&Path>) -> Result<Self> {
        let mut all = Self { entries: BTreeMap::new() };
        all.add("configs/data.toml (built in)", BUILT_IN)?;
        if let Some(path) = extra {
            let text = std::fs::read_to_string(path)
                .map_err(|e| Failure::usage(format!("cannot read data catalogue {}: {e}", path.display())))?;
            all.add(&path.display().to_string(), &text)?;
        }
        Ok(all)
    }

    fn add(&mut self, name: &str, text: &str) -> Result<()> {
        let new: BTreeMap<String, toml::Spanned<DataEntry>> = parse_toml("data catalogue", name, text)?;
        for (task, entry) in new {
            let span = entry.span();
            let entry = entry.into_inner();
            let mistake = |m: String| {
                Failure::usage(format!("data catalogue {name}: `{task}`: {m}")).at(name, text, span.clone())
            };
            if !is_plain_relative(&task) || task.contains('/') {
                return Err(mistake("cannot name a task".into()));
            }
            if entry.downloads.is_empty() {
                return Err(mistake("no `downloads`".into()));
            }
            for download in &entry.downloads {
                download.check().map_err(mistake)?;
            }
            self.entries.insert(task, entry);
        }
        Ok(())
    }

    /// The data of a task.
    ///
    /// # Errors
    /// A task without an entry, with the nearest one.
    pub fn get(&self, task: &str) -> Result<&DataEntry> {
        self.entries.get(task).ok_or_else(|| {
            let near = did_you_mean(task, self.entries.keys().map(String::as_str));
            let known = format!("there is data for: {}", self.names().collect::<Vec<_>>().join(", "));
            let help = if near.is_empty() { known } else { near };
            Failure::usage(format!("no source of data for task `{task}` is known")).help(help)
        })
    }

    /// Tasks in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }
}
