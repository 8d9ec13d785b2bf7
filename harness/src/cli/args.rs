//! Flags.

use crate::config::{ModelFlags, PluginDirs, RunArgs};
use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

const EXIT_CODES: &str = "\
Exit codes: 0 all done; 1 failed; 2 wrong usage or configuration; 3 done, but some samples ended in errors;
130 interrupted (continue with --resume).

`e2llm-bench --tasks all --backend e2llm` is short for `e2llm-bench run --tasks all --backend e2llm`.";

/// Evaluates long-context methods: tasks and metrics are plugins, a method is a backend.
#[derive(Debug, Parser)]
#[command(name = "e2llm-bench", version, about, after_help = EXIT_CODES, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Evaluate a backend on tasks and write a leaderboard
    Run(Box<RunArgs>),
    /// List tasks, metrics, backends or models
    List(ListArgs),
    /// Describe a task, metric or backend
    Describe(DescribeArgs),
    /// Score a run again from its stored responses, without inference
    Score(ScoreArgs),
    /// One table of several runs
    Leaderboard(LeaderboardArgs),
    /// Differences between runs, paired by sample: intervals, p-values, effect sizes
    Compare(CompareArgs),
    /// Score prediction/reference pairs of a file with a metric plugin
    Metric(MetricArgs),
    /// Fetch or describe models
    Model(ModelArgs),
    /// Fetch, verify, describe or import benchmark data
    Data(DataArgs),
    /// Turn records into training data
    Prepare(PrepareArgs),
    /// Train a model
    Train(TrainArgs),
    /// Measure a model's losses on prepared validation data
    Validate(ValidateArgs),
    /// Measure how fast the E2LLM model is, on random weights
    Bench(BenchArgs),
    /// List or verify plugins
    Plugin(PluginArgs),
    /// Print a shell's completion script
    Completions(CompletionArgs),
}

/// What `list` lists.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ListKind {
    /// Benchmarks
    Tasks,
    /// Metrics
    Metrics,
    /// Methods
    Backends,
    /// Catalogue of models
    Models,
    /// Plugin libraries
    Plugins,
}

/// Flags of `list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// What to list
    pub what: ListKind,
    /// As JSON lines
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub plugins: PluginDirs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub models: ModelFlags,
}

/// Flags of `describe`.
#[derive(Debug, Args)]
pub struct DescribeArgs {
    /// A task, metric or backend
    pub name: String,
    /// As JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub plugins: PluginDirs,
}

/// Flags of `score`.
#[derive(Debug, Args)]
pub struct ScoreArgs {
    /// Folder of the run, or of several
    pub run: PathBuf,
    /// Metric ids to report instead of those of the run
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    pub metrics: Option<Vec<String>>,
    /// Resamples of the bootstrap intervals [default: those of the run]
    #[arg(long, value_name = "N")]
    pub bootstrap: Option<usize>,
    /// Print the results as JSON on stdout
    #[arg(long)]
    pub json: bool,
    /// No table
    #[arg(short, long)]
    pub quiet: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub plugins: PluginDirs,
}

/// Form of a table.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum TableFormat {
    /// Long form: one row per run, task, slice and metric
    Csv,
    /// One row per run, one column per task's primary metric
    Md,
}

/// Flags of `leaderboard`.
#[derive(Debug, Args)]
pub struct LeaderboardArgs {
    /// Folders of runs, or of several runs each
    #[arg(required = true)]
    pub runs: Vec<PathBuf>,
    /// Form of the table
    #[arg(long, value_enum, default_value = "md")]
    pub format: TableFormat,
}

/// Form of a comparison.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum CompareFormat {
    /// Aligned columns
    Text,
    /// One row per difference
    Csv,
    /// Markdown, with the notes
    Md,
}

