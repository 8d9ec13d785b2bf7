//! A decoder that was trained, as a folder that says everything inference needs.
//!
//! ```text
//! adapter_config.json, adapter_model.safetensors   LoRA and modules trained in full, in PEFT's layout
//! decoder_config.json                              how it was trained and how its positions are stretched
//! decoder/                                         the base model, or a reference to it
//! ```

use crate::config::read_json;
use crate::{LmError, PeftAdapter, PeftTask, Result, Stretch};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

const FORMAT: u32 = 1;

/// What was trained of a decoder.
#[derive(Debug, Clone)]
pub struct TunedDecoder {
    /// The training's method, e.g. `longlora`.
    pub method: String,
    /// How its positions are stretched.
    pub rope: Option<Stretch>,
    /// Its trained tensors.
    pub adapter: PeftAdapter,
}

/// `decoder_config.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    method: String,
    rope: Option<Stretch>,
}

impl TunedDecoder {
    /// The file that such a folder has and no other.
    pub const CONFIG: &'static str = "decoder_config.json";

    /// Whether a folder is one of these.
    pub fn is_at(folder: &Path) -> bool {
        folder.join(Self::CONFIG).is_file()
    }

    /// The method of a folder, and how its positions are stretched.
    ///
    /// # Errors
    /// A file that is missing, damaged or of a later format.
    pub fn settings(folder: &Path) -> Result<(String, Option<Stretch>)> {
        let path = folder.join(Self::CONFIG);
        let file: File = read_json(&path)?;
        if file.format != FORMAT {
            return Err(LmError::file(&path, format!("format {}, expected {FORMAT}", file.format)));
        }
        Ok((file.method, file.rope))
    }

    /// Reads a folder, without the base model.
    ///
    /// # Errors
    /// Files that are missing, damaged or of a later format.
    pub fn read(folder: &Path) -> Result<Self> {
        let (method, rope) = Self::settings(folder)?;
        Ok(Self { method, rope, adapter: PeftAdapter::read(folder)? })
    }

    /// Writes a folder, which must exist, without the base model, which is called `base`.
    ///
    /// # Errors
    /// Anything that cannot be written.
    pub fn write(&self, folder: &Path, base: &str) -> Result<()> {
        self.adapter.write(folder, base, PeftTask::CausalLm)?;
        let path = folder.join(Self::CONFIG);
        let file = File { format: FORMAT, method: self.method.clone(), rope: self.rope.clone() };
        let text = serde_json::to_string_pretty(&file).map_err(|e| LmError::file(&path, e))?;
        std::fs::write(&path, text + "\n").map_err(|e| LmError::io(&path, e))
    }

    /// The files of a folder that decide its answers, beside the base model's.
    pub fn files(folder: &Path) -> Vec<PathBuf> {
        let names = [Self::CONFIG, "adapter_config.json", "adapter_model.safetensors"];
        names.iter().map(|name| folder.join(name)).collect()
    }
}
