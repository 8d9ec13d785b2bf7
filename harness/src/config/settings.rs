//! The settings a run ends up with.

use super::file::{NumberOrText, PerTask, RunFile};
use super::flags::RunArgs;
use crate::failure::{Failure, Result};
use e2llm_backend::Device;
use e2llm_plugin::official::PROMPT;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where a task's examples come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataChoice {
    /// The records embedded in the plugin.
    Sample,
    /// A folder with a folder per task.
    Root(PathBuf),
    /// The task's own folder.
    Folder(PathBuf),
}

/// Requests handed to the backend at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BatchSize {
    /// One on a processor, which a batch does not use better; 8 on an accelerator.
    Auto,
    /// A number.
    Fixed(usize),
}

impl BatchSize {
    /// The number for a device.
    pub fn on(self, device: Device) -> usize {
        match (self, device) {
            (Self::Fixed(n), _) => n,
            (Self::Auto, Device::Cpu) => 1,
            (Self::Auto, Device::Cuda(_)) => 8,
        }
    }
}

/// Everything that decides what a run does.
#[derive(Debug, Clone)]
pub struct RunSettings {
    /// Tasks in the order asked for; `all` for every one found.
    pub tasks: Vec<String>,
    /// Metric ids instead of each task's own.
    pub metrics: Option<Vec<String>>,
    /// The folder asked for.
    pub out: Option<PathBuf>,
    /// Continue what is in it.
    pub resume: bool,
    /// Only say what would be done.
    pub dry_run: bool,
    /// Data for tasks not in `data_by_task`.
    pub data: DataChoice,
    /// Data by task.
    pub data_by_task: BTreeMap<String, PathBuf>,
    /// Split for tasks not in `split_by_task`; the task's default where absent.
    pub split: Option<String>,
    /// Split by task.
    pub split_by_task: BTreeMap<String, String>,
    /// At most so many samples a task.
    pub limit: Option<u64>,
    /// Only these samples: `id` or `task:id`.
    pub samples: Option<Vec<String>>,
    /// Root of all seeds.
    pub seed: u64,
    /// Requests at once.
    pub batch_size: BatchSize,
    /// Resamples of the bootstrap.
    pub bootstrap: usize,
    /// Keep rendered prompts.
    pub store_prompts: bool,
    /// Refuse the network.
    pub offline: bool,
    /// Folders with plugins.
    pub plugin_dirs: Vec<PathBuf>,
    /// A model catalogue of the user's.
    pub models_file: Option<PathBuf>,
    /// Backend.
    pub backend: String,
    /// What it is called among several.
    pub label: String,
    /// Model name or path.
    pub model: Option<String>,
    /// Where to run.
    pub device: Device,
    /// Element type; empty for the backend's default.
    pub dtype: String,
    /// The backend's options.
    pub backend_options: BTreeMap<String, String>,
    /// Longest answer, instead of the task's own.
    pub max_new_tokens: Option<usize>,
    /// 0 is greedy.
    pub temperature: f64,
    /// Nucleus.
    pub top_p: f64,
    /// Wording of the prompts of tasks whose options name none.
    pub prompt: Option<String>,
    /// Options by task.
    pub task_options: BTreeMap<String, serde_json::Map<String, serde_json::Value>>,
}

impl RunSettings {
    /// Everything but the backend.
    pub(super) fn common(args: &RunArgs, file: RunFile) -> Result<Self> {
        let tasks = args.tasks.clone().or_else(|| file.tasks.as_ref().map(super::file::List::items));
        let Some(tasks) = tasks.filter(|t| !t.is_empty()) else {
            return Err(Failure::usage("no tasks").help("name them with --tasks A,B or --tasks all"));
        };
        let (data, data_by_task) = data(args, file.data)?;
        let (split, split_by_task) = split(args, file.split);
        let (prompt, prompt_by_task) = per_task(&args.prompt, file.prompt);
        let temperature = set("generation.temperature", args.temperature.or(file.generation.temperature))?;
        let top_p = set("generation.top_p", args.top_p.or(file.generation.top_p))?;
        if !(temperature.is_finite() && temperature >= 0.0) {
            return Err(Failure::usage(format!("temperature {temperature} is not a number from 0 up")));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(Failure::usage(format!("top-p {top_p} is not above 0 and at most 1")));
        }
        let limit = args.limit.or(file.limit);
        if limit == Some(0) {
            return Err(Failure::usage("a limit of 0 leaves nothing to do"));
        }
        let max_new_tokens = args.max_new_tokens.or(file.generation.max_new_tokens);
        if max_new_tokens == Some(0) {
            return Err(Failure::usage("max_new_tokens of 0 leaves nothing to answer with")
                .help("leave it out for each task's own length"));
        }
        let mut plugin_dirs = args.plugins.plugin_dir.clone();
        plugin_dirs.extend(file.plugin_dir.unwrap_or_default());
        Ok(Self {
            tasks,
            metrics: args.metrics.clone().or_else(|| file.metrics.as_ref().map(super::file::List::items)),
            out: args.out.clone().or(file.out),
            resume: args.resume,
            dry_run: args.dry_run,
            data,
            data_by_task,
            split,
            split_by_task,
            limit,
            samples: args.samples.clone().or_else(|| file.samples.as_ref().map(super::file::List::items)),
            seed: set("seed", args.seed.or(file.seed))?,
            batch_size: batch_size(args, file.batch_size)?,
            bootstrap: set("bootstrap", args.bootstrap.or(file.bootstrap))?,
            store_prompts: args.store_prompts || file.store_prompts.unwrap_or(false),
            offline: args.models.offline || file.offline.unwrap_or(false),
            plugin_dirs,
            models_file: args.models.models_file.clone().or(file.models_file),
            backend: String::new(),
            label: String::new(),
            model: None,
            device: Device::Cpu,
            dtype: String::new(),
            backend_options: BTreeMap::new(),
            max_new_tokens,
            temperature,
            top_p,
            prompt,
            task_options: task_options(args, &file.task, prompt_by_task)?,
        })
    }

