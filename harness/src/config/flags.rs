//! Flags of a run, and those that several commands share.

use clap::Args;
use std::path::PathBuf;

/// Where plugins are.
#[derive(Debug, Default, Args)]
pub struct PluginDirs {
    /// Folder with plugins, searched first (repeatable)
    #[arg(long, value_name = "DIR", env = "E2LLM_PLUGIN_DIR")]
    pub plugin_dir: Vec<PathBuf>,
}

/// Where models come from.
#[derive(Debug, Clone, Default, Args)]
pub struct ModelFlags {
    /// Never use the network
    #[arg(long, env = "E2LLM_OFFLINE")]
    pub offline: bool,
    /// A catalogue that adds to or replaces entries of the built-in one
    #[arg(long, value_name = "FILE", env = "E2LLM_MODELS_FILE")]
    pub models_file: Option<PathBuf>,
}

/// Flags of `run`.
#[derive(Debug, Default, Args)]
pub struct RunArgs {
    /// Tasks, separated by commas, or `all`
    #[arg(long, value_name = "A,B|all", env = "E2LLM_TASKS", value_delimiter = ',')]
    pub tasks: Option<Vec<String>>,
    /// Method to evaluate (`e2llm-bench list backends`); several, or `all`, are run one after another
    #[arg(long, value_name = "A,B|all", env = "E2LLM_BACKEND", value_delimiter = ',')]
    pub backend: Option<Vec<String>>,
    /// Model: a catalogue name, a folder or a .gguf file
    #[arg(long, value_name = "NAME|PATH", env = "E2LLM_MODEL")]
    pub model: Option<String>,
    /// Data: a folder with a folder per task, `task=FOLDER`, or `sample` (repeatable) [default: sample]
    #[arg(long, value_name = "DIR|task=DIR|sample", env = "E2LLM_DATA", value_delimiter = ',')]
    pub data: Vec<String>,
    /// Split, for all tasks or as `task=SPLIT` (repeatable) [default: the task's own]
    #[arg(long, value_name = "SPLIT|task=SPLIT", env = "E2LLM_SPLIT", value_delimiter = ',')]
    pub split: Vec<String>,
    /// Wording of the prompts, for all tasks or as `task=STYLE` (repeatable): `e2llm`, `official` or a task's own
    #[arg(long, value_name = "STYLE|task=STYLE", env = "E2LLM_PROMPT", value_delimiter = ',')]
    pub prompt: Vec<String>,
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
    /// Folder of the run [default: runs/<backend>-<model>, or runs/compare for several backends, numbered]
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
    /// Option of the backend (repeatable; `e2llm-bench describe BACKEND`); of several: BACKEND.KEY=VALUE
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
    /// Print the results as JSON on stdout; of several backends one document a line
    #[arg(long, env = "E2LLM_JSON")]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub plugins: PluginDirs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub models: ModelFlags,
}
