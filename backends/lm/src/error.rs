//! Errors of loading and running models.

use std::fmt;
use std::path::{Path, PathBuf};

/// Result of this crate's loading and running functions.
pub type Result<T> = std::result::Result<T, LmError>;

/// What can go wrong with a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LmError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file's content is damaged or not what it should be.
    #[error("{}: {message}", path.display())]
    File {
        /// Which file or folder.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A file's tensors do not fit the configuration.
    #[error("{}: {problems}", path.display())]
    Tensors {
        /// Which file or folder.
        path: PathBuf,
        /// All that does not fit.
        problems: TensorProblems,
    },
    /// A configuration or file of a kind this crate has no code for.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// Text could not be tokenised or decoded.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A chat template does not parse, or refuses its messages.
    #[error("chat template: {0}")]
    Template(String),
    /// A setting that this build or crate does not have; the message says which there are.
    #[error("{0}")]
    Setting(String),
    /// A call's arguments make no sense together.
    #[error("{0}")]
    Input(String),
    /// A prompt that does not fit the decoder's window.
    #[error("the prompt has {prompt} positions, the decoder's window {window}")]
    TooLong {
        /// Positions of the prompt.
        prompt: usize,
        /// Positions the decoder reads.
        window: usize,
    },
    /// Stopped on request.
    #[error("interrupted")]
    Cancelled,
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl LmError {
    pub(crate) fn file(path: &Path, message: impl fmt::Display) -> Self {
        Self::File { path: path.to_owned(), message: message.to_string() }
    }

    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }
}

/// Everything in which tensors differ from what a configuration asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TensorProblems {
    /// Names that are not there.
    pub missing: Vec<String>,
    /// Names nobody asks for.
    pub unexpected: Vec<String>,
    /// Tensors of another shape or element type: name, and what it is against what it should be.
    pub mismatched: Vec<(String, String)>,
}

impl TensorProblems {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.mismatched.is_empty()
    }
}

impl fmt::Display for TensorProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("its tensors do not fit the configuration")?;
        for (what, names) in [("missing", &self.missing), ("unexpected", &self.unexpected)] {
            if !names.is_empty() {
                write!(f, "; {} {what}: {}", names.len(), names.join(", "))?;
            }
        }
        if !self.mismatched.is_empty() {
            let all: Vec<_> = self.mismatched.iter().map(|(name, how)| format!("{name} {how}")).collect();
            write!(f, "; {} mismatched: {}", all.len(), all.join(", "))?;
        }
        Ok(())
    }
}
