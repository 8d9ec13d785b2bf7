//! Which files are learned from and which are validated on.

use crate::cli::PrepareArgs;
use crate::data;
use crate::failure::{Failure, Result};
use crate::plugins::{Index, SearchPath};
use e2llm_plugin::client::TaskClient;
use e2llm_plugin::{Kind, Source, TaskOptions};
use e2llm_train::Split;
use e2llm_train::data::Assign;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Where records come from.
#[derive(Debug)]
pub enum Origin {
    /// A file of JSON Lines.
    File(PathBuf),
    /// A task's split, asked as the task asks.
    Task(Box<TaskSplit>),
}

/// A task with what it reads.
#[derive(Debug)]
pub struct TaskSplit {
    /// Its instance.
    pub client: TaskClient,
    /// What it reads.
    pub source: Source,
    /// Its id, for messages.
    pub task: String,
}

/// Records and what becomes of them.
#[derive(Debug)]
pub struct Input {
    /// Where they come from.
    pub origin: Origin,
    /// Where its records go.
    pub assign: Assign,
    /// Documents whose records are for validation all the same.
    pub except: BTreeSet<String>,
}

/// `--splits`: files of both splits without their endings.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SplitsFile {
    train: Train,
    validation: Validation,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Train {
    files: Vec<String>,
    #[serde(default)]
    except_documents: BTreeSet<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Validation {
    files: Vec<String>,
}

/// The records asked for, those to validate on first: their documents are known then when the others are read.
///
/// # Errors
/// No records; a list of files that is none; files, tasks or data that are missing.
pub fn inputs(args: &PrepareArgs) -> Result<Vec<Input>> {
    let files = |paths: &[PathBuf]| paths.iter().map(|p| file(p.clone())).collect::<Result<Vec<_>>>();
    let (mut train, validation, except) = match (&args.splits, &args.data) {
        (Some(list), Some(root)) => {
            let splits = read(list)?;
            let tasks = args.task_prompts.then(|| index(args)).transpose()?;
            let find = |names: Vec<String>| {
                names.iter().map(|n| find(root, n, tasks.as_ref())).collect::<Result<Vec<_>>>()
            };
            (find(splits.train.files)?, find(splits.validation.files)?, splits.train.except_documents)
        }
        _ => (files(&args.input)?, files(&args.validation_input)?, BTreeSet::new()),
    };
    if !args.from_task.is_empty() {
        let index = index(args)?;
        let root = args.data.as_ref().ok_or_else(|| {
            Failure::usage("--from-task needs --data").help("name the folder that has a folder per task")
        })?;
        for name in &args.from_task {
            let (task, split) = name.split_once(':').unwrap_or((name, "train"));
            train.push(task_split(&index, task, data::task_folder(root, task)?, split)?);
        }
    }
    if train.is_empty() && validation.is_empty() {
        return Err(Failure::usage("no records").help(
            "name files with --input, tasks with --from-task and --data, or a list of files with --splits and --data",
        ));
    }
    let assign =
        if validation.is_empty() && except.is_empty() { Assign::BySeed } else { Assign::To(Split::Train) };
    let held = validation.into_iter().map(|origin| Input {
        origin,
        assign: Assign::To(Split::Validation),
        except: BTreeSet::new(),
    });
    let learned = train.into_iter().map(|origin| Input { origin, assign, except: except.clone() });
    Ok(held.chain(learned).collect())
}

fn index(args: &PrepareArgs) -> Result<Index> {
    Index::scan(&SearchPath::usual(&args.plugins.plugin_dir))
}

fn file(path: PathBuf) -> Result<Origin> {
    if path.is_file() {
        return Ok(Origin::File(path));
    }
    Err(Failure::usage(format!("no file {}", path.display())))
}

fn task_split(index: &Index, task: &str, folder: PathBuf, split: &str) -> Result<Origin> {
    let (client, _) = index.task(task)?.open(&TaskOptions::default())?;
    let mut source = Source::sample();
    source.folder = Some(folder);
    source.split = split.to_owned();
    Ok(Origin::Task(Box::new(TaskSplit { client, source, task: task.to_owned() })))
}

fn read(path: &Path) -> Result<SplitsFile> {
    let text = std::fs::read_to_string(path).map_err(|e| Failure::io("read", path, &e))?;
    toml::from_str(&text).map_err(|e| {
        let failure = Failure::usage(format!("{}: {}", path.display(), e.message()));
        match e.span() {
            Some(span) => failure.at(path.display().to_string(), &text, span),
            None => failure,
        }
    })
}

/// A file of a list, or, where its folder is a task's and tasks are to be used, that task's split.
fn find(root: &Path, name: &str, tasks: Option<&Index>) -> Result<Origin> {
    if let (Some(index), Some((folder, split))) = (tasks, name.split_once('/')) {
        let same = |id: &&str| {
            [id.to_string(), id.replace('-', "_"), id.replace('-', "")].iter().any(|n| n == folder)
        };
        if let Some(task) = index.ids(Kind::Task).find(same) {
            return task_split(index, task, root.join(folder), split);
        }
    }
    let endings = ["", ".jsonl", ".jsonl.zst", ".jsonl.gz"];
    let mut paths = endings.iter().map(|e| root.join(format!("{name}{e}")));
    paths.find(|p| p.is_file()).map(Origin::File).ok_or_else(|| {
        Failure::usage(format!("no file {}", root.join(name).display()))
            .help("tried .jsonl, .jsonl.zst and .jsonl.gz")
    })
}
