//! From `--data` and `--split` to what a task plugin reads.

use crate::config::DataChoice;
use crate::failure::{Failure, Result};
use e2llm_plugin::{Source, TaskInfo};
use std::path::{Path, PathBuf};

/// The split that is generated and needs no files.
pub const GENERATED: &str = "generated";

/// A task's data folder under a root: `longbench-v2`, `longbench_v2` and `longbenchv2` are the same.
///
/// # Errors
/// No such folder; the message names those tried.
pub fn task_folder(root: &Path, task: &str) -> Result<PathBuf> {
    let mut names = vec![task.to_owned(), task.replace('-', "_"), task.replace('-', "")];
    names.dedup();
    match names.iter().map(|n| root.join(n)).find(|p| p.is_dir()) {
        Some(folder) => Ok(folder),
        None => Err(Failure::usage(format!("no data of task `{task}` in {}", root.display())).help(format!(
            "expected a folder {} there: `data fetch {task}` makes one, and `run` also takes {task}=FOLDER or `sample`",
            names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(" or ")
        ))),
    }
}

/// What a task reads.
///
/// # Errors
/// A folder that is missing; a split asked of the embedded sample.
pub fn source(info: &TaskInfo, data: &DataChoice, split: Option<&str>, seed: u64) -> Result<Source> {
    let folder = match data {
        DataChoice::Sample => None,
        DataChoice::Root(root) => Some(task_folder(root, &info.id)?),
        DataChoice::Folder(folder) if folder.is_dir() => Some(folder.clone()),
        DataChoice::Folder(folder) => {
            return Err(Failure::usage(format!(
                "no data folder {} for task `{}`",
                folder.display(),
                info.id
            )));
        }
    };
    let generated = info.default_split == GENERATED;
    let default = if folder.is_none() && !generated { "sample" } else { info.default_split.as_str() };
    let split = split.unwrap_or(default);
    if folder.is_none() && split != default && split != "sample" {
        return Err(Failure::usage(format!(
            "the embedded sample of task `{}` has no split `{split}`",
            info.id
        ))
        .help("splits are read from a data folder: --data DIR"));
    }
    let mut source = Source::sample();
    source.folder = folder;
    source.split = split.to_owned();
    source.seed = seed;
    Ok(source)
}

/// How data is named in reports: the split, marked where it is the embedded sample.
pub fn is_sample(source: &Source) -> bool {
    source.folder.is_none()
}
