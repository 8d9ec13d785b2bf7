//! Benchmark data by task: where it comes from, fetching it, and checking what is there.
//!
//! `configs/data.toml` (built in) names the sources; a download goes into the cache and from there, checked, into
//! the task's data folder, with a [`Lock`] beside it. What has no known sha256 is said to have none; the one it came
//! with is kept, and holds from then on. Downloading is that of [`crate::models`] for model hubs, and [`http`] for
//! plain addresses.

mod catalogue;
mod fetch;
mod http;
mod lock;
#[cfg(test)]
mod tests;
mod unpack;

pub use catalogue::{ArchiveForm, DataCatalogue, DataEntry, DownloadSpec, HubData, Unpack};
pub use fetch::{DataFetcher, DataSettings, FileReport, State};
pub use http::Patience;
pub use lock::{LOCK, Lock, Locked};
