//! From files and names to what the crate `e2llm-train` trains.

mod models;
mod progress;
mod records;
mod splits;

pub use models::{base, failure};
pub use progress::TrainReporter;
pub use records::Records;
pub use splits::{Input, Origin, TaskSplit, inputs};