/// Flags of `compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// Folders of runs; the first is the baseline of all others
    #[arg(required = true)]
    pub runs: Vec<PathBuf>,
    /// Only these tasks
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    pub tasks: Option<Vec<String>>,
    /// Metric ids instead of each task's primary one
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    pub metrics: Option<Vec<String>>,
    /// Also place each run between the runs of backends `no-context` (0) and `full` (1)
    #[arg(long)]
    pub normalise: bool,
    /// Compare runs of other task versions, prompts or samples all the same, by the samples they share
    #[arg(long)]
    pub allow_differences: bool,
    /// Seed of the draws [default: the baseline's]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Resamples of the bootstrap intervals [default: the baseline's]
    #[arg(long, value_name = "N")]
    pub bootstrap: Option<usize>,
    /// Swaps of the permutation test, where not all can be tried
    #[arg(long, value_name = "N", default_value_t = crate::score::DEFAULT_PERMUTATIONS)]
    pub permutations: usize,
    /// Form of the table
    #[arg(long, value_enum, default_value = "text")]
    pub format: CompareFormat,
    /// All figures and settings as JSON on stdout
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub plugins: PluginDirs,
}

/// Flags of `metric`.
#[derive(Debug, Args)]
pub struct MetricArgs {
    /// Metric plugins (`rouge`) or values (`rougeL+stem`), separated by commas; only these are computed
    #[arg(required = true, value_name = "NAMES", value_delimiter = ',')]
    pub names: Vec<String>,
    /// JSON Lines of {"prediction","references"[,"meta"]}; `-` for stdin
    #[arg(long, value_name = "FILE")]
    pub input: PathBuf,
    /// Print the corpus figures instead of one line per pair
    #[arg(long)]
    pub aggregate: bool,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub plugins: PluginDirs,
}

/// Flags of `model`.
#[derive(Debug, Args)]
pub struct ModelArgs {
    #[command(subcommand)]
    #[allow(missing_docs)]
    pub command: ModelCommand,
}

/// Commands of `model`.
#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// Download a model of the catalogue and check it
    Fetch {
        /// Catalogue name
        name: String,
        #[command(flatten)]
        #[allow(missing_docs)]
        models: ModelFlags,
        /// No progress
        #[arg(short, long)]
        quiet: bool,
    },
    /// What is known of a model: parts, parameters, files and their state
    Info {
        /// Catalogue name or path
        name: String,
        #[command(flatten)]
        #[allow(missing_docs)]
        models: ModelFlags,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Write a plain HF model: LoRA added to the weights of its base models
    MergeLora(MergeArgs),
    /// Write an E2LLM checkpoint in another form: element type, file size, LoRA to and from PEFT's layout
    Convert(ConvertArgs),
}

/// Flags of `model merge-lora`.
#[derive(Debug, Args)]
pub struct MergeArgs {
    /// An E2LLM model (catalogue name or folder), or the folder of a LoRA adapter in PEFT's layout
    pub model: String,
    /// New folder: `encoder/` and `decoder/` of an E2LLM model, the decoder itself of an adapter
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// The decoder that an adapter is for [default: the one it names]
    #[arg(long, value_name = "NAME|PATH")]
    pub decoder: Option<String>,
    /// Element type of the weights
    #[arg(long, value_enum, default_value = "f32")]
    pub dtype: ElementType,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub models: ModelFlags,
}

/// Flags of `model convert`.
#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// A trained E2LLM model: catalogue name or folder
    pub model: String,
    /// New folder
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// What is written: a checkpoint, or its LoRA as PEFT adapters in `encoder/` and `decoder/`
    #[arg(long, value_enum, default_value = "e2llm")]
    pub to: ModelLayout,
    /// Take LoRA from the PEFT adapters in this folder's `encoder/` and `decoder/`
    #[arg(long, value_name = "DIR")]
    pub from_peft: Option<PathBuf>,
    /// Element type of the tensors
    #[arg(long, value_enum, default_value = "f32")]
    pub dtype: ElementType,
    /// Most MiB of one file of tensors; more are written as shards
    #[arg(long, value_name = "N")]
    pub max_file_mib: Option<usize>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub models: ModelFlags,
}

/// Element type of written tensors.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ElementType {
    /// float32
    F32,
    /// bfloat16
    Bf16,
}

