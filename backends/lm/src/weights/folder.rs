//! Safetensors files: one, or the shards of an HF folder.

use super::{TensorInfo, index_name, map};
use crate::config::read_json;
use crate::{LmError, Result};
use candle_core::{DType, Device, Tensor};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Mapped safetensors files and which tensor is in which.
#[derive(Debug)]
pub(super) struct Shards {
    path: PathBuf,
    files: Vec<(PathBuf, Mmap)>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    file: usize,
    start: usize,
    end: usize,
    dtype: Dtype,
    shape: Vec<usize>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Shards {
    pub(super) fn open(path: &Path, stem: &str) -> Result<Self> {
        let mut shards = Self { path: path.to_owned(), files: Vec::new(), tensors: BTreeMap::new() };
        for file in files_of(path, stem)? {
            shards.add(file)?;
        }
        Ok(shards)
    }

    fn add(&mut self, path: PathBuf) -> Result<()> {
        let data = map(&path)?;
        let damaged = |e| LmError::file(&path, format!("no complete safetensors file: {e}"));
        // The header's length and all byte ranges are checked against the mapped size in here.
        let content = SafeTensors::deserialize(&data).map_err(damaged)?;
        for (name, view) in content.iter() {
            let start = view.data().as_ptr() as usize - data.as_ptr() as usize;
            let end = start + view.data().len();
            let shape = view.shape().to_vec();
            let entry = Entry { file: self.files.len(), start, end, dtype: view.dtype(), shape };
            let name = hf_name(name);
            if self.tensors.insert(name.clone(), entry).is_some() {
                return Err(LmError::file(&path, format!("tensor `{name}` is there twice")));
            }
        }
        self.files.push((path, data));
        Ok(())
    }

    pub(super) fn files(&self) -> Vec<PathBuf> {
        self.files.iter().map(|(path, _)| path.clone()).collect()
    }

    pub(super) fn infos(&self) -> BTreeMap<String, TensorInfo> {
        let info = |e: &Entry| TensorInfo { shape: e.shape.clone(), dtype: format!("{:?}", e.dtype) };
        self.tensors.iter().map(|(name, e)| (name.clone(), info(e))).collect()
    }

    pub(super) fn load(&self, name: &str) -> Result<Tensor> {
        let Some(entry) = self.tensors.get(name) else {
            return Err(LmError::file(&self.path, format!("tensor `{name}` is missing")));
        };
        let (path, data) = &self.files[entry.file];
        let dtype = DType::try_from(entry.dtype)
            .map_err(|_| LmError::file(path, format!("tensor `{name}` holds {:?}", entry.dtype)))?;
        let bytes = &data[entry.start..entry.end];
        Ok(Tensor::from_raw_buffer(bytes, dtype, &entry.shape, &Device::Cpu)?)
    }
}

/// The safetensors files behind a path, in the order of their names; in a folder those called `stem`.
fn files_of(path: &Path, stem: &str) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let single = path.join(format!("{stem}.safetensors"));
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index = path.join(index_name(stem));
    if !index.is_file() {
        let wanted = format!("`{stem}.safetensors` or `{}`", index_name(stem));
        return Err(LmError::file(path, format!("this folder has no {wanted}")));
    }
    let mut names: Vec<String> = read_json::<Index>(&index)?.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    // An index may only point at its own folder.
    if let Some(name) = names.iter().find(|n| Path::new(n).file_name().is_none_or(|f| f != n.as_str())) {
        return Err(LmError::file(&index, format!("`{name}` is no file name")));
    }
    Ok(names.into_iter().map(|n| path.join(n)).collect())
}

/// Today's name of a tensor: without the model's own prefix, and with BERT's first layer-norm names replaced.
fn hf_name(name: &str) -> String {
    let name = ["bert.", "roberta."].iter().find_map(|p| name.strip_prefix(p)).unwrap_or(name);
    for (old, new) in [(".LayerNorm.gamma", ".LayerNorm.weight"), (".LayerNorm.beta", ".LayerNorm.bias")] {
        if let Some(stem) = name.strip_suffix(old) {
            return format!("{stem}{new}");
        }
    }
    name.to_owned()
}
