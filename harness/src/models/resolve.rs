//! What a name or path stands for.

use super::catalogue::{Kind, closest};
use super::error::ModelError;
use super::fetch::Fetcher;
use super::verify::{combined_sha256, is_weights, sha256_of};
use e2llm::checkpoint::settings_file;
use e2llm_backend::ModelFiles;
use e2llm_lm::TunedDecoder;
use serde::Deserialize;
use std::fs;
use std::path::{Path, PathBuf};

/// Methods whose checkpoints are folders with `<method>_config.json` and `<method>.safetensors`.
pub(super) const METHODS: [&str; 3] = ["e2llm", "cepe", "lloco"];

/// The method that a checkpoint is of, where `backend` is another of those that have checkpoints of their own: it would
/// find nothing trained in it.
pub fn other_method(checkpoint: &Path, backend: &str) -> Option<&'static str> {
    let is_of = |method: &str| checkpoint.join(settings_file(method)).is_file();
    let foreign = METHODS.contains(&backend) && !is_of(backend);
    METHODS.into_iter().find(|method| foreign && is_of(method))
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// A folder with the settings of a trained method.
    Checkpoint,
    /// A folder with what was trained of a decoder.
    Tuned,
    /// A folder with an `encoder/` and a `decoder/` and nothing trained on them.
    Pair,
    /// A folder in HF layout with an encoder.
    Encoder,
    /// A decoder: the folder in HF layout, or its `.gguf` file.
    Decoder(PathBuf),
}

/// A part of a checkpoint that is kept elsewhere: `source.toml` or `source.json`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reference {
    /// A catalogue name, or a path (relative ones start at the part's folder).
    source: String,
    /// Of the weights, as [`Entry::weights_sha256`](super::Entry::weights_sha256).
    sha256: String,
}

impl Fetcher {
    /// The files of what the user named: a catalogue entry (fetched where needed), an E2LLM checkpoint folder, a
    /// folder in HF layout, or a `.gguf` file. A catalogue name wins over a file of the same name; `./name` means
    /// the file.
    ///
    /// # Errors
    /// Neither a name nor a path; a path without a usable model; base weights that are not those a checkpoint
    /// was made on; everything of [`Fetcher::fetch`].
    pub fn resolve(&self, model: &str) -> Result<ModelFiles, ModelError> {
        match self.catalogue.get(model) {
            Ok(_) => self.fetch(model),
            Err(unknown) => {
                let path = Path::new(model);
                if path.exists() { self.resolve_path(model, path) } else { Err(unknown) }
            }
        }
    }

    fn resolve_path(&self, name: &str, path: &Path) -> Result<ModelFiles, ModelError> {
        let mut files = ModelFiles { name: name.to_owned(), ..ModelFiles::default() };
        match found_at(path)? {
            Found::Checkpoint => {
                // Not every method has one.
                let has_encoder = path.join("e2llm_config.json").is_file() || path.join("encoder").exists();
                let encoder = has_encoder.then(|| self.checkpoint_part(path, Kind::Encoder)).transpose()?;
                let (decoder, window) = self.checkpoint_part(path, Kind::Decoder)?;
                files.checkpoint = Some(path.to_owned());
                files.encoder = encoder.map(|(encoder, _)| encoder);
                files.decoder = Some(decoder);
                files.window = window;
            }
            Found::Tuned => {
                let (decoder, window) = self.checkpoint_part(path, Kind::Decoder)?;
                files.checkpoint = Some(path.to_owned());
                files.decoder = Some(decoder);
                files.window = window;
            }
            Found::Pair => {
                files.encoder = Some(self.checkpoint_part(path, Kind::Encoder)?.0);
                let (decoder, window) = self.checkpoint_part(path, Kind::Decoder)?;
                files.decoder = Some(decoder);
                files.window = window;
            }
            Found::Encoder => {
                files.encoder = Some(path.to_owned());
                files.window = window_of(path);
            }
            Found::Decoder(decoder) => {
                files.window = window_of(&decoder);
                files.decoder = Some(decoder);
            }
        }
        Ok(files)
    }

