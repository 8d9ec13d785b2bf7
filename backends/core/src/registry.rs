//! Backends by name, with their declared options.

use crate::{Backend, BackendError, CancelFlag, ErrorKind};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where a model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// A CUDA device by its index.
    Cuda(usize),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(i) => write!(f, "cuda:{i}"),
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s.split_once(':') {
            None if s == "cpu" => Ok(Self::Cpu),
            None if s == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", i)) if i.parse::<usize>().is_ok() => Ok(Self::Cuda(i.parse().unwrap_or(0))),
            _ => Err(format!("unknown device `{s}`: use `cpu` or `cuda:N`")),
        }
    }
}

/// The files of a model, found and checked before a backend is built.
#[derive(Debug, Clone, Default)]
pub struct ModelFiles {
    /// The name the user gave.
    pub name: String,
    /// An E2LLM checkpoint folder (see `e2llm.md`: `e2llm_config.json`, `e2llm.safetensors`, ...).
    pub checkpoint: Option<PathBuf>,
    /// The text encoder: a folder in HF layout.
    pub encoder: Option<PathBuf>,
    /// The decoder: a folder in HF layout or a `.gguf` file.
    pub decoder: Option<PathBuf>,
    /// Tokens the decoder may read, where the catalogue says so.
    pub window: Option<u64>,
}

/// An option a backend takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionSpec {
    /// Its key.
    pub name: &'static str,
    /// Value where none is given.
    pub default: &'static str,
    /// One line for `describe`.
    pub help: &'static str,
}

/// What a value has to be, in words.
fn kind_of<T>() -> &'static str {
    match std::any::type_name::<T>() {
        "u16" | "u32" | "u64" | "usize" => "whole number from 0 up",
        "f32" | "f64" => "number",
        "bool" => "`true` or `false`",
        other => other,
    }
}

/// Options given by the user, checked against the backend's declared ones.
#[derive(Debug, Clone, Default)]
pub struct Options(BTreeMap<String, String>);

impl Options {
    /// Checks `given` against `declared` and fills in the defaults.
    ///
    /// # Errors
    /// An unknown key, naming those that exist.
    pub fn checked(declared: &[OptionSpec], given: &BTreeMap<String, String>) -> Result<Self, BackendError> {
        let mut all: BTreeMap<_, _> =
            declared.iter().map(|o| (o.name.to_owned(), o.default.to_owned())).collect();
        for (key, value) in given {
            if all.insert(key.clone(), value.clone()).is_none() {
                let known: Vec<_> = declared.iter().map(|o| o.name).collect();
                let message = format!("unknown backend option `{key}`: known are {}", known.join(", "));
                return Err(BackendError::new(ErrorKind::BadRequest, message));
            }
        }
        Ok(Self(all))
    }

    /// The text of an option; empty where the backend declares no such option.
    pub fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// An option read as `T`; `None` where its text is empty.
    ///
    /// # Errors
    /// A value that is no `T`, naming option and value.
    pub fn parse<T: FromStr>(&self, name: &str) -> Result<Option<T>, BackendError> {
        let text = self.text(name);
        if text.is_empty() {
            return Ok(None);
        }
        text.parse().map(Some).map_err(|_| {
            let message = format!("backend option `{name}`: `{text}` is no {}", kind_of::<T>());
            BackendError::new(ErrorKind::BadRequest, message)
        })
    }

    /// All options in order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }
}

/// What a backend is built from.
#[derive(Debug, Clone, Default)]
pub struct BuildContext {
    /// The model's files.
    pub model: ModelFiles,
    /// Checked options.
    pub options: Options,
    /// Where to run.
    pub device: Device,
    /// Element type of the weights: `f32`, `bf16` or `q` (kept quantised); empty for the backend's default.
    pub dtype: String,
    /// Seed of anything that is initialised at random.
    pub seed: u64,
    /// Looked at between tokens.
    pub cancel: CancelFlag,
}

/// Builds a backend.
pub type BuildFn = fn(&BuildContext) -> Result<Box<dyn Backend>, BackendError>;

/// A backend that can be built by name.
#[derive(Debug, Clone, Copy)]
pub struct BackendSpec {
    /// Its name.
    pub name: &'static str,
    /// One line for `list`.
    pub description: &'static str,
    /// Paper or project it implements.
    pub source: &'static str,
    /// Whether it needs model files.
    pub needs_model: bool,
    /// Options it takes.
    pub options: &'static [OptionSpec],
    /// Its constructor.
    pub build: BuildFn,
}

/// All backends, by name.
#[derive(Debug, Clone, Default)]
pub struct Registry(BTreeMap<&'static str, BackendSpec>);

impl Registry {
    /// Adds a backend; a later one of the same name is a programming error.
    ///
    /// # Panics
    /// When the name is taken.
    pub fn register(&mut self, spec: BackendSpec) {
        assert!(self.0.insert(spec.name, spec).is_none(), "backend `{}` is registered twice", spec.name);
    }

    /// A backend by its name.
    pub fn get(&self, name: &str) -> Option<&BackendSpec> {
        self.0.get(name)
    }

    /// All in order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &BackendSpec> {
        self.0.values()
    }
}
