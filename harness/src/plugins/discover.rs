//! Where plugins are looked for, and what is there.

use super::identity;
use crate::failure::{Failure, Result, did_you_mean};
use e2llm_plugin::{Identity, Kind};
use std::collections::BTreeMap;
use std::env::consts::DLL_SUFFIX;
use std::path::{Path, PathBuf};

/// A folder to look in, and whether what is no plugin there is worth a word.
#[derive(Debug, Clone)]
pub struct SearchPath {
    /// The folder.
    pub folder: PathBuf,
    /// Named by the user for plugins: every unusable library in it is reported.
    pub dedicated: bool,
}

/// A plugin that could be loaded.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Its library.
    pub path: PathBuf,
    /// What its file says.
    pub identity: Identity,
}

/// A library that cannot be used.
#[derive(Debug, Clone)]
pub struct Rejected {
    /// The file or folder.
    pub path: PathBuf,
    /// Why, as a fragment after its name.
    pub why: String,
}

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct Index {
    candidates: BTreeMap<(Kind, String), Vec<Candidate>>,
    /// Libraries and folders that cannot be used.
    pub rejected: Vec<Rejected>,
    /// Folders that were searched.
    pub searched: Vec<PathBuf>,
}

impl SearchPath {
    /// The folders in order: `--plugin-dir`, `E2LLM_PLUGIN_PATH`, `plugins/` beside the executable (also in the
    /// installed layout, `../lib/e2llm-bench/plugins`), the executable's own folder (a cargo target folder).
    pub fn usual(given: &[PathBuf]) -> Vec<Self> {
        let dedicated = |folder| Self { folder, dedicated: true };
        let mut all: Vec<_> = given.iter().cloned().map(dedicated).collect();
        if let Some(paths) = std::env::var_os("E2LLM_PLUGIN_PATH") {
            all.extend(std::env::split_paths(&paths).filter(|p| !p.as_os_str().is_empty()).map(dedicated));
        }
        let exe = std::env::current_exe().and_then(|p| p.canonicalize());
        if let Some(folder) = exe.ok().as_deref().and_then(Path::parent) {
            for (folder, dedicated) in [
                (folder.join("plugins"), true),
                (folder.join("../lib/e2llm-bench/plugins"), true),
                (folder.to_owned(), false),
            ] {
                if folder.is_dir() {
                    all.push(Self { folder, dedicated });
                }
            }
        }
        all
    }
}

impl Index {
    /// Reads the identities of all libraries in the given folders; runs none of their code.
    ///
    /// # Errors
    /// A folder named by the user that does not exist.
    pub fn scan(paths: &[SearchPath]) -> Result<Self> {
        let mut index = Self::default();
        for path in paths {
            if !path.folder.is_dir() {
                return Err(Failure::usage(format!("no plugin folder {}", path.folder.display())));
            }
            let folder = path.folder.canonicalize().unwrap_or_else(|_| path.folder.clone());
            if index.searched.contains(&folder) {
                continue;
            }
            index.scan_folder(&folder, path.dedicated);
            index.searched.push(folder);
        }
        Ok(index)
    }

    fn scan_folder(&mut self, folder: &Path, dedicated: bool) {
        if let Some(why) = unsafe_to_load_from(folder) {
            self.rejected.push(Rejected { path: folder.to_owned(), why });
            return;
        }
        let mut files: Vec<_> = std::fs::read_dir(folder)
            .map(|entries| entries.flatten().map(|e| e.path()).collect())
            .unwrap_or_default();
        files.sort();
        for path in files {
            if !path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.ends_with(DLL_SUFFIX)) {
                continue;
            }
            let read = if path.is_file() {
                unsafe_to_load_from(&path).map_or_else(|| identity::read(&path), Err)
            } else {
                Err("is no regular file".into())
            };
            match read {
                Ok(Some(identity)) => {
                    let key = (identity.kind, identity.id.clone());
                    self.candidates.entry(key).or_default().push(Candidate { path, identity });
                }
                Ok(None) if dedicated => self.rejected.push(Rejected {
                    path,
                    why: "is no plugin of e2llm-bench: it has no identity section".into(),
                }),
                Ok(None) => {}
                Err(why) => self.rejected.push(Rejected { path, why }),
            }
        }
    }

    /// All plugins of a kind, in order of their ids.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Candidate> {
        self.candidates.iter().filter(move |((k, _), _)| *k == kind).flat_map(|(_, all)| all)
    }

    /// Ids of a kind, in order.
    pub fn ids(&self, kind: Kind) -> impl Iterator<Item = &str> {
        self.candidates.keys().filter(move |(k, _)| *k == kind).map(|(_, id)| id.as_str())
    }

    /// The plugin of an id.
    ///
    /// # Errors
    /// An unknown id, with the nearest one; an id that two libraries have, naming both.
    pub fn get(&self, kind: Kind, id: &str) -> Result<&Candidate> {
        match self.candidates.get(&(kind, id.to_owned())).map(Vec::as_slice) {
            Some([one]) => Ok(one),
            Some([first, second, ..]) => Err(Failure::usage(format!(
                "{} `{id}` is there twice: {} and {}",
                kind.name(),
                first.path.display(),
                second.path.display()
            ))
            .help("remove one of them, or name only one folder with --plugin-dir")),
            _ => Err(self.unknown(kind.name(), id, self.ids(kind))),
        }
    }

    /// The metric plugin that provides a value, e.g. `rouge` for `rougeL+stem`; a plugin's own id also counts.
    ///
    /// # Errors
    /// As [`Index::get`].
    pub fn metric_of(&self, value: &str) -> Result<&Candidate> {
        let all = || self.of_kind(Kind::Metric);
        let provider = all().find(|c| c.identity.id == value || provides(c).any(|p| p == value));
        match provider {
            Some(candidate) => self.get(Kind::Metric, &candidate.identity.id),
            None => {
                let names = all().flat_map(|c| provides(c).chain([c.identity.id.as_str()]));
                Err(self.unknown("metric", value, names))
            }
        }
    }

    fn unknown<'a>(&self, kind: &str, name: &str, known: impl Iterator<Item = &'a str>) -> Box<Failure> {
        let known: Vec<_> = known.collect();
        let mut help = did_you_mean(name, known.iter().copied());
        if known.is_empty() {
            let folders: Vec<_> = self.searched.iter().map(|p| p.display().to_string()).collect();
            help = format!(
                "no {kind} plugins were found in {}: build them with `cargo build --release --workspace`, or name \
                 their folder with --plugin-dir",
                if folders.is_empty() { "any folder".to_owned() } else { folders.join(", ") }
            );
        } else if help.is_empty() {
            help = format!("there are: {}", known.join(", "));
        }
        for r in &self.rejected {
            help.push_str(&format!("\nnot usable: {} {}", r.path.display(), r.why));
        }
        Failure::usage(format!("unknown {kind} `{name}`")).help(help)
    }
}

/// Metric ids a plugin provides.
pub fn provides(candidate: &Candidate) -> impl Iterator<Item = &str> {
    candidate.identity.provides.split_whitespace()
}

/// Why a file or folder must not be loaded from, if so: anybody could have put a library there.
fn unsafe_to_load_from(path: &Path) -> Option<String> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(path).ok()?.permissions().mode();
    let sticky = mode & 0o1000 != 0;
    (mode & 0o002 != 0 && !sticky).then(|| {
        "can be written by every user of this machine: `chmod o-w` it before plugins are loaded from it"
            .into()
    })
}
