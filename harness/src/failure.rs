//! Errors as a user sees them: what is wrong, where, what to do, and the exit code.

use miette::{Diagnostic, NamedSource, SourceSpan};
use std::fmt::Display;

/// What an exit code means; documented in the README.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Everything was done.
    Done = 0,
    /// Something failed.
    Failed = 1,
    /// Usage or configuration is wrong; nothing was started.
    Usage = 2,
    /// Done, but some samples ended in errors.
    SampleErrors = 3,
    /// Interrupted; can be resumed.
    Interrupted = 130,
}

/// An error on its way to the user.
#[derive(Debug, thiserror::Error, Diagnostic)]
#[error("{message}")]
pub struct Failure {
    message: String,
    exit: Exit,
    #[help]
    help: Option<String>,
    #[source_code]
    source_text: Option<NamedSource<String>>,
    #[label("here")]
    span: Option<SourceSpan>,
}

/// The result of everything a command does.
pub type Result<T> = std::result::Result<T, Box<Failure>>;

impl Failure {
    fn new(exit: Exit, message: impl Into<String>) -> Box<Self> {
        Box::new(Self { message: message.into(), exit, help: None, source_text: None, span: None })
    }

    /// Wrong usage or configuration.
    pub fn usage(message: impl Into<String>) -> Box<Self> {
        Self::new(Exit::Usage, message)
    }

    /// Something that failed while it ran.
    pub fn failed(message: impl Into<String>) -> Box<Self> {
        Self::new(Exit::Failed, message)
    }

    /// The user's Ctrl-C.
    pub fn interrupted(message: impl Into<String>) -> Box<Self> {
        Self::new(Exit::Interrupted, message)
    }

    /// A failed operation on a file or folder.
    pub fn io(what: &str, path: &std::path::Path, error: &std::io::Error) -> Box<Self> {
        let failure = Self::failed(format!("cannot {what} {}: {error}", path.display()));
        match error.kind() {
            std::io::ErrorKind::StorageFull => {
                failure.help("the disk is full; what was finished is kept, make room and `--resume`")
            }
            std::io::ErrorKind::PermissionDenied => {
                failure.help("choose another folder or change its permissions")
            }
            _ => failure,
        }
    }

    /// Adds what to do; an empty text adds nothing.
    #[must_use]
    pub fn help(mut self: Box<Self>, help: impl Into<String>) -> Box<Self> {
        let help = help.into();
        if !help.is_empty() {
            self.help = Some(help);
        }
        self
    }

    /// Adds the place in a text file.
    #[must_use]
    pub fn at(
        mut self: Box<Self>,
        name: impl AsRef<str>,
        text: &str,
        span: std::ops::Range<usize>,
    ) -> Box<Self> {
        self.source_text = Some(NamedSource::new(name, text.to_owned()));
        self.span = Some(span.into());
        self
    }

    /// Puts where it happened before the message.
    #[must_use]
    pub fn within(mut self: Box<Self>, place: impl Display) -> Box<Self> {
        self.message = format!("{place}: {}", self.message);
        self
    }

    /// The process's exit code.
    pub fn exit(&self) -> Exit {
        self.exit
    }
}

impl From<e2llm_plugin::Error> for Box<Failure> {
    fn from(e: e2llm_plugin::Error) -> Self {
        let failure = match e.code {
            e2llm_plugin::ErrorCode::Cancelled => Failure::interrupted(e.message),
            e2llm_plugin::ErrorCode::BadRequest => Failure::usage(e.message),
            _ => Failure::failed(e.message),
        };
        failure.help(e.help)
    }
}

impl From<e2llm_backend::BackendError> for Box<Failure> {
    fn from(e: e2llm_backend::BackendError) -> Self {
        match e.kind {
            e2llm_backend::ErrorKind::Cancelled => Failure::interrupted(e.message),
            e2llm_backend::ErrorKind::BadRequest => Failure::usage(e.message),
            _ => Failure::failed(e.message),
        }
    }
}

/// All that a user sees of a failure, its lines as long as they are.
#[cfg(test)]
pub(crate) fn shown(failure: &Failure) -> String {
    let mut text = String::new();
    let theme = miette::GraphicalTheme::unicode_nocolor();
    let handler = miette::GraphicalReportHandler::new_themed(theme).with_width(10_000);
    handler.render_report(&mut text, failure).map_or_else(|e| e.to_string(), |()| text)
}

/// `did you mean` for a name that does not exist; empty where nothing is near.
pub fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let near = |k: &&str| strsim::jaro_winkler(name, k);
    let best = known.into_iter().max_by(|a, b| near(a).total_cmp(&near(b)).then(b.cmp(a)));
    match best.filter(|b| near(b) > 0.75) {
        Some(best) => format!("did you mean `{best}`?"),
        None => String::new(),
    }
}
