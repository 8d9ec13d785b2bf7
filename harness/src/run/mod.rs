//! Running an evaluation: plan first, then answer, score and store sample by sample.

mod backends;
mod execute;
mod plan;
mod progress;
mod results;
mod scoring;
mod tasks;
mod trained_on;

pub use backends::{all_methods, build, check, fetcher, find, registry};
pub use execute::execute;
pub use plan::{Planned, TaskPlan};
pub use progress::Reporter;
pub use results::{aggregate_by, write_results};
pub use scoring::{MetricPlugin, MetricSet};
pub use tasks::{OpenTask, open_tasks};
pub use trained_on::TrainedOn;
