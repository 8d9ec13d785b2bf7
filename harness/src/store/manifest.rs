//! `manifest.toml`: what was asked, and what answered.

use crate::failure::{Failure, Result};
use e2llm_backend::{BackendInfo, Generation};
use e2llm_plugin::official::PROMPT;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Values by option.
type Options = BTreeMap<String, String>;

/// A plugin that a run used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginUsed {
    /// Its version.
    pub version: String,
    /// SHA-256 of its library.
    pub sha256: String,
}

/// A data file that a run read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileUsed {
    /// Its path, as it was found.
    pub path: String,
    /// SHA-256 of its bytes.
    pub sha256: String,
}

/// A task of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskEntry {
    /// Its id.
    pub id: String,
    /// Its version.
    pub version: String,
    /// The split read.
    pub split: String,
    /// Whether its examples are the plugin's own sample.
    pub sample_data: bool,
    /// Which wording its prompts have.
    pub prompt_style: String,
    /// Hash of the wording: template, stop strings, whether the answer is begun; or that of the official template.
    pub prompt_hash: String,
    /// Metric ids to report, in order.
    pub metrics: Vec<String>,
    /// The one to rank by.
    pub primary_metric: String,
    /// Samples planned.
    pub samples: u64,
    /// Hash of all sample keys in order: the plan.
    pub plan: String,
    /// Hash of all prompts and references in order, whatever answers them; empty in runs of old versions.
    #[serde(default)]
    pub questions: String,
    /// Samples about texts that the model was trained on; absent where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained_on: Option<u64>,
    /// Files read.
    pub files: Vec<FileUsed>,
}

/// The manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Layout of the run folder; grows when it changes.
    pub format: u32,
    /// Version of the program.
    pub program: String,
    /// Root of all seeds.
    pub seed: u64,
    /// Resamples of the bootstrap.
    pub bootstrap: usize,
    /// At most so many samples a task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// The sample ids asked for; empty for all.
    #[serde(default)]
    pub selected: Vec<String>,
    /// Requests handed to the backend at once.
    pub batch_size: usize,
    /// Generation settings; `max_new_tokens` is 0 where each task's own holds.
    pub generation: Generation,
    /// What answered.
    pub backend: BackendInfo,
    /// The backend's options.
    pub backend_options: BTreeMap<String, String>,
    /// Options by task.
    pub task_options: BTreeMap<String, BTreeMap<String, String>>,
    /// Plugins by `kind/id`.
    pub plugins: BTreeMap<String, PluginUsed>,
    /// Operating system, processor type and count.
    pub hardware: String,
    /// Tasks in the order they were run.
    pub tasks: Vec<TaskEntry>,
}

/// The current layout.
pub const FORMAT: u32 = 1;

