//! Describing a model without fetching it.

use super::catalogue::{Entry, Kind};
use super::error::ModelError;
use super::fetch::Fetcher;
use super::resolve::{Found, METHODS, file_names, found_at, read_config};
use super::verify::FileState;
use e2llm::checkpoint::settings_file;
use e2llm_lm::{RandomWeights, TensorInfo, TunedDecoder, Weights};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// A header that is larger than this is not one.
const LARGEST_HEADER: u64 = 100_000_000;

/// One file of a model, as it is on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileInfo {
    /// Its name in the model's folder.
    pub name: String,
    /// Where it is, or would be.
    pub path: PathBuf,
    /// Bytes, as listed in the catalogue or found.
    pub size: u64,
    /// The catalogue's sha256.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// How it compares with the catalogue.
    #[serde(flatten)]
    pub state: FileState,
}

/// What is known of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelInfo {
    /// The name or path that was asked for.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Of a checkpoint: the method it was trained with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<&'static str>,
    /// The catalogue's line on it; empty for paths.
    pub description: String,
    /// Licence of the weights, where known.
    pub licence: Option<String>,
    /// Architecture by `config.json`, e.g. `BertModel`.
    pub architecture: Option<String>,
    /// Number of parameters: counted from the weights' headers where they are there and in safetensors, else
    /// the catalogue's; for `e2llm` the sum of its parts.
    pub parameters: Option<u64>,
    /// Tokens it reads.
    pub window: Option<u64>,
    /// For kind `e2llm`: whether adapter and LoRA are trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trained: Option<bool>,
    /// Of a checkpoint: trained parameters by what they belong to (`adapter`, `encoder LoRA`, `norms`, ...).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub trained_parameters: BTreeMap<String, u64>,
    /// Its own files.
    pub files: Vec<FileInfo>,
    /// Where files come from, in the order tried.
    pub sources: Vec<String>,
    /// For kind `e2llm`: encoder and decoder.
    pub parts: Vec<ModelInfo>,
}

impl Fetcher {
    /// Describes a catalogue entry or the model at a path; reads local files only.
    ///
    /// # Errors
    /// Neither a name nor a path; files that cannot be read.
    pub fn info(&self, model: &str) -> Result<ModelInfo, ModelError> {
        match self.catalogue.get(model) {
            Ok(entry) => self.entry_info(model, entry),
            Err(unknown) => {
                let path = Path::new(model);
                if path.exists() { self.path_info(model, path) } else { Err(unknown) }
            }
        }
    }

    fn entry_info(&self, name: &str, entry: &Entry) -> Result<ModelInfo, ModelError> {
        let local = self.settings.local.as_ref().map(|l| l.join(name)).filter(|l| l.is_dir());
        let folder = local.unwrap_or_else(|| self.cached(name));
        let mut files = Vec::new();
        for spec in &entry.files {
            let path = folder.join(&spec.name);
            let state = self.verifier.check(&path, spec).map_err(|e| ModelError::io("read", &path, 0, e))?;
            let sha256 = Some(spec.sha256.clone());
            files.push(FileInfo { name: spec.name.clone(), path, size: spec.size, sha256, state });
        }
        let mut parts = Vec::new();
        for part in [&entry.encoder, &entry.decoder].into_iter().flatten() {
            parts.push(self.info(part)?);
        }
        let mut info = ModelInfo {
            name: name.to_owned(),
            kind: entry.kind,
            method: (entry.kind == Kind::E2llm).then_some(METHODS[0]),
            description: entry.description.clone(),
            licence: Some(entry.licence.clone()),
            architecture: None,
            parameters: entry.parameters,
            window: entry.window,
            trained: entry.trained,
            trained_parameters: BTreeMap::new(),
            files,
            sources: entry.sources.iter().map(ToString::to_string).collect(),
            parts,
        };
        let is_good = |f: &FileInfo| f.state == FileState::Verified;
        if info.files.iter().any(|f| f.name == "config.json" && is_good(f)) {
            info.architecture = architecture(&read_config(&folder)?);
        }
        if info.files.iter().all(is_good) {
            info.count()?;
        }
        info.sum_parts();
        Ok(info)
    }