/// Layout of a written model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ModelLayout {
    /// An E2LLM checkpoint
    E2llm,
    /// PEFT adapters
    Peft,
}

/// Flags of `data`.
#[derive(Debug, Args)]
pub struct DataArgs {
    #[command(subcommand)]
    #[allow(missing_docs)]
    pub command: DataCommand,
}

/// Commands of `data`.
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Read a task's data from end to end and say what is in it
    Info {
        /// The task
        task: String,
        /// A folder with a folder per task, the task's own folder, or `sample`
        #[arg(long, value_name = "DIR|sample", default_value = "sample")]
        data: String,
        /// Split [default: the task's own]
        #[arg(long)]
        split: Option<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        #[allow(missing_docs)]
        plugins: PluginDirs,
    },
    /// Download a task's data from its official source; shows the licence before the first download
    Fetch {
        /// The task
        task: String,
        /// Folder with a folder per task
        #[arg(long, value_name = "DIR", default_value = "data")]
        data: PathBuf,
        /// Accept the licence shown without being asked
        #[arg(long)]
        accept_licence: bool,
        /// Only from the cache
        #[arg(long, env = "E2LLM_OFFLINE")]
        offline: bool,
        /// A catalogue that adds to or replaces entries of the built-in one (see configs/data.toml)
        #[arg(long, value_name = "FILE")]
        data_catalogue: Option<PathBuf>,
        /// No progress
        #[arg(short, long)]
        quiet: bool,
        /// The files as JSON lines
        #[arg(long)]
        json: bool,
    },
    /// Check a task's files against the catalogue's checksums and those kept when they were fetched
    Verify {
        /// The task
        task: String,
        /// Folder with a folder per task
        #[arg(long, value_name = "DIR", default_value = "data")]
        data: PathBuf,
        /// A catalogue that adds to or replaces entries of the built-in one
        #[arg(long, value_name = "FILE")]
        data_catalogue: Option<PathBuf>,
        /// As JSON lines
        #[arg(long)]
        json: bool,
    },
    /// Write a task's data, in whatever official format it comes, as plain JSONL
    Import {
        /// The task
        task: String,
        /// A folder with a folder per task, or the task's own folder
        #[arg(long, value_name = "DIR")]
        data: String,
        /// Split [default: the task's own]
        #[arg(long)]
        split: Option<String>,
        /// Folder to write `<task>/<split>.jsonl` into
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        #[command(flatten)]
        #[allow(missing_docs)]
        plugins: PluginDirs,
    },
}

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
    /// `e2llm`, `sft-truncate` or `sft-no-context`, instead of the configuration's; sft-* without --start is the decoder
    /// as it is
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
pub struct BenchArgs {
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
    /// Seed of weights and inputs
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

/// The shape that tests use is not for everyone to see.
fn shapes() -> impl Iterator<Item = PossibleValue> {
    e2llm_train::bench::Shape::NAMES.into_iter().map(|name| PossibleValue::new(name).hide(name == "tiny"))
}

/// Flags of `plugin`.
#[derive(Debug, Args)]
pub struct PluginArgs {
    #[command(subcommand)]
    #[allow(missing_docs)]
    pub command: PluginCommand,
}

/// Commands of `plugin`.
#[derive(Debug, Subcommand)]
pub enum PluginCommand {
    /// All libraries found, the unusable ones with the reason; runs none of their code
    List {
        /// As JSON lines
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        #[allow(missing_docs)]
        plugins: PluginDirs,
    },
    /// Load a library and run the conformance checks on it
    Verify {
        /// The library
        file: PathBuf,
    },
}

/// Flags of `completions`.
#[derive(Debug, Args)]
pub struct CompletionArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

impl CompletionArgs {
    /// Prints the script.
    pub fn print(&self) -> crate::failure::Exit {
        clap_complete::generate(self.shell, &mut Cli::command(), "e2llm-bench", &mut std::io::stdout());
        crate::failure::Exit::Done
    }
}