    /// Where the encoder or decoder of a checkpoint is, and its window.
    fn checkpoint_part(&self, checkpoint: &Path, kind: Kind) -> Result<(PathBuf, Option<u64>), ModelError> {
        let folder = checkpoint.join(kind.to_string());
        if let Some((file, reference)) = read_reference(&folder)? {
            return self.referenced(&folder, &file, &reference, kind);
        }
        if !folder.is_dir() {
            return Err(unusable(
                checkpoint,
                format!("there is no folder `{kind}`"),
                format!(
                    "a checkpoint's `{kind}/` holds an HF model, or a `source.toml` with `source` and `sha256`"
                ),
            ));
        }
        self.part_at(&folder, kind)
    }

    fn part_at(&self, path: &Path, kind: Kind) -> Result<(PathBuf, Option<u64>), ModelError> {
        match (found_at(path)?, kind) {
            (Found::Encoder, Kind::Encoder) => Ok((path.to_owned(), window_of(path))),
            (Found::Decoder(decoder), Kind::Decoder) => {
                let window = window_of(&decoder);
                Ok((decoder, window))
            }
            _ => Err(unusable(path, format!("it holds no {kind}"), format!("give it the {kind}'s files"))),
        }
    }

    fn referenced(
        &self,
        folder: &Path,
        file: &Path,
        reference: &Reference,
        kind: Kind,
    ) -> Result<(PathBuf, Option<u64>), ModelError> {
        let other_weights = |sha256: Option<String>| {
            let has = sha256.unwrap_or_else(|| "none".into());
            let message = format!(
                "the checkpoint was made on `{}` with sha256 {}, but that has {has}",
                reference.source, reference.sha256
            );
            unusable(file, message, "use the base weights the checkpoint was made on".into())
        };
        match self.catalogue.get(&reference.source) {
            Ok(entry) => {
                if entry.kind != kind {
                    let message = format!("`{}` is of kind `{}`", reference.source, entry.kind);
                    return Err(unusable(file, message, format!("name a model of kind `{kind}`")));
                }
                // Before fetching: nobody wants to wait for the wrong weights.
                if entry.weights_sha256().as_ref() != Some(&reference.sha256) {
                    return Err(other_weights(entry.weights_sha256()));
                }
                let files = self.fetch(&reference.source)?;
                let part = if kind == Kind::Encoder { files.encoder } else { files.decoder };
                part.map(|p| (p, files.window)).ok_or_else(|| other_weights(None))
            }
            Err(_) => {
                let path = folder.join(&reference.source);
                if !path.exists() {
                    let help = match closest(&reference.source, self.catalogue.names()) {
                        Some(name) => format!("did you mean `{name}`?"),
                        None => "give a catalogue name or the path of the base model".into(),
                    };
                    return Err(unusable(file, format!("no model `{}`", reference.source), help));
                }
                let sha256 = weights_sha256(&path).map_err(|e| ModelError::io("read", &path, 0, e))?;
                if sha256.as_ref() != Some(&reference.sha256) {
                    return Err(other_weights(sha256));
                }
                self.part_at(&path, kind)
            }
        }
    }
}

impl Fetcher {
    /// The name or path of an E2LLM model's encoder or decoder; `None` where the model does not say.
    ///
    /// # Errors
    /// A reference that cannot be read.
    pub fn base_name(&self, model: &str, kind: Kind) -> Result<Option<String>, ModelError> {
        match self.catalogue.get(model) {
            Ok(entry) => {
                Ok(if kind == Kind::Encoder { entry.encoder.clone() } else { entry.decoder.clone() })
            }
            Err(_) => self.part_name(Path::new(model), kind),
        }
    }

    /// A checkpoint's part as [`Fetcher::info`] takes it; `None` where it has no such part.
    pub(super) fn part_name(&self, checkpoint: &Path, kind: Kind) -> Result<Option<String>, ModelError> {
        let folder = checkpoint.join(kind.to_string());
        Ok(match read_reference(&folder)? {
            Some((_, reference)) if self.catalogue.get(&reference.source).is_ok() => Some(reference.source),
            Some((_, reference)) => Some(folder.join(reference.source).display().to_string()),
            None if folder.is_dir() => Some(folder.display().to_string()),
            None => None,
        })
    }
}

fn unusable(path: &Path, message: String, help: String) -> ModelError {
    ModelError::Unusable { path: path.to_owned(), message, help }
}

