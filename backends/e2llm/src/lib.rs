//! E2LLM (arXiv 2409.06679): a text encoder reads a long context chunk by chunk, an adapter turns each chunk into
//! a few soft tokens in the decoder's embedding space, and the decoder answers from those.
//!
//! ```text
//! context -> chunks -> encoder + LoRA -> adapter -> soft tokens
//!                      decoder + LoRA: [prefix] [soft tokens] [suffix] [answer]
//! ```
//!
//! [`E2llmModel`] is the arithmetic, for training and inference alike; [`checkpoint`] its folder;
//! [`backend::spec`] the entry for the backend registry.

pub mod adapter;
pub mod backend;
mod cache;
pub mod checkpoint;
mod config;
mod init;
mod model;
mod prompt;
mod text;
mod texts;

pub use config::{AdapterKind, ConfigError, E2llmConfig};
pub use init::initial_tensors;
pub use model::{AnswerLoss, E2llmModel, Example, Inputs};
pub use prompt::{PromptIds, PromptStyle};
pub use text::{encoder_chunks, encoder_parts};
