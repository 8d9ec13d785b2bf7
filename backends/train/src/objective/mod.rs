//! What can be trained.

mod cepe;
mod chunks;
mod decoder;
mod e2llm;
mod lloco;
mod open;
mod sft;

pub use cepe::CepeTask;
pub use e2llm::E2llmTask;
pub use lloco::LlocoTask;
pub use open::{BaseSource, Sources};
pub use sft::SftTask;
