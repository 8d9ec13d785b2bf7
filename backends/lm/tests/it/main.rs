//! Tests of the crate from outside, one binary.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do: by panicking")]

mod batch;
mod damaged_files;
mod golden_real;
mod golden_rope;
mod memory;
mod model;
mod settings;
mod shared;
mod support;
mod text;
