//! Summary vectors of documents, made once.

use candle_core::{Device, Tensor};
use e2llm_backend::fingerprint::hex;
use e2llm_lm::{LmError, Result, Weights, write_safetensors};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;

/// What the vectors are called in their file.
const TENSOR: &str = "summaries";
/// Documents whose vectors stay in memory: some megabytes each, of a large decoder.
const REMEMBERED: usize = 64;

/// The vectors of the latest documents, and, where it has a folder, those of all others: `<key>.safetensors`.
#[derive(Debug)]
pub(crate) struct Store {
    folder: Option<PathBuf>,
    /// Identifies the compressor: another one's vectors are never used.
    compressor: String,
    /// From the oldest to the latest.
    latest: VecDeque<(String, Tensor)>,
}

impl Store {
    /// The folder is made where it is missing.
    pub(crate) fn new(folder: Option<PathBuf>, compressor: String) -> Result<Self> {
        if let Some(folder) = &folder {
            std::fs::create_dir_all(folder).map_err(|source| LmError::Io { path: folder.clone(), source })?;
        }
        Ok(Self { folder, compressor, latest: VecDeque::new() })
    }

    /// The hash of a document and of the compressor.
    pub(crate) fn key(&self, text: &str) -> String {
        let document: [u8; 32] = Sha256::digest(text.as_bytes()).into();
        hex(&Sha256::new().chain_update(&self.compressor).chain_update(document).finalize())
    }

    /// The vectors `[n, D]` of a document, as they were put.
    pub(crate) fn get(&mut self, key: &str, device: &Device) -> Result<Option<Tensor>> {
        if let Some((_, known)) = self.latest.iter().find(|(k, _)| k == key) {
            return Ok(Some(known.clone()));
        }
        let Some(folder) = self.folder.as_ref().filter(|f| Weights::exist(f, key)) else { return Ok(None) };
        let file = Weights::open_named(folder, key)?;
        let dtype = file.tensors().get(TENSOR).map(|t| t.dtype.clone()).unwrap_or_default();
        let dtype = if dtype == "BF16" { candle_core::DType::BF16 } else { candle_core::DType::F32 };
        let read = file.load(TENSOR, dtype, device)?;
        self.remember(key.to_owned(), read.clone());
        Ok(Some(read))
    }

    /// Keeps a document's vectors; the file is complete or not there.
    pub(crate) fn put(&mut self, key: String, summaries: &Tensor) -> Result<()> {
        if let Some(folder) = &self.folder {
            let tensors = BTreeMap::from([(TENSOR.to_owned(), summaries.to_device(&Device::Cpu)?)]);
            write_safetensors(folder, &key, &tensors, None)?;
        }
        self.remember(key, summaries.clone());
        Ok(())
    }

    fn remember(&mut self, key: String, summaries: Tensor) {
        if self.latest.len() >= REMEMBERED {
            self.latest.pop_front();
        }
        self.latest.push_back((key, summaries));
    }
}
