//! Flags of `data`.

use crate::config::PluginDirs;
use clap::{Args, Subcommand};
use std::path::PathBuf;

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
