//! Errors that cross the plugin boundary.

use e2llm_plugin_abi as abi;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What kind of failure it is: the status that crosses the boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is unusable: an unknown option, a missing field.
    BadRequest,
    /// No such method.
    NotImplemented,
    /// A file could not be read.
    Io,
    /// The host asked to stop.
    Cancelled,
    /// The plugin failed.
    Plugin,
    /// The plugin panicked.
    Panicked,
}

impl ErrorCode {
    /// The status of the ABI.
    pub const fn status(self) -> i32 {
        match self {
            Self::BadRequest => abi::E2_BAD_REQUEST,
            Self::NotImplemented => abi::E2_NOT_IMPLEMENTED,
            Self::Io => abi::E2_IO,
            Self::Cancelled => abi::E2_CANCELLED,
            Self::Plugin => abi::E2_PLUGIN_ERROR,
            Self::Panicked => abi::E2_PANICKED,
        }
    }

    /// The code of a status of the ABI; unknown ones count as the plugin's failure.
    pub const fn from_status(status: i32) -> Self {
        match status {
            abi::E2_BAD_REQUEST => Self::BadRequest,
            abi::E2_NOT_IMPLEMENTED => Self::NotImplemented,
            abi::E2_IO => Self::Io,
            abi::E2_CANCELLED => Self::Cancelled,
            abi::E2_PANICKED => Self::Panicked,
            _ => Self::Plugin,
        }
    }
}

/// A failure, with what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Error {
    /// What kind.
    pub code: ErrorCode,
    /// What is wrong and where: file, line, field.
    pub message: String,
    /// What to do; may be empty.
    #[serde(default)]
    pub help: String,
}

impl Error {
    /// An error of the given kind.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), help: String::new() }
    }

    /// An unusable request or record.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::BadRequest, message)
    }

    /// An option of a task that makes no sense.
    pub fn option(name: &str, what: impl fmt::Display) -> Self {
        Self::bad_request(format!("task option `{name}`: {what}"))
    }

    /// A file that could not be read.
    pub fn io(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Io, message)
    }

    /// The plugin's own failure.
    pub fn plugin(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Plugin, message)
    }

    /// Adds what to do.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = help.into();
        self
    }

    /// Puts where it happened before the message.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
