//! The tasks of a run, opened and checked before anything costly happens.

use super::scoring::MetricSet;
use crate::config::RunSettings;
use crate::data;
use crate::failure::{Failure, Result};
use crate::plugins::{FoundTask, Index};
use e2llm_backend::fingerprint::sha256_file;
use e2llm_plugin::client::TaskClient;
use e2llm_plugin::official::PROMPT;
use e2llm_plugin::{Source, TaskInfo, TaskOptions};

/// A task that is ready to be read.
#[derive(Debug)]
pub struct OpenTask {
    /// Its instance.
    pub client: TaskClient,
    /// What it says of itself.
    pub info: TaskInfo,
    /// What it reads.
    pub source: Source,
    /// What it is scored with.
    pub metrics: MetricSet,
    /// The metric to rank by.
    pub primary_metric: String,
    /// Version of its plugin or file.
    pub plugin_version: String,
    /// SHA-256 of its library or file.
    pub plugin_sha256: String,
}

/// Loads the tasks and metrics that a run asks for.
///
/// # Errors
/// An unknown task, metric or option; data that is not there; options for a task that is not run.
pub fn open_tasks(settings: &RunSettings, index: &Index) -> Result<Vec<OpenTask>> {
    let ids: Vec<String> = if settings.tasks.iter().any(|t| t == "all") {
        let all: Vec<_> = index.task_ids().into_iter().map(str::to_owned).collect();
        if all.is_empty() {
            index.task("all")?; // says where plugins were looked for
        }
        all
    } else {
        let mut seen = std::collections::BTreeSet::new();
        settings.tasks.iter().filter(|t| seen.insert((*t).clone())).cloned().collect()
    };
    let named =
        settings.task_options.keys().chain(settings.data_by_task.keys()).chain(settings.split_by_task.keys());
    for task in named {
        if !ids.contains(task) {
            return Err(Failure::usage(format!("a setting names task `{task}`, which is not run"))
                .help(crate::failure::did_you_mean(task, ids.iter().map(String::as_str))));
        }
    }
    ids.iter().map(|id| open_task(settings, index, id)).collect()
}

fn open_task(settings: &RunSettings, index: &Index, id: &str) -> Result<OpenTask> {
    let found = index.task(id)?;
    let mut options = settings.task_options.get(id).cloned().unwrap_or_default();
    if let Some(style) = &settings.prompt {
        options.entry(PROMPT).or_insert_with(|| style.clone().into());
    }
    let options = TaskOptions(options);
    let (client, plugin_version) = found.open(&options)?;
    let info = client.info()?;
    let data = found.data(settings.data_of(id))?;
    let source = data::source(&info, &data, settings.split_of(id), settings.seed)?;
    let wanted = settings.metrics.as_ref().unwrap_or(&info.metrics);
    if let (FoundTask::Declared(declared), None) = (&found, &settings.metrics) {
        declared.check_metrics(index)?;
    }
    let metrics = MetricSet::load(index, wanted)?;
    let primary = &info.primary_metric;
    let primary_metric = if metrics.wanted.contains(primary) {
        primary.clone()
    } else {
        metrics.wanted.first().cloned().unwrap_or_default()
    };
    let path = found.path();
    Ok(OpenTask {
        client,
        source,
        metrics,
        primary_metric,
        plugin_version,
        plugin_sha256: sha256_file(path).map_err(|e| Failure::io("read", path, &e))?,
        info,
    })
}
