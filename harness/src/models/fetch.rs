//! Making a model's files present and checked.

use super::catalogue::{Catalogue, Entry, FileSpec, Kind};
use super::error::{Attempt, ModelError, Unavailable};
use super::install::{Failure, Target};
use super::progress::{Meter, Progress};
use super::sources::{Session, remove_hub_folder};
use super::verify::{FileState, Verifier};
use e2llm_backend::{CancelFlag, ModelFiles};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where models are looked for and kept.
#[derive(Debug, Clone)]
pub struct FetchSettings {
    /// The cache: files are kept in `<cache>/models/<name>/`.
    pub cache: PathBuf,
    /// A folder with models, asked first and never written: `<local>/<name>/<file>` or `<local>/<file>`.
    pub local: Option<PathBuf>,
    /// Refuse sources that need a network.
    pub offline: bool,
    /// No progress and no notes on stderr.
    pub quiet: bool,
    /// The Python interpreter whose pip is used.
    pub python: PathBuf,
    /// The model hub's address; `None` for the hub client's default (`HF_ENDPOINT`).
    pub hub_endpoint: Option<String>,
    /// Looked at while downloading and waiting.
    pub cancel: CancelFlag,
}

impl FetchSettings {
    /// From the environment: `E2LLM_CACHE` (default: the platform's cache folder), `E2LLM_MODELS_DIR`.
    ///
    /// # Errors
    /// [`ModelError::NoCache`].
    pub fn from_env() -> Result<Self, ModelError> {
        let folder = |key: &str| std::env::var_os(key).filter(|v| !v.is_empty()).map(PathBuf::from);
        let cache = folder("E2LLM_CACHE")
            .or_else(|| dirs::cache_dir().map(|d| d.join("e2llm-bench")))
            .ok_or(ModelError::NoCache)?;
        Ok(Self { local: folder("E2LLM_MODELS_DIR"), ..Self::with_cache(cache) })
    }

    /// Defaults with this cache, whatever the environment says.
    pub fn with_cache(cache: impl Into<PathBuf>) -> Self {
        Self {
            cache: cache.into(),
            local: None,
            offline: false,
            quiet: false,
            python: "python3".into(),
            hub_endpoint: None,
            cancel: CancelFlag::default(),
        }
    }
}

/// Finds, fetches and checks models.
#[derive(Debug, Clone)]
pub struct Fetcher {
    pub(super) catalogue: Catalogue,
    pub(super) settings: FetchSettings,
    pub(super) verifier: Verifier,
    progress: Progress,
}

impl Fetcher {
    /// A fetcher of the catalogue's models.
    pub fn new(catalogue: Catalogue, settings: FetchSettings) -> Self {
        let verifier = Verifier::new(&settings.cache);
        let progress = Progress::new(settings.quiet);
        Self { catalogue, settings, verifier, progress }
    }

    /// The catalogue.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// Makes all files of a catalogue entry present and checked; does nothing where they are.
    ///
    /// A model of kind `e2llm` fetches its base models; without files of its own it has no `checkpoint`, which
    /// means adapter and LoRA are initialised by the backend.
    ///
    /// # Errors
    /// An unknown name; no source that gives the right bytes; a full disk; an interrupt.
    pub fn fetch(&self, name: &str) -> Result<ModelFiles, ModelError> {
        let entry = self.catalogue.get(name)?;
        let mut files = ModelFiles { name: name.to_owned(), window: entry.window, ..ModelFiles::default() };
        match entry.kind {
            Kind::Encoder => files.encoder = Some(self.fetch_files(name, entry)?),
            Kind::Decoder => {
                let folder = self.fetch_files(name, entry)?;
                files.decoder = Some(match entry.gguf() {
                    Some(file) => folder.join(file),
                    None => folder,
                });
            }
            Kind::E2llm => {
                if !entry.files.is_empty() {
                    files.checkpoint = Some(self.fetch_files(name, entry)?);
                }
                if let Some(encoder) = &entry.encoder {
                    files.encoder = self.fetch(encoder)?.encoder;
                }
                if let Some(decoder) = &entry.decoder {
                    let decoder = self.fetch(decoder)?;
                    files.window = entry.window.or(decoder.window);
                    files.decoder = decoder.decoder;
                }
            }
        }
        Ok(files)
    }

    /// The folder of a model in the cache.
    pub(super) fn cached(&self, name: &str) -> PathBuf {
        self.settings.cache.join("models").join(name)
    }