impl Manifest {
    /// Reads it.
    ///
    /// # Errors
    /// A file that is missing or unreadable, or of a layout this program does not know.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            Failure::usage(format!("cannot read {}: {e}", path.display()))
                .help("is that the folder of a run?")
        })?;
        let manifest: Self = toml::from_str(&text)
            .map_err(|e| Failure::failed(format!("{} is damaged: {}", path.display(), e.message())))?;
        if manifest.format != FORMAT {
            return Err(Failure::failed(format!(
                "{} has layout {}, this program knows {FORMAT}",
                path.display(),
                manifest.format
            )));
        }
        Ok(manifest)
    }

    /// Its text.
    ///
    /// # Errors
    /// None in practice.
    pub fn to_text(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Failure::failed(format!("cannot write the manifest: {e}")))
    }

    /// Each task's id and planned samples.
    pub fn planned(&self) -> impl Iterator<Item = (&str, u64)> {
        self.tasks.iter().map(|t| (t.id.as_str(), t.samples))
    }

    /// What makes a run with `new`'s settings another run than this one, a setting a line; empty where it can be
    /// continued. More samples and more tasks are the same run gone on with; metrics are made anew of its answers.
    pub fn differences(&self, new: &Self) -> Vec<String> {
        let mut all = Changes::default();
        all.see("program", &self.program, &new.program);
        all.see("backend", &self.backend.name, &new.backend.name);
        all.see("model", &self.backend.model, &new.backend.model);
        all.see("backend fingerprint", &self.backend.fingerprint, &new.backend.fingerprint);
        all.see_options("backend option ", &self.backend_options, &new.backend_options);
        let selected = |m: &Self| if m.selected.is_empty() { "all".to_owned() } else { m.selected.join(",") };
        all.see("selected samples", &selected(self), &selected(new));
        if new.limit.unwrap_or(u64::MAX) < self.limit.unwrap_or(u64::MAX) {
            let limit = |m: &Self| m.limit.map_or_else(|| NOT_SET.to_owned(), |n| n.to_string());
            all.see("limit", &limit(self), &limit(new));
        }
        all.see("seed", &self.seed.to_string(), &new.seed.to_string());
        let (a, b) = (&self.generation, &new.generation);
        let length = |n: usize| if n == 0 { "the task's own".to_owned() } else { n.to_string() };
        all.see("max_new_tokens", &length(a.max_new_tokens), &length(b.max_new_tokens));
        all.see("temperature", &a.temperature.to_string(), &b.temperature.to_string());
        all.see("top_p", &a.top_p.to_string(), &b.top_p.to_string());
        all.see("batch size", &self.batch_size.to_string(), &new.batch_size.to_string());
        for (name, new) in &new.plugins {
            if let Some(old) = self.plugins.get(name) {
                all.see(&format!("plugin {name}"), &old.sha256, &new.sha256);
            }
        }
        for task in &new.tasks {
            if let Some(old) = self.tasks.iter().find(|t| t.id == task.id) {
                let options = |m: &Self| {
                    let mut options = m.task_options.get(&task.id).cloned().unwrap_or_default();
                    // it may be named for all tasks as well: the wording below tells
                    options.remove(PROMPT);
                    options
                };
                all.see_options(&format!("task option {}.", task.id), &options(self), &options(new));
                all.see(&format!("split of {}", task.id), &old.split, &task.split);
                let wording = |t: &TaskEntry| format!("{} {}", t.prompt_style, t.prompt_hash);
                all.see(&format!("prompt of {}", task.id), &wording(old), &wording(task));
                let sums =
                    |t: &TaskEntry| t.files.iter().map(|f| f.sha256.clone()).collect::<Vec<_>>().join(" ");
                if sums(old) != sums(task) {
                    all.see(&format!("data of {}", task.id), &data(old), &data(task));
                }
            }
        }
        all.0
    }

    /// Tasks of this run that `new` leaves out.
    pub fn left_out<'a>(&'a self, new: &'a Self) -> impl Iterator<Item = &'a TaskEntry> {
        self.tasks.iter().filter(|old| !new.tasks.iter().any(|t| t.id == old.id))
    }
}

/// What is said of a setting that was not given.
const NOT_SET: &str = "not set";

/// Lines about settings that have changed.
#[derive(Default)]
struct Changes(Vec<String>);

impl Changes {
    fn see(&mut self, what: &str, old: &str, new: &str) {
        if old != new {
            self.0.push(format!("{what}: was {old}, now {new}"));
        }
    }

    fn see_options(&mut self, what: &str, old: &Options, new: &Options) {
        let keys: BTreeSet<_> = old.keys().chain(new.keys()).collect();
        for key in keys {
            let value = |of: &Options| of.get(key).map_or_else(|| NOT_SET.to_owned(), Clone::clone);
            self.see(&format!("{what}{key}"), &value(old), &value(new));
        }
    }
}

