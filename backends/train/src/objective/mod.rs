//! What can be trained.

mod decoder;
mod e2llm;
mod open;
mod sft;

pub use e2llm::E2llmTask;
pub use open::{BaseSource, Sources};
pub use sft::SftTask;