    fn path_info(&self, name: &str, path: &Path) -> Result<ModelInfo, ModelError> {
        let found = found_at(path)?;
        let (kind, root) = match &found {
            Found::Checkpoint | Found::Pair => (Kind::E2llm, path),
            Found::Tuned => (Kind::Decoder, path),
            Found::Encoder => (Kind::Encoder, path),
            Found::Decoder(decoder) => (Kind::Decoder, decoder.as_path()),
        };
        let read = |e| ModelError::io("read", path, 0, e);
        let mut files = Vec::new();
        let listed: Vec<PathBuf> = if root.is_file() {
            vec![root.to_owned()]
        } else {
            file_names(root).map_err(read)?.into_iter().map(|n| root.join(n)).collect()
        };
        for path in listed {
            let size = path.metadata().map_err(read)?.len();
            let file_name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            files.push(FileInfo { name: file_name, path, size, sha256: None, state: FileState::Unlisted });
        }
        let mut info = ModelInfo {
            name: name.to_owned(),
            kind,
            method: METHODS.into_iter().find(|method| root.join(settings_file(method)).is_file()),
            description: String::new(),
            licence: None,
            architecture: None,
            parameters: None,
            window: None,
            trained: None,
            trained_parameters: BTreeMap::new(),
            files,
            sources: Vec::new(),
            parts: Vec::new(),
        };
        let invalid = |e: e2llm_lm::LmError| read(io::Error::new(io::ErrorKind::InvalidData, e.to_string()));
        if let Some((_, RandomWeights { seed })) = RandomWeights::read(root).map_err(invalid)? {
            info.description = format!("random weights (seed {seed}): good for measuring only");
        }
        info.count()?;
        if found == Found::Tuned {
            info.trained_parameters = counted(&info.files)?.unwrap_or_default();
            info.parts = self
                .part_name(root, Kind::Decoder)?
                .map(|part| self.info(&part))
                .transpose()?
                .into_iter()
                .collect();
            info.sum_parts();
            let (_, rope) = TunedDecoder::settings(root).map_err(invalid)?;
            if let (Some(rope), Some(window)) = (rope, info.window) {
                info.window = Some(rope.window(window as usize) as u64);
            }
        } else if matches!(found, Found::Checkpoint | Found::Pair) {
            info.trained = Some(METHODS.iter().any(|method| Weights::exist(root, method)));
            for kind in [Kind::Encoder, Kind::Decoder] {
                if let Some(part) = self.part_name(root, kind)? {
                    info.parts.push(self.info(&part)?);
                }
            }
            info.sum_parts();
        } else if root.join("config.json").is_file() {
            let config = read_config(root)?;
            info.architecture = architecture(&config);
            info.window = config.get("max_position_embeddings").and_then(serde_json::Value::as_u64);
        }
        Ok(info)
    }
}

impl ModelInfo {
    /// Counts the parameters of its own files, where these are there in a form whose header tells.
    fn count(&mut self) -> Result<(), ModelError> {
        let counts = counted(&self.files)?;
        if let Some(counts) = &counts {
            self.parameters = Some(counts.values().sum());
        }
        if self.kind == Kind::E2llm {
            self.trained_parameters = counts.unwrap_or_default();
        }
        Ok(())
    }

    /// Completes a model of parts: parameters are summed, the window is the decoder's.
    fn sum_parts(&mut self) {
        if self.parts.is_empty() {
            return;
        }
        let own = self.parameters.unwrap_or(0);
        self.parameters = self.parts.iter().map(|p| p.parameters).sum::<Option<u64>>().map(|n| n + own);
        if self.window.is_none() {
            self.window = self.parts.iter().find(|p| p.kind == Kind::Decoder).and_then(|p| p.window);
        }
    }

    /// Bytes of all files, parts included.
    pub fn bytes(&self) -> u64 {
        let own: u64 = self.files.iter().map(|f| f.size).sum();
        own + self.parts.iter().map(Self::bytes).sum::<u64>()
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, indent: usize) -> fmt::Result {
        let pad = " ".repeat(indent);
        match self.method {
            Some(method) => writeln!(f, "{pad}{} ({method})", self.name)?,
            None if self.kind == Kind::E2llm => writeln!(f, "{pad}{} (encoder and decoder)", self.name)?,
            None => writeln!(f, "{pad}{} ({})", self.name, self.kind)?,
        }
        let number = |n: Option<u64>| n.map(|n| n.to_string());
        let rows = [
            ("description", Some(self.description.clone()).filter(|d| !d.is_empty())),
            ("licence", self.licence.clone()),
            ("architecture", self.architecture.clone()),
            ("parameters", number(self.parameters)),
            ("window", number(self.window)),
            (
                "trained",
                self.trained.map(|t| if t { "yes" } else { "NO: adapter and LoRA are random" }.into()),
            ),
        ];
        for (key, value) in rows {
            if let Some(value) = value {
                writeln!(f, "{pad}  {key:<13}{value}")?;
            }
        }
        for (part, n) in &self.trained_parameters {
            writeln!(f, "{pad}  trained      {n} in {part}")?;
        }
        for file in &self.files {
            let state = match &file.state {
                FileState::Verified => "verified".to_owned(),
                FileState::Missing => "not fetched".to_owned(),
                FileState::Corrupt(why) => format!("CORRUPT: {why}"),
                FileState::Unlisted => "not in the catalogue".to_owned(),
            };
            writeln!(f, "{pad}  file         {} ({} bytes, {state})", file.path.display(), file.size)?;
        }
        for source in &self.sources {
            writeln!(f, "{pad}  source       {source}")?;
        }
        self.parts.iter().try_for_each(|p| p.write(f, indent + 2))
    }
}

