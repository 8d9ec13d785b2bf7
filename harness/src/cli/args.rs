//! Flags.

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
    /// Score prediction/reference pairs of a file with a metric plugin
    Metric(MetricArgs),
    /// Fetch or describe models
    Model(ModelArgs),
    /// Describe or import benchmark data
    Data(DataArgs),
    /// List or verify plugins
    Plugin(PluginArgs),
    /// Print a shell's completion script
    Completions(CompletionArgs),
}

/// Where plugins are.
#[derive(Debug, Args)]
pub struct PluginDirs {
    /// Folder with plugins, searched first (repeatable)
    #[arg(long, value_name = "DIR", env = "E2LLM_PLUGIN_DIR")]
    pub plugin_dir: Vec<PathBuf>,
}

/// Where models come from.
#[derive(Debug, Args)]
pub struct ModelFlags {
    /// Never use the network
    #[arg(long, env = "E2LLM_OFFLINE")]
    pub offline: bool,
    /// A catalogue that adds to or replaces entries of the built-in one
    #[arg(long, value_name = "FILE", env = "E2LLM_MODELS_FILE")]
    pub models_file: Option<PathBuf>,
}

/// Flags of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Tasks, separated by commas, or `all`
    #[arg(long, value_name = "A,B|all", env = "E2LLM_TASKS", value_delimiter = ',')]
    pub tasks: Option<Vec<String>>,
    /// Method to evaluate (`e2llm-bench list backends`)
    #[arg(long, value_name = "NAME", env = "E2LLM_BACKEND")]
    pub backend: Option<String>,
    /// Model: a catalogue name, a folder or a .gguf file
    #[arg(long, value_name = "NAME|PATH", env = "E2LLM_MODEL")]
    pub model: Option<String>,
    /// Data: a folder with a folder per task, `task=FOLDER`, or `sample` (repeatable) [default: sample]
    #[arg(long, value_name = "DIR|task=DIR|sample", env = "E2LLM_DATA", value_delimiter = ',')]
    pub data: Vec<String>,
    /// Split, for all tasks or as `task=SPLIT` (repeatable) [default: the task's own]
    #[arg(long, value_name = "SPLIT|task=SPLIT", env = "E2LLM_SPLIT", value_delimiter = ',')]
    pub split: Vec<String>,
    /// At most N samples of each task, the first ones
    #[arg(long, value_name = "N", env = "E2LLM_LIMIT")]
    pub limit: Option<u64>,
    /// Only these samples: ids, or `task:id`, separated by commas
    #[arg(long, value_name = "IDS", env = "E2LLM_SAMPLES", value_delimiter = ',')]
    pub samples: Option<Vec<String>>,
    /// Metric ids to report instead of each task's own
    #[arg(long, value_name = "IDS", env = "E2LLM_METRICS", value_delimiter = ',')]
    pub metrics: Option<Vec<String>>,
    /// Seed of generated data, sampling and intervals [default: 0]
    #[arg(long, value_name = "N", env = "E2LLM_SEED")]
    pub seed: Option<u64>,
    /// Configuration file; flags win over it
    #[arg(long, value_name = "FILE", env = "E2LLM_CONFIG")]
    pub config: Option<PathBuf>,
    /// Folder of the run [default: runs/<backend>-<model>, numbered]
    #[arg(long, value_name = "DIR", env = "E2LLM_OUT")]
    pub out: Option<PathBuf>,
    /// Continue an interrupted run; starts one where there is none
    #[arg(long, env = "E2LLM_RESUME")]
    pub resume: bool,
    /// Say what would be run and show each task's first prompt; loads no weights
    #[arg(long, env = "E2LLM_DRY_RUN")]
    pub dry_run: bool,
    /// Requests handed to the backend at once, or `auto`
    #[arg(long, value_name = "N|auto", env = "E2LLM_BATCH_SIZE")]
    pub batch_size: Option<String>,
    /// `cpu` or `cuda:N` [default: cpu]
    #[arg(long, value_name = "DEVICE", env = "E2LLM_DEVICE")]
    pub device: Option<String>,
    /// Element type of the weights: f32, bf16 or q (kept quantised) [default: the backend's]
    #[arg(long, value_name = "TYPE", env = "E2LLM_DTYPE")]
    pub dtype: Option<String>,
    /// Longest answer in tokens [default: the task's own]
    #[arg(long, value_name = "N", env = "E2LLM_MAX_NEW_TOKENS")]
    pub max_new_tokens: Option<usize>,
    /// Sampling temperature; 0 is greedy [default: 0]
    #[arg(long, value_name = "T", env = "E2LLM_TEMPERATURE")]
    pub temperature: Option<f64>,
    /// Nucleus sampling [default: 1]
    #[arg(long, value_name = "P", env = "E2LLM_TOP_P")]
    pub top_p: Option<f64>,
    /// Option of the backend (repeatable; `e2llm-bench describe BACKEND`)
    #[arg(long, value_name = "KEY=VALUE", env = "E2LLM_BACKEND_OPTION", value_delimiter = ';')]
    pub backend_option: Vec<String>,
    /// Option of a task (repeatable; `e2llm-bench describe TASK`)
    #[arg(long, value_name = "TASK.KEY=VALUE", env = "E2LLM_TASK_OPTION", value_delimiter = ';')]
    pub task_option: Vec<String>,
    /// Resamples of the bootstrap intervals [default: 2000]
    #[arg(long, value_name = "N", env = "E2LLM_BOOTSTRAP")]
    pub bootstrap: Option<usize>,
    /// Keep every rendered prompt in the run folder (large)
    #[arg(long, env = "E2LLM_STORE_PROMPTS")]
    pub store_prompts: bool,
    /// No progress and no table
    #[arg(short, long, env = "E2LLM_QUIET")]
    pub quiet: bool,
    /// Print the results as JSON on stdout
    #[arg(long, env = "E2LLM_JSON")]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub plugins: PluginDirs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub models: ModelFlags,
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
    /// Folder of the run
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
    /// Folders of runs
    #[arg(required = true)]
    pub runs: Vec<PathBuf>,
    /// Form of the table
    #[arg(long, value_enum, default_value = "md")]
    pub format: TableFormat,
}

/// Flags of `metric`.
#[derive(Debug, Args)]
pub struct MetricArgs {
    /// A metric plugin (`rouge`) or one of its values (`rougeL+stem`)
    pub name: String,
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
