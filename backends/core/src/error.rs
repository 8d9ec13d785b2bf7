//! Errors of a single request.

use serde::{Deserialize, Serialize};

/// What kind of failure it is; the runner acts on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The device's memory is exhausted: the runner tries again with a smaller batch.
    OutOfMemory,
    /// The prompt does not fit the window and the method does not shorten it.
    ContextTooLong,
    /// The backend cannot do what was asked (e.g. log-likelihoods).
    Unsupported,
    /// Interrupted by the user; the sample is redone on resume.
    Cancelled,
    /// The request itself is unusable (e.g. an empty prompt).
    BadRequest,
    /// Anything else.
    Failed,
}

/// A failed request. Other requests of the batch are not affected.
#[derive(Debug, Clone, PartialEq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct BackendError {
    /// What kind of failure.
    pub kind: ErrorKind,
    /// What happened, as a sentence fragment.
    pub message: String,
}

impl BackendError {
    /// An error of the given kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// An error from any error, sources included: of kind [`ErrorKind::OutOfMemory`] where it says so, else [`ErrorKind::Failed`].
    pub fn failed(error: &(dyn std::error::Error + 'static)) -> Self {
        let mut message = without_backtrace(&error.to_string());
        let mut source = error.source();
        while let Some(s) = source {
            let cause = without_backtrace(&s.to_string());
            // some errors tell their source themselves
            if !message.ends_with(&cause) {
                message.push_str(": ");
                message.push_str(&cause);
            }
            source = s.source();
        }
        if !is_out_of_memory(&message) {
            return Self::new(ErrorKind::Failed, message);
        }
        let told = "out of memory: fewer samples at once, a shorter context or bf16 take less";
        Self::new(ErrorKind::OutOfMemory, format!("{told} ({message})"))
    }

    /// The error of a request that a backend passed over.
    pub fn unanswered() -> Self {
        Self::new(ErrorKind::Failed, "the backend gave no answer to this request")
    }

    /// The error of an interrupted request.
    pub fn cancelled() -> Self {
        Self::new(ErrorKind::Cancelled, "interrupted")
    }
}

/// Where `RUST_BACKTRACE` is set, tensor errors end in their backtraces: frames from `0: ` on.
fn without_backtrace(message: &str) -> String {
    let lines = message.lines().take_while(|line| !line.trim_start().starts_with("0: "));
    lines.collect::<Vec<_>>().join("\n")
}

/// CUDA reports exhaustion only by its error's name.
fn is_out_of_memory(message: &str) -> bool {
    let m = message.to_ascii_lowercase();
    m.contains("out_of_memory") || m.contains("out of memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exhausted_memory_is_known_and_no_backtrace_is_told() {
        let text = "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")\n   0: <unknown>\n   1: main\n";
        let error = BackendError::failed(&std::io::Error::other(text));
        assert_eq!(error.kind, ErrorKind::OutOfMemory);
        assert!(error.message.starts_with("out of memory: fewer samples at once"), "{error}");
        assert!(
            error.message.ends_with("(DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\"))"),
            "{error}"
        );
        let error = BackendError::failed(&std::io::Error::other("two\nlines"));
        assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Failed, "two\nlines"));
    }
}