impl fmt::Display for ModelInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, 0)
    }
}

fn architecture(config: &serde_json::Value) -> Option<String> {
    let named = config.get("architectures").and_then(|a| a.get(0)).or_else(|| config.get("model_type"));
    named?.as_str().map(str::to_owned)
}

/// Parameters by what they belong to, in all files that tell; `None` without one.
fn counted(files: &[FileInfo]) -> Result<Option<BTreeMap<String, u64>>, ModelError> {
    let mut total: Option<BTreeMap<String, u64>> = None;
    // A training keeps weights and moments of its optimiser beside the model.
    for file in files.iter().filter(|f| f.name != "state.safetensors") {
        let invalid = |e: e2llm_lm::LmError| io::Error::new(io::ErrorKind::InvalidData, e.to_string());
        let counts = match file.path.extension().and_then(|e| e.to_str()) {
            Some("safetensors") => safetensors_parameters(&file.path),
            Some("gguf") => Weights::open(&file.path).map_err(invalid).map(|w| {
                let elements = |t: &TensorInfo| t.shape.iter().map(|d| *d as u64).product::<u64>();
                BTreeMap::from([(String::new(), w.tensors().values().map(elements).sum())])
            }),
            _ => continue,
        };
        for (part, n) in counts.map_err(|e| ModelError::io("read", &file.path, 0, e))? {
            *total.get_or_insert_default().entry(part).or_default() += n;
        }
    }
    Ok(total)
}

/// What a trained tensor of a checkpoint belongs to.
fn part_of(tensor: &str) -> &'static str {
    match tensor.split('.').next() {
        Some("adapter") => "adapter",
        Some("compressor") => "compressor",
        Some("decoder") if tensor.contains(".cross_attn.") => "cross-attention",
        Some("encoder") if tensor.contains(".lora_") => "encoder LoRA",
        Some("decoder") if tensor.contains(".lora_") => "decoder LoRA",
        Some("output_scale") => "output scale",
        Some("base_model") if tensor.contains(".lora_") => "decoder LoRA",
        Some("base_model") if tensor.contains("embed") => "embeddings",
        Some("base_model") if tensor.contains("norm") => "norms",
        _ => "",
    }
}

/// Elements of all floating-point tensors by the file's header; integer tensors (position ids) are no parameters.
fn safetensors_parameters(path: &Path) -> io::Result<BTreeMap<String, u64>> {
    #[derive(serde::Deserialize)]
    struct Tensor {
        #[serde(default)]
        dtype: String,
        #[serde(default)]
        shape: Vec<u64>,
    }
    let invalid = |m: String| io::Error::new(io::ErrorKind::InvalidData, m);
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut size = [0; 8];
    file.read_exact(&mut size)?;
    let size = u64::from_le_bytes(size);
    // Checked before it is allocated.
    if size > LARGEST_HEADER || size > length.saturating_sub(8) {
        return Err(invalid(format!("safetensors header of {size} bytes in a file of {length}")));
    }
    let mut header = Vec::new();
    file.take(size).read_to_end(&mut header)?;
    let tensors: BTreeMap<String, Tensor> =
        serde_json::from_slice(&header).map_err(|e| invalid(format!("safetensors header: {e}")))?;
    let overflow = || invalid("safetensors header: shapes overflow".into());
    let mut counts = BTreeMap::new();
    let floats = tensors.iter().filter(|(_, t)| t.dtype.starts_with('F') || t.dtype.starts_with("BF"));
    for (name, t) in floats {
        let n = t.shape.iter().try_fold(1_u64, |n, d| n.checked_mul(*d)).ok_or_else(overflow)?;
        let sum: &mut u64 = counts.entry(part_of(name).to_owned()).or_default();
        *sum = sum.checked_add(n).ok_or_else(overflow)?;
    }
    Ok(counts)
}
