//! SDK for plugins of e2llm-bench.
//!
//! A benchmark is a type that implements [`Task`], a metric family one that implements [`Metric`]; one macro
//! line exports it from a `cdylib` crate:
//!
//! ```ignore
//! e2llm_plugin::export_task! { MyTask, id: "my-task", description: "Questions about my documents" }
//! ```
//!
//! The type must be `Default`. Nothing else of the C boundary (crate `e2llm-plugin-abi`) is visible to an author.
//! Readers for the files benchmarks come in are in [`source`], a conformance kit for the author's own tests in
//! [`testing`], and what a host needs to call a plugin in [`client`].

pub mod choice;
pub mod client;
mod error;
mod export;
pub mod haystack;
mod host;
mod identity;
pub mod json_array;
pub mod json_lines;
mod metric;
pub mod official;
pub mod overlap;
pub mod record;
mod rows;
pub mod serve;
pub mod source;
mod task;
pub mod testing;
pub mod text;

pub use error::{Error, ErrorCode, Result};
pub use host::{Host, LogLevel};
pub use identity::{Identity, Kind, TARGET, identity_bytes, identity_len};
pub use metric::{
    Aggregate, Aggregation, Metric, MetricInfo, MetricOptions, Row, Scored, Scores, Unit, ValueInfo,
    aggregate_values,
};
pub use source::Source;
pub use task::{
    Example, Examples, FileFormat, OptionInfo, OutputKind, Prediction, Prompt, Task, TaskInfo, TaskOptions,
};

/// What the export macros use; not for authors.
#[doc(hidden)]
pub mod __private {
    pub use e2llm_plugin_abi as abi;
}
