//! Where plugins are looked for, and what is there.

use super::identity;
use crate::config::DataChoice;
use crate::declared::{Declared, is_declared};
use crate::failure::{Failure, Result, did_you_mean};
use e2llm_plugin::client::TaskClient;
use e2llm_plugin::{Identity, Kind, TaskOptions};
use std::collections::{BTreeMap, BTreeSet};
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
    /// Declared tasks by id.
    declared: BTreeMap<String, Declared>,
    /// Libraries and folders that cannot be used.
    pub rejected: Vec<Rejected>,
    /// Folders that were searched.
    pub searched: Vec<PathBuf>,
}

/// Where a task comes from.
#[derive(Debug, Clone, Copy)]
pub enum FoundTask<'a> {
    /// A plugin.
    Library(&'a Candidate),
    /// A file.
    Declared(&'a Declared),
}

impl FoundTask<'_> {
    /// A client of the task, and the version of its plugin or file.
    ///
    /// # Errors
    /// A library that cannot be loaded; options that the task does not take.
    pub fn open(&self, options: &TaskOptions) -> Result<(TaskClient, String)> {
        match self {
            Self::Library(candidate) => {
                let plugin = candidate.load()?;
                let client = TaskClient::create(&plugin, Some(&super::HOST), options)
                    .map_err(|e| Box::<Failure>::from(e).within(format!("task `{}`", plugin.id())))?;
                Ok((client, plugin.version().to_owned()))
            }
            Self::Declared(declared) => {
                options
                    .only(&[])
                    .map_err(|e| Box::<Failure>::from(e).within(format!("task `{}`", declared.id)))?;
                Ok((declared.client()?, declared.version.clone()))
            }
        }
    }

    /// Its library or file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Library(candidate) => &candidate.path,
            Self::Declared(declared) => &declared.path,
        }
    }

    /// Where its data is when the user names none: what a file says. A file has no records of its own.
    ///
    /// # Errors
    /// A declared task without a data folder.
    pub fn data(&self, choice: DataChoice) -> Result<DataChoice> {
        match (self, choice) {
            (Self::Declared(declared), DataChoice::Sample) => match &declared.folder {
                Some(folder) => Ok(DataChoice::Folder(folder.clone())),
                None => Err(Failure::usage(format!("task `{}` has no sample records", declared.id))
                    .help("name its data with --data DIR, or with `folder` under [source] in its file")),
            },
            (_, choice) => Ok(choice),
        }
    }
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
            if dedicated && is_declared(&path) {
                match Declared::read(&path) {
                    Ok(declared) => self.declare(declared),
                    Err(e) => self.rejected.push(Rejected { path, why: format!("is no task file: {e}") }),
                }
                continue;
            }
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

    /// Adds a declared task; of two with one id none can be meant.
    fn declare(&mut self, declared: Declared) {
        if let Some(first) = self.declared.get(&declared.id).filter(|d| d.path != declared.path) {
            let why = format!("declares task `{}`, as {} does", declared.id, first.path.display());
            self.rejected.push(Rejected { path: declared.path, why });
            return;
        }
        self.declared.insert(declared.id.clone(), declared);
    }

    /// The id of a task that is named by its id or by the path of its `.toml` file, which is read.
    ///
    /// # Errors
    /// A file that is missing or has a mistake, or whose id another task has.
    pub fn task_named(&mut self, name: &str) -> Result<String> {
        if !name.ends_with(".toml") {
            return Ok(name.to_owned());
        }
        let declared = Declared::read(Path::new(name))?;
        let id = declared.id.clone();
        let other = self.declared.get(&id).map(|d| d.path.clone());
        let same = |path: &Path| path.canonicalize().ok() == declared.path.canonicalize().ok();
        if let Some(other) = other.filter(|path| !same(path)) {
            let message = format!("task `{id}` is declared twice: {} and {name}", other.display());
            return Err(Failure::usage(message).help("give one of them another id"));
        }
        self.declared.insert(id.clone(), declared);
        self.task(&id)?;
        Ok(id)
    }

    /// Ids of all tasks, plugins and declared ones, in order.
    pub fn task_ids(&self) -> Vec<&str> {
        let ids: BTreeSet<&str> =
            self.ids(Kind::Task).chain(self.declared.keys().map(String::as_str)).collect();
        ids.into_iter().collect()
    }

    /// Declared tasks in order of their ids.
    pub fn declared(&self) -> impl Iterator<Item = &Declared> {
        self.declared.values()
    }

    /// The task of an id.
    ///
    /// # Errors
    /// As [`Index::get`]; an id that a library and a file have.
    pub fn task(&self, id: &str) -> Result<FoundTask<'_>> {
        let libraries = self.candidates.get(&(Kind::Task, id.to_owned()));
        match (self.declared.get(id), libraries.and_then(|all| all.first())) {
            (Some(declared), None) => Ok(FoundTask::Declared(declared)),
            (Some(declared), Some(library)) => Err(Failure::usage(format!(
                "task `{id}` is there twice: {} and {}",
                library.path.display(),
                declared.path.display()
            ))
            .help("give the declared one another id")),
            (None, Some(_)) => self.get(Kind::Task, id).map(FoundTask::Library),
            (None, None) => Err(self.unknown(Kind::Task.name(), id, self.task_ids().into_iter())),
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
