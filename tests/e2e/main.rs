//! End-to-end tests: the real program, real plugin libraries, real files.
//!
//! They run what `cargo build --release --workspace` built; build it first.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "all of this is tests")]

mod backends;
mod bad_input;
mod cli;
mod compare;
mod data_fetch;
mod declared;
mod invoke;
mod laws;
mod libraries;
mod loader;
mod memory;
mod metric_in_c;
mod models;
mod notes;
mod panics;
mod prompts;
mod real_records;
mod remote;
mod resume;
mod ruler;
mod runs;
mod settings;
mod stranger;
#[path = "../../backends/e2llm/tests/tiny/mod.rs"]
mod tiny;
mod train;
mod trained;
