//! `manifest.toml`: what was asked, and what answered.

use crate::failure::{Failure, Result};
use e2llm_backend::{BackendInfo, Generation};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

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

    /// What makes a run with `new`'s settings another run than this one; empty where it can be continued.
    pub fn differences(&self, new: &Self) -> Vec<String> {
        let mut all = Vec::new();
        let mut differ = |what: &str, a: String, b: String| {
            if a != b {
                all.push(format!("{what}: was {a}, now {b}"));
            }
        };
        differ("program", self.program.clone(), new.program.clone());
        differ("backend", self.backend.name.clone(), new.backend.name.clone());
        differ("model", self.backend.model.clone(), new.backend.model.clone());
        differ("backend fingerprint", self.backend.fingerprint.clone(), new.backend.fingerprint.clone());
        differ(
            "backend options",
            format!("{:?}", self.backend_options),
            format!("{:?}", new.backend_options),
        );
        differ("selected samples", self.selected.join(","), new.selected.join(","));
        differ("seed", self.seed.to_string(), new.seed.to_string());
        differ("generation", format!("{:?}", self.generation), format!("{:?}", new.generation));
        differ("batch size", self.batch_size.to_string(), new.batch_size.to_string());
        for (name, new) in &new.plugins {
            if let Some(old) = self.plugins.get(name) {
                differ(&format!("plugin {name}"), old.sha256.clone(), new.sha256.clone());
            }
        }
        for task in &new.tasks {
            if let Some(old) = self.tasks.iter().find(|t| t.id == task.id) {
                differ(&format!("split of {}", task.id), old.split.clone(), task.split.clone());
                let wording = |t: &TaskEntry| format!("{} {}", t.prompt_style, t.prompt_hash);
                differ(&format!("prompt of {}", task.id), wording(old), wording(task));
                let sums =
                    |t: &TaskEntry| t.files.iter().map(|f| f.sha256.clone()).collect::<Vec<_>>().join(" ");
                differ(&format!("data of {}", task.id), sums(old), sums(task));
            }
        }
        all
    }
}