    /// The folder that holds all files, after fetching what is missing.
    fn fetch_files(&self, name: &str, entry: &Entry) -> Result<PathBuf, ModelError> {
        if let Some(local) = &self.settings.local {
            let folder = local.join(name);
            if folder.is_dir() && self.lacking(&folder, entry)?.is_empty() {
                return Ok(folder);
            }
        }
        let folder = self.cached(name);
        if self.lacking(&folder, entry)?.is_empty() {
            return Ok(folder);
        }
        fs::create_dir_all(&folder).map_err(|e| ModelError::io("create folder", &folder, 0, e))?;
        let target = Target { model: name, folder: folder.clone(), cancel: &self.settings.cancel };
        let lock = self.lock(&target)?;
        if lock.is_some() {
            target.remove_leftovers();
        }
        // Again: another process may have fetched them while we waited.
        let mut sessions: Vec<_> = entry.sources.iter().map(Session::new).collect();
        for (spec, state) in self.lacking(&folder, entry)? {
            self.fetch_file(spec, &state, &target, &mut sessions)?;
        }
        remove_hub_folder(&target);
        self.progress.say(&format!("model {name} is in {}", folder.display()));
        Ok(folder)
    }

    /// The files that are not as the catalogue says, and how they are.
    fn lacking<'a>(
        &self,
        folder: &Path,
        entry: &'a Entry,
    ) -> Result<Vec<(&'a FileSpec, FileState)>, ModelError> {
        let mut lacking = Vec::new();
        for spec in &entry.files {
            let path = folder.join(&spec.name);
            let state = self.verifier.check(&path, spec).map_err(|e| ModelError::io("read", &path, 0, e))?;
            if state != FileState::Verified {
                lacking.push((spec, state));
            }
        }
        Ok(lacking)
    }

    /// Tries the sources in order.
    fn fetch_file(
        &self,
        spec: &FileSpec,
        state: &FileState,
        target: &Target<'_>,
        sessions: &mut [Session<'_>],
    ) -> Result<(), ModelError> {
        let mut attempts = Vec::new();
        let mut tried = |source: String, done: Result<(), Failure>| match done {
            Ok(()) => Ok(true),
            Err(Failure::Fatal(error)) => Err(error),
            Err(Failure::Source(reason)) => {
                attempts.push(Attempt { source, reason });
                Ok(false)
            }
        };
        if let FileState::Corrupt(reason) = state {
            self.progress.say(&format!("`{}` in the cache {reason}; fetching it again", spec.name));
            tried("cache".into(), Err(Failure::Source(reason.clone())))?;
        }
        if let Some(local) = &self.settings.local {
            let source = format!("local folder {}", local.display());
            if tried(source, from_local(local, spec, target))? {
                return Ok(());
            }
        }
        for session in sessions {
            target.check_cancelled()?;
            let source = session.source.to_string();
            if tried(source, session.provide(spec, target, &self.settings, self.progress))? {
                return Ok(());
            }
        }
        if attempts.is_empty() {
            attempts.push(Attempt { source: "cache".into(), reason: "no such file".into() });
        }
        Err(ModelError::Unavailable(Box::new(Unavailable {
            model: target.model.to_owned(),
            file: spec.name.clone(),
            size: spec.size,
            sha256: spec.sha256.clone(),
            folder: target.folder.clone(),
            offline: self.settings.offline,
            attempts,
        })))
    }

    /// Waits until no other process fetches this model. `None` where the file system has no locks: part files
    /// have names of their own, so that the worst is fetching twice.
    fn lock(&self, target: &Target<'_>) -> Result<Option<File>, ModelError> {
        let path = target.folder.with_file_name(format!("{}.lock", target.model));
        let file = File::create(&path).map_err(|e| ModelError::io("create", &path, 0, e))?;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(file)),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => {
                    tracing::debug!(%error, path = %path.display(), "no lock");
                    return Ok(None);
                }
            }
            if !told {
                self.progress.say(&format!("waiting for another process that fetches {}", target.model));
                told = true;
            }
            target.check_cancelled()?;
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Copies a file from the local folder.
fn from_local(local: &Path, spec: &FileSpec, target: &Target<'_>) -> Result<(), Failure> {
    if !local.is_dir() {
        return Err(Failure::Source("no such folder".into()));
    }
    let mut reasons = Vec::new();
    for path in [local.join(target.model).join(&spec.name), local.join(&spec.name)] {
        let Ok(mut file) = File::open(&path) else { continue };
        match target.install(spec, &mut file, &Meter::hidden()) {
            Err(Failure::Source(reason)) => reasons.push(format!("`{}` {reason}", path.display())),
            done => return done,
        }
    }
    Err(Failure::Source(if reasons.is_empty() {
        format!("neither `{}/{1}` nor `{1}` is there", target.model, spec.name)
    } else {
        reasons.join("; ")
    }))
}
