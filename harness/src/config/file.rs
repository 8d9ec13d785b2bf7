//! The TOML file of a run (`--config`).

use crate::failure::{Failure, Result, did_you_mean};
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A text, or a table of texts by task with an optional `default`.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum PerTask {
    /// One for all tasks.
    One(String),
    /// By task.
    ByTask(BTreeMap<String, String>),
}

/// A list, or a text with commas.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum List {
    /// `"a,b"`.
    Text(String),
    /// `["a", "b"]`.
    Items(Vec<String>),
}

impl List {
    /// Its items.
    pub fn items(&self) -> Vec<String> {
        match self {
            Self::Items(items) => items.clone(),
            Self::Text(text) => {
                text.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect()
            }
        }
    }
}

/// A number, or `"auto"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum NumberOrText {
    /// A number.
    Number(u64),
    /// A word.
    Text(String),
}

/// `[backend]`, or a list of them: `[[backend]]`.
#[derive(Debug, Clone)]
pub enum Backends {
    /// One.
    One(BackendTable),
    /// Several, which are run one after another.
    Several(Vec<BackendTable>),
}

impl Default for Backends {
    fn default() -> Self {
        Self::One(BackendTable::default())
    }
}

impl Backends {
    /// The only or first table.
    pub fn first(&self) -> BackendTable {
        match self {
            Self::One(table) => table.clone(),
            Self::Several(tables) => tables.first().cloned().unwrap_or_default(),
        }
    }

    fn over(self, base: &BackendTable) -> Self {
        match self {
            Self::One(table) => Self::One(table.over(base)),
            Self::Several(tables) => Self::Several(tables.into_iter().map(|t| t.over(base)).collect()),
        }
    }
}

// Not an untagged enum: that would hide unknown keys.
impl<'de> Deserialize<'de> for Backends {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Tables;
        impl<'de> Visitor<'de> for Tables {
            type Value = Backends;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a table [backend], or tables [[backend]]")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<Backends, A::Error> {
                BackendTable::deserialize(MapAccessDeserializer::new(map)).map(Backends::One)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> std::result::Result<Backends, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(Backends::Several)
            }
        }
        deserializer.deserialize_any(Tables)
    }
}

/// `[backend]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct BackendTable {
    /// Registry name.
    pub name: Option<String>,
    /// What it is called where several are run [default: its name].
    pub label: Option<String>,
    /// Catalogue name or path.
    pub model: Option<String>,
    /// `cpu` or `cuda:N`.
    pub device: Option<String>,
    /// `f32`, `bf16` or `q`.
    pub dtype: Option<String>,
    /// The backend's own options.
    pub options: BTreeMap<String, toml::Value>,
}

impl BackendTable {
    fn over(self, base: &Self) -> Self {
        Self {
            name: self.name.or_else(|| base.name.clone()),
            label: self.label,
            model: self.model.or_else(|| base.model.clone()),
            device: self.device.or_else(|| base.device.clone()),
            dtype: self.dtype.or_else(|| base.dtype.clone()),
            options: self.options,
        }
    }
}

/// `[generation]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct GenerationTable {
    /// Longest answer, instead of the task's own.
    pub max_new_tokens: Option<usize>,
    /// 0 is greedy.
    pub temperature: Option<f64>,
    /// Nucleus.
    pub top_p: Option<f64>,
}

/// The whole file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct RunFile {
    /// Tasks, or `all`.
    pub tasks: Option<List>,
    /// Metric ids, instead of each task's own.
    pub metrics: Option<List>,
    /// Folder of the run.
    pub out: Option<PathBuf>,
    /// Data folder(s), or `sample`.
    pub data: Option<PerTask>,
    /// Split(s).
    pub split: Option<PerTask>,
    /// Wording(s) of the prompts.
    pub prompt: Option<PerTask>,
    /// At most so many samples a task.
    pub limit: Option<u64>,
    /// Only these samples.
    pub samples: Option<List>,
    /// Root of all seeds.
    pub seed: Option<u64>,
    /// Requests handed to the backend at once, or `auto`.
    pub batch_size: Option<NumberOrText>,
    /// Resamples of the bootstrap.
    pub bootstrap: Option<usize>,
    /// Keep rendered prompts.
    pub store_prompts: Option<bool>,
    /// Refuse the network.
    pub offline: Option<bool>,
    /// Folders with plugins.
    pub plugin_dir: Option<Vec<PathBuf>>,
    /// A model catalogue of the user's.
    pub models_file: Option<PathBuf>,
    /// The method, or several.
    pub backend: Backends,
    /// How answers are generated.
    pub generation: GenerationTable,
    /// Options by task.
    pub task: BTreeMap<String, BTreeMap<String, toml::Value>>,
}

/// All keys, by the table they belong to.
const KEYS: [(&str, &[&str]); 3] = [
    (
        "",
        &[
            "tasks",
            "metrics",
            "out",
            "data",
            "split",
            "prompt",
            "limit",
            "samples",
            "seed",
            "batch_size",
            "bootstrap",
            "store_prompts",
            "offline",
            "plugin_dir",
            "models_file",
            "backend",
            "generation",
            "task",
        ],
    ),
    ("backend", &["name", "label", "model", "device", "dtype", "options"]),
    ("generation", &["max_new_tokens", "temperature", "top_p"]),
];

