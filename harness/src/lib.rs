//! Running an evaluation: plugins, models, runs, scores and the command line of `e2llm-bench`.
//!
//! Data flows one way: source files -> task plugin -> prompt -> backend -> metric plugin -> run store -> results.

pub mod cli;
pub mod config;
pub mod data;
pub mod datasets;
pub mod declared;
pub mod failure;
pub mod measure;
pub mod models;
mod names;
mod notes;
pub mod plugins;
pub mod run;
pub mod score;
pub mod store;
pub mod training;