/// The files of a task, each with the beginning of its hash.
fn data(task: &TaskEntry) -> String {
    if task.sample_data {
        return "the sample records".into();
    }
    let files: Vec<_> = task
        .files
        .iter()
        .map(|f| format!("{} ({})", f.path, f.sha256.get(..8).unwrap_or_default()))
        .collect();
    if files.is_empty() { "no files".into() } else { files.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let task = |id: &str| TaskEntry {
            id: id.into(),
            version: "1".into(),
            split: "test".into(),
            sample_data: true,
            prompt_style: "e2llm".into(),
            prompt_hash: "cafe".into(),
            metrics: vec!["rouge1".into()],
            primary_metric: "rouge1".into(),
            samples: 3,
            plan: "plan".into(),
            questions: "questions".into(),
            trained_on: None,
            files: Vec::new(),
        };
        Manifest {
            format: FORMAT,
            program: "0.1.0".into(),
            seed: 0,
            bootstrap: 2000,
            limit: Some(3),
            selected: Vec::new(),
            batch_size: 1,
            generation: Generation { max_new_tokens: 0, temperature: 0.0, top_p: 1.0, seed: 0 },
            backend: BackendInfo::default(),
            backend_options: Options::new(),
            task_options: BTreeMap::new(),
            plugins: BTreeMap::new(),
            hardware: String::new(),
            tasks: vec![task("niah"), task("qmsum")],
        }
    }

    fn options(pairs: &[(&str, &str)]) -> Options {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    /// Changes a manifest and gives the differences.
    fn after(change: impl Fn(&mut Manifest, &mut Manifest)) -> Vec<String> {
        let (mut old, mut new) = (manifest(), manifest());
        change(&mut old, &mut new);
        old.differences(&new)
    }

    #[test]
    fn a_run_grows_and_its_metrics_change() {
        let same = |change: fn(&mut Manifest)| assert_eq!(after(|_, new| change(new)), [""; 0]);
        same(|_| {});
        same(|new| new.limit = Some(4));
        same(|new| new.limit = None);
        same(|new| new.tasks[0].metrics.clear());
        same(|new| new.bootstrap = 10);
        same(|new| {
            let more = TaskEntry { id: "quality".into(), ..new.tasks[0].clone() };
            new.tasks.push(more);
            new.task_options.insert("quality".into(), options(&[("output", "choose")]));
        });
    }

    #[test]
    fn each_setting_has_its_line() {
        assert_eq!(after(|_, new| new.limit = Some(2)), ["limit: was 3, now 2"]);
        assert_eq!(after(|old, _| old.limit = None), ["limit: was not set, now 3"]);
        let shorter = after(|_, new| {
            new.generation.max_new_tokens = 64;
            new.generation.temperature = 0.5;
        });
        assert_eq!(shorter, ["max_new_tokens: was the task's own, now 64", "temperature: was 0, now 0.5"]);
        let backend = after(|old, new| {
            old.backend_options = options(&[("a", "1"), ("b", "2")]);
            new.backend_options = options(&[("b", "2"), ("mode", "fixed")]);
        });
        assert_eq!(
            backend,
            ["backend option a: was 1, now not set", "backend option mode: was not set, now fixed"]
        );
        let task = after(|old, new| {
            old.task_options.insert("niah".into(), options(&[("depths", "0")]));
            new.task_options.insert("niah".into(), options(&[("depths", "100"), (PROMPT, "e2llm")]));
        });
        assert_eq!(task, ["task option niah.depths: was 0, now 100"]);
        let file = FileUsed { path: "data/niah/test.jsonl".into(), sha256: "0123456789abcdef".into() };
        let files = after(|_, new| {
            new.tasks[0].files = vec![file.clone()];
            new.tasks[0].sample_data = false;
        });
        assert_eq!(files, ["data of niah: was the sample records, now data/niah/test.jsonl (01234567)"]);
    }

    #[test]
    fn tasks_left_out_are_named() {
        let (old, mut new) = (manifest(), manifest());
        assert_eq!(old.left_out(&new).count(), 0);
        new.tasks.remove(1);
        assert_eq!(old.left_out(&new).map(|t| t.id.as_str()).collect::<Vec<_>>(), ["qmsum"]);
    }
}
