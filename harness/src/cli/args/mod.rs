//! Flags.

mod data;
mod model;
mod training;

pub(super) use data::{DataArgs, DataCommand};
pub(super) use model::{
    ConvertArgs, ElementType, MergeArgs, ModelArgs, ModelCommand, ModelLayout, RandomArgs,
};
pub use training::PrepareArgs;
pub(super) use training::{BackendBenchArgs, BenchArgs, BenchCommand, TrainArgs, ValidateArgs};

use crate::config::{ModelFlags, PluginDirs, RunArgs};
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
    /// Measure how fast the E2LLM model is, on random weights; or what backends take (`bench backend`)
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
    /// Print the results as JSON on stdout; of several runs one document a line
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
