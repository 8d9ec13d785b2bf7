//! Training data: records, made into ids once and read through memory maps from then on.
//!
//! ```text
//! manifest.json                  how it was made, what is in it
//! train/, validation/
//!     encoder.ids, decoder.ids   ids of all chunks, u16 or u32 little-endian
//!     chunks.idx                 for each chunk: where it begins in both (u64 pairs, one more at the end)
//!     documents.idx              for each document: its first chunk (u64, one more at the end)
//!     documents.txt              for each document: SHA-256 of its text, name
//!     questions.idx              for each question: document, text start, answer start, instruction tokens (u64)
//!     questions.txt              instructions, UTF-8
//!     answers.ids                decoder ids of the answers
//! ```
//!
//! A document is stored once, however many questions are asked about it.

mod dataset;
mod ids;
mod manifest;
mod prepare;
mod trained_on;
mod writer;

pub use dataset::{Dataset, Question};
pub use manifest::{Manifest, SplitInfo};
pub use prepare::{Assign, BadRecord, Incoming, PrepareSettings, Record, Report, prepare};
pub use trained_on::{DIGITS, TRAINED_ON, trained_on};