/// What may have been meant by a key that is not known where it stands.
fn meant(key: &str) -> String {
    let last = key.rsplit('.').next().unwrap_or(key);
    match KEYS.iter().find(|(_, keys)| keys.contains(&last)) {
        Some(("", _)) => format!("`{last}` belongs at the top, before any table"),
        Some((table, _)) => format!("`{last}` belongs into [{table}]"),
        None => did_you_mean(last, KEYS.iter().flat_map(|(_, keys)| keys.iter().copied())),
    }
}

impl RunFile {
    /// Reads a file. Unknown keys are errors.
    ///
    /// # Errors
    /// A file that cannot be read, is no TOML, or has a key or value that means nothing; with its line.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Failure::usage(format!("cannot read configuration {}: {e}", path.display())))?;
        Self::parse(&path.display().to_string(), &text)
    }

    /// The defaults of every run, `configs/eval.toml`.
    ///
    /// # Errors
    /// None: the file is part of the program and covered by tests.
    pub fn built_in() -> Result<Self> {
        Self::parse("configs/eval.toml", include_str!("../../../configs/eval.toml"))
    }

    /// What this file sets, and `base` where it sets nothing.
    #[must_use]
    pub fn over(self, base: Self) -> Self {
        Self {
            tasks: self.tasks.or(base.tasks),
            metrics: self.metrics.or(base.metrics),
            out: self.out.or(base.out),
            data: self.data.or(base.data),
            split: self.split.or(base.split),
            prompt: self.prompt.or(base.prompt),
            limit: self.limit.or(base.limit),
            samples: self.samples.or(base.samples),
            seed: self.seed.or(base.seed),
            batch_size: self.batch_size.or(base.batch_size),
            bootstrap: self.bootstrap.or(base.bootstrap),
            store_prompts: self.store_prompts.or(base.store_prompts),
            offline: self.offline.or(base.offline),
            plugin_dir: self.plugin_dir.or(base.plugin_dir),
            models_file: self.models_file.or(base.models_file),
            backend: self.backend.over(&base.backend.first()),
            generation: GenerationTable {
                max_new_tokens: self.generation.max_new_tokens.or(base.generation.max_new_tokens),
                temperature: self.generation.temperature.or(base.generation.temperature),
                top_p: self.generation.top_p.or(base.generation.top_p),
            },
            task: self.task,
        }
    }

    fn parse(name: &str, text: &str) -> Result<Self> {
        let bad = |e: &toml::de::Error| {
            let failure = Failure::usage(format!("configuration {name}: {}", e.message()));
            match e.span() {
                Some(span) => failure.at(name, text, span),
                None => failure,
            }
        };
        let deserializer = toml::Deserializer::parse(text).map_err(|e| bad(&e))?;
        let mut unknown = Vec::new();
        let file: Self = serde_ignored::deserialize(deserializer, |path| unknown.push(path.to_string()))
            .map_err(|e| bad(&e))?;
        let Some(key) = unknown.first() else { return Ok(file) };
        let last = key.rsplit('.').next().unwrap_or(key);
        let failure = Failure::usage(format!("configuration {name}: unknown key `{key}`")).help(meant(key));
        Err(match line_of(text, last) {
            Some(span) => failure.at(name, text, span),
            None => failure,
        })
    }
}

/// Where a key is set, to point at it.
fn line_of(text: &str, key: &str) -> Option<std::ops::Range<usize>> {
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let trimmed = line.trim_start();
        let at = start + line.len() - trimmed.len();
        let bare = trimmed.trim_start_matches('[').trim_start_matches('"');
        if bare.starts_with(key) && !bare[key.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_')
        {
            let from = at + trimmed.len() - bare.len();
            return Some(from..from + key.len());
        }
        start += line.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_files_are_read() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/runs");
        let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        assert!(!files.is_empty());
        for file in files {
            RunFile::read(&file).unwrap();
        }
    }

    #[test]
    fn defaults_hold_where_a_file_sets_nothing() {
        let file = RunFile::parse("x", "seed = 3\n[backend]\ndevice = \"cuda:0\"\n").unwrap();
        let all = file.over(RunFile::built_in().unwrap());
        assert_eq!((all.seed, all.bootstrap), (Some(3), Some(2000)));
        assert_eq!(all.backend.first().device.as_deref(), Some("cuda:0"));
        assert_eq!(all.backend.first().model.as_deref(), Some("e2llm-135m"));
    }

    #[test]
    fn unknown_keys_are_named_with_their_place() {
        let text = "tasks = \"all\"\n[backend]\nname = \"e2llm\"\nmodle = \"x\"\n";
        let error = RunFile::parse("run.toml", text).unwrap_err();
        assert_eq!(error.to_string(), "configuration run.toml: unknown key `backend.modle`");
        let shown = format!("{:?}", miette::Report::new(*error));
        assert!(shown.contains("did you mean `model`?"), "{shown}");
        assert!(shown.contains("run.toml:4:1"), "{shown}");
        for (text, help) in [
            ("max_new_tokens = 3\n", "`max_new_tokens` belongs into [generation]"),
            ("[backend]\nname = \"echo\"\nlimit = 3\n", "`limit` belongs at the top"),
        ] {
            let error = RunFile::parse("run.toml", text).unwrap_err();
            let shown = format!("{:?}", miette::Report::new(*error));
            assert!(shown.contains(help), "{shown}");
        }
    }

    #[test]
    fn wrong_types_are_named_with_their_place() {
        let error = RunFile::parse("run.toml", "seed = \"x\"\n").unwrap_err();
        let shown = format!("{:?}", miette::Report::new(*error));
        assert!(shown.contains("run.toml:1:8"), "{shown}");
    }
}
