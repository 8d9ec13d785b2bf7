//! The [`Backend`] trait: what a long-context method must do to be evaluated, and nothing else.
//!
//! A backend gets a [`Request`] whose long `context` and short `instruction` are still apart, and decides
//! itself what becomes soft tokens, what is retrieved and what is cut. It reports what it did in [`Usage`].
//! This crate knows no model, no task and no metric.

mod backend;
mod chunk;
mod error;
pub mod fingerprint;
mod policy;
mod registry;
mod request;
mod response;

pub use backend::{Backend, BackendInfo, CancelFlag, TokenCounter};
pub use chunk::{Chunk, Chunker, ChunkerError};
pub use error::{BackendError, ErrorKind};
pub use fingerprint::Fingerprint;
pub use policy::{Kept, Policy};
pub use registry::{BackendSpec, BuildContext, BuildFn, Device, ModelFiles, OptionSpec, Options, Registry};
pub use request::{Generation, Prompt, Request};
pub use response::{Choice, FinishReason, Response, Usage};