/// Tells what is at a path, by its files' names and `config.json`.
pub(super) fn found_at(path: &Path) -> Result<Found, ModelError> {
    const EXPECTED: &str = "give an E2LLM checkpoint folder (with e2llm_config.json), a folder that `train` wrote of a \
                            decoder (decoder_config.json), a folder in HF layout (config.json, \
                            model.safetensors, tokenizer.json), one with two such folders `encoder` and `decoder`, or \
                            a .gguf file";
    let wrong = |message: &str| Err(unusable(path, message.into(), EXPECTED.into()));
    if path.is_file() {
        return match path.extension().and_then(|e| e.to_str()) {
            Some("gguf") => Ok(Found::Decoder(path.to_owned())),
            Some("safetensors") => wrong("a .safetensors file alone has no configuration"),
            _ => wrong("it is neither a folder nor a .gguf file"),
        };
    }
    if METHODS.iter().any(|method| path.join(settings_file(method)).is_file()) {
        return Ok(Found::Checkpoint);
    }
    if TunedDecoder::is_at(path) {
        return Ok(Found::Tuned);
    }
    if path.join("config.json").is_file() {
        let config = read_config(path)?;
        return Ok(match config.get("model_type").and_then(|t| t.as_str()) {
            Some("bert" | "roberta" | "xlm-roberta" | "distilbert" | "mpnet") => Found::Encoder,
            // A configuration without a type, as the reference writes it: only BERT has token types.
            None if config.get("type_vocab_size").is_some() => Found::Encoder,
            _ => Found::Decoder(path.to_owned()),
        });
    }
    if path.join("encoder").is_dir() && path.join("decoder").is_dir() {
        return Ok(Found::Pair);
    }
    let mut gguf: Vec<_> = file_names(path)
        .map_err(|e| ModelError::io("read", path, 0, e))?
        .into_iter()
        .filter(|n| n.ends_with(".gguf"))
        .collect();
    match (gguf.pop(), gguf.is_empty()) {
        (Some(file), true) => Ok(Found::Decoder(path.join(file))),
        (Some(_), false) => wrong("it holds several .gguf files; name one of them"),
        (None, _) => wrong("it holds neither e2llm_config.json, nor config.json, nor a .gguf file"),
    }
}

/// The folder's `config.json`.
pub(super) fn read_config(folder: &Path) -> Result<serde_json::Value, ModelError> {
    let path = folder.join("config.json");
    let text = fs::read(&path).map_err(|e| ModelError::io("read", &path, 0, e))?;
    serde_json::from_slice(&text)
        .map_err(|e| unusable(&path, e.to_string(), "it must be the JSON that came with the model".into()))
}

/// Names of the files in a folder, sorted.
pub(super) fn file_names(folder: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.path().is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Tokens the model reads, by its `config.json`; a GGUF's header is read by its backend.
fn window_of(path: &Path) -> Option<u64> {
    read_config(path).ok()?.get("max_position_embeddings")?.as_u64()
}

/// The sha256 of the weights in a folder (see [`Entry::weights_sha256`](super::Entry::weights_sha256)), or of a single
/// file; `None` where there are no weights.
///
/// # Errors
/// A file that cannot be read.
pub fn weights_sha256(path: &Path) -> std::io::Result<Option<String>> {
    if path.is_file() {
        return sha256_of(path).map(Some);
    }
    let mut all = Vec::new();
    for name in file_names(path)?.into_iter().filter(|n| is_weights(n)) {
        let sha256 = sha256_of(&path.join(&name))?;
        all.push((name, sha256));
    }
    Ok(combined_sha256(all))
}

/// The reference in a checkpoint's part, with the file it was read from.
fn read_reference(folder: &Path) -> Result<Option<(PathBuf, Reference)>, ModelError> {
    for name in ["source.toml", "source.json"] {
        let path = folder.join(name);
        if !path.is_file() {
            continue;
        }
        let text = fs::read_to_string(&path).map_err(|e| ModelError::io("read", &path, 0, e))?;
        let parsed = if name.ends_with("toml") {
            toml::from_str(&text).map_err(|e| e.to_string())
        } else {
            serde_json::from_str(&text).map_err(|e| e.to_string())
        };
        let help = "it must have exactly the keys `source` and `sha256`";
        return match parsed {
            Ok(reference) => Ok(Some((path, reference))),
            Err(message) => Err(unusable(&path, message.trim_end().to_owned(), help.into())),
        };
    }
    Ok(None)
}
