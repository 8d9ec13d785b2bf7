//! Flags of what makes and measures models: `prepare`, `train`, `validate`, `bench`.

use crate::config::{ModelFlags, PluginDirs};
use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Flags of `prepare`.
#[derive(Debug, Args)]
pub struct PrepareArgs {
    /// New folder for the prepared data
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Records to learn from: JSON Lines of {"context","prompt","answer"}, also .zst or .gz (repeatable)
    #[arg(long, value_name = "FILE")]
    pub input: Vec<PathBuf>,
    /// Records to validate on instead of a part of --input (repeatable)
    #[arg(long, value_name = "FILE")]
    pub validation_input: Vec<PathBuf>,
    /// Tasks whose questions to learn from, asked as the task asks them; split `train` unless named
    #[arg(long, value_name = "TASK[:SPLIT],..", value_delimiter = ',', requires = "data")]
    pub from_task: Vec<String>,
    /// A file that names the files of both splits, relative to --data
    #[arg(long, value_name = "FILE", requires = "data", conflicts_with_all = ["input", "validation_input"])]
    pub splits: Option<PathBuf>,
    /// Read files of --splits whose folder is a task's through that task: its questions are asked as in an evaluation
    #[arg(long, requires = "splits")]
    pub task_prompts: bool,
    /// Folder with a folder per task, for --splits and --from-task
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Encoder whose ids are made: a catalogue name or a folder
    #[arg(long, value_name = "NAME|PATH", default_value = "all-minilm-l6-v2")]
    pub encoder: String,
    /// Decoder whose ids are made: a catalogue name, a folder or a .gguf file
    #[arg(long, value_name = "NAME|PATH", default_value = "smollm2-135m-instruct")]
    pub decoder: String,
    /// Characters of a chunk at most
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub chunk_chars: usize,
    /// Fraction of a chunk that the next one repeats, 0 to 0.5
    #[arg(long, value_name = "F", default_value_t = 0.0)]
    pub chunk_overlap: f64,
    /// Fraction of the documents of --input kept for validation
    #[arg(long, value_name = "F", default_value_t = 0.05)]
    pub validation: f64,
    /// Fraction of the records that may be unusable
    #[arg(long, value_name = "F", default_value_t = 0.01)]
    pub max_bad: f64,
    /// Seed of the split
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// No progress
    #[arg(short, long)]
    pub quiet: bool,
    /// Print what was prepared as JSON on stdout
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub models: ModelFlags,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub plugins: PluginDirs,
}

/// Flags of `train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// Settings of the training (see configs/train.toml)
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Folder of the training [default: train/<name of the configuration>]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Prepared data, instead of the configuration's
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Continue an interrupted training; starts one where there is none
    #[arg(long)]
    pub resume: bool,
    /// `cpu` or `cuda:N`, instead of the configuration's
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Steps in all, instead of the configuration's: its last phases are cut, or the very last one made longer
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,
    /// No progress
    #[arg(short, long)]
    pub quiet: bool,
    /// Print the outcome as JSON on stdout
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub models: ModelFlags,
}

/// Flags of `validate`.
#[derive(Debug, Args)]
pub struct ValidateArgs {
    /// Settings of the model and of what it reads, as for `train` (see configs/train.toml)
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Prepared data
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// The trained weights, instead of the configuration's `model.start`: a checkpoint, or an adapter for sft-*
    #[arg(long, value_name = "DIR")]
    pub start: Option<PathBuf>,
    /// `e2llm`, `cepe`, `lloco`, `longlora`, `sft-truncate` or `sft-no-context`, instead of the configuration's; sft-*
    /// without --start is the decoder as it is
    #[arg(long, value_name = "METHOD")]
    pub method: Option<String>,
    /// Most items of each objective, evenly spread; 0: all
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub items: usize,
    /// Consecutive chunks of a reconstruction window
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub window: usize,
    /// `cpu` or `cuda:N`, instead of the configuration's
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// No progress
    #[arg(short, long)]
    pub quiet: bool,
    /// One JSON line for each objective
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub models: ModelFlags,
}

/// Flags of `bench`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    #[command(subcommand)]
    #[allow(missing_docs)]
    pub command: Option<BenchCommand>,
    /// What to measure, separated by commas
    #[arg(value_delimiter = ',', default_value = "all", value_parser = ["encode", "prefill", "decode", "train", "context", "all"])]
    pub benches: Vec<String>,
    /// MiniLM and SmolLM2-135M, or BERT large and Llama-2 7B
    #[arg(long, default_value = "135m", value_parser = PossibleValuesParser::new(shapes()))]
    pub shape: String,
    /// `cpu` or `cuda:N`
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub device: String,
    /// Element type of weights and activations
    #[arg(long, default_value = "f32", value_parser = ["f32", "bf16"])]
    pub dtype: String,
    /// Measured runs, the median of which is told; decoding takes half as many, each context two
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub repeats: usize,
    /// Encoder tokens of the longest context; the shortest has 4096, each other one four times the one before
    #[arg(long, value_name = "N", default_value_t = 1 << 20)]
    pub max_context: usize,
    /// Examples that `decode` answers side by side
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub batch: usize,
    /// Add LoRA updates to the weights for inference instead of computing them beside
    #[arg(long)]
    pub merge_lora: bool,
    /// Compute layers again in the backward pass instead of keeping their activations
    #[arg(long)]
    pub checkpointing: bool,
    /// Tell where the time of one more run goes, by kind of operation
    #[arg(long)]
    pub profile: bool,
    /// Seed of weights and inputs
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

/// Commands of `bench`.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Measure what backends take, as functions of the context's length: a table and pictures
    Backend(Box<BackendBenchArgs>),
}

/// Flags of `bench backend`.
#[derive(Debug, Args)]
pub struct BackendBenchArgs {
    /// Methods to measure, one after another, or `all`
    #[arg(long, value_name = "A,B|all", value_delimiter = ',')]
    pub backend: Vec<String>,
    /// Lengths of contexts in tokens: 4096, 4k (the same), 1m
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "1k,2k,4k,8k,16k")]
    pub lengths: Vec<String>,
    /// Folder for points.csv, ttft.svg, decode.svg and memory.svg
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Model: a catalogue name, a folder or a .gguf file
    #[arg(long, value_name = "NAME|PATH")]
    pub model: Option<String>,
    /// Take backends and their options from a run's configuration file; flags win over it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// `cpu` or `cuda:N` [default: cpu]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Element type of the weights: f32, bf16 or q (kept quantised) [default: the backend's]
    #[arg(long, value_name = "TYPE")]
    pub dtype: Option<String>,
    /// Option of the backend (repeatable; `e2llm-bench describe BACKEND`); of several: BACKEND.KEY=VALUE
    #[arg(long, value_name = "KEY=VALUE")]
    pub backend_option: Vec<String>,
    /// Tokens of an answer at most; one that ends earlier has fewer
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub new_tokens: usize,
    /// Contexts of each length, the median of which is told
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub repeats: usize,
    /// Seed of the contexts
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// No progress
    #[arg(short, long)]
    pub quiet: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub models: ModelFlags,
}

/// The shape that tests use is not for everyone to see.
fn shapes() -> impl Iterator<Item = PossibleValue> {
    e2llm_train::bench::Shape::NAMES.into_iter().map(|name| PossibleValue::new(name).hide(name == "tiny"))
}
