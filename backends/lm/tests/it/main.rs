//! Tests of the crate from outside, one binary.

mod damaged_files;
mod golden_real;
mod golden_rope;
mod model;
mod support;
mod text;