    /// Where a task's examples come from.
    pub fn data_of(&self, task: &str) -> DataChoice {
        self.data_by_task.get(task).map_or_else(|| self.data.clone(), |f| DataChoice::Folder(f.clone()))
    }

    /// The split asked for.
    pub fn split_of(&self, task: &str) -> Option<&str> {
        self.split_by_task.get(task).or(self.split.as_ref()).map(String::as_str)
    }
}

/// A setting that flags, the file or the built-in defaults must give.
pub(super) fn set<T>(key: &str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| {
        Failure::usage(format!("no `{key}` is set, and configs/eval.toml has no default of it"))
    })
}

/// `key=value`.
pub(super) fn pair<'a>(text: &'a str, flag: &str) -> Result<(&'a str, &'a str)> {
    text.split_once('=')
        .filter(|(k, _)| !k.is_empty())
        .ok_or_else(|| Failure::usage(format!("--{flag} {text}: expected key=value")))
}

/// Splits `x` and `task=x` items; in a table, `default` is for all.
fn per_task(flags: &[String], file: Option<PerTask>) -> (Option<String>, BTreeMap<String, String>) {
    let (mut all, mut by_task) = (None, BTreeMap::new());
    match file {
        Some(PerTask::One(one)) => all = Some(one),
        Some(PerTask::ByTask(mut table)) => {
            all = table.remove("default");
            by_task = table;
        }
        None => {}
    }
    for flag in flags {
        match flag.split_once('=') {
            Some((task, value)) => drop(by_task.insert(task.to_owned(), value.to_owned())),
            None => all = Some(flag.clone()),
        }
    }
    (all, by_task)
}

fn data(args: &RunArgs, file: Option<PerTask>) -> Result<(DataChoice, BTreeMap<String, PathBuf>)> {
    let (all, by_task) = per_task(&args.data, file);
    let data = match all.as_deref() {
        None | Some("sample") => DataChoice::Sample,
        Some(root) if Path::new(root).is_dir() => DataChoice::Root(root.into()),
        Some(root) => {
            return Err(Failure::usage(format!("no data folder {root}"))
                .help("--data takes a folder, task=FOLDER, or `sample` for the embedded records"));
        }
    };
    Ok((data, by_task.into_iter().map(|(task, folder)| (task, folder.into())).collect()))
}

fn split(args: &RunArgs, file: Option<PerTask>) -> (Option<String>, BTreeMap<String, String>) {
    per_task(&args.split, file)
}

fn batch_size(args: &RunArgs, file: Option<NumberOrText>) -> Result<BatchSize> {
    let text = match (&args.batch_size, file) {
        (Some(text), _) => text.clone(),
        (None, Some(NumberOrText::Number(n))) => n.to_string(),
        (None, Some(NumberOrText::Text(text))) => text,
        (None, None) => "auto".into(),
    };
    match (text.as_str(), text.parse()) {
        ("auto", _) => Ok(BatchSize::Auto),
        (_, Ok(n)) if n > 0 => Ok(BatchSize::Fixed(n)),
        _ => Err(Failure::usage(format!("batch size `{text}` is neither a number from 1 up nor `auto`"))),
    }
}

fn plain_text(value: &toml::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

pub(super) fn backend_options(
    flags: &[String],
    file: BTreeMap<String, toml::Value>,
) -> Result<BTreeMap<String, String>> {
    let mut all: BTreeMap<_, _> = file.into_iter().map(|(k, v)| (k, plain_text(&v))).collect();
    for option in flags {
        let (key, value) = pair(option, "backend-option")?;
        all.insert(key.to_owned(), value.to_owned());
    }
    Ok(all)
}

type TaskOptionTable = BTreeMap<String, serde_json::Map<String, serde_json::Value>>;

fn task_options(
    args: &RunArgs,
    file: &BTreeMap<String, BTreeMap<String, toml::Value>>,
    prompts: BTreeMap<String, String>,
) -> Result<TaskOptionTable> {
    let mut all = TaskOptionTable::new();
    for (task, options) in file {
        for (key, value) in options {
            let value = serde_json::to_value(value)
                .map_err(|e| Failure::usage(format!("option `{key}` of task `{task}`: {e}")))?;
            all.entry(task.clone()).or_default().insert(key.clone(), value);
        }
    }
    for (task, style) in prompts {
        all.entry(task).or_default().insert(PROMPT.into(), style.into());
    }
    for option in &args.task_option {
        let (name, value) = pair(option, "task-option")?;
        let Some((task, key)) = name.split_once('.') else {
            return Err(Failure::usage(format!("--task-option {option}: expected task.option=value")));
        };
        all.entry(task.to_owned()).or_default().insert(key.to_owned(), value.into());
    }
    Ok(all)
}
