//! A model's frozen tensors on disk, under their HF names, checked before they are read.

mod folder;
mod gguf;
mod gguf_header;
mod random;
mod write;

pub use gguf::Gguf;
pub use random::{RandomWeights, uniform};
pub use write::write_safetensors;

use crate::config::TensorSpec;
use crate::{LmError, Result, TensorProblems};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{D, DType, Device, Tensor};
use folder::Shards;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What is known of a tensor without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Element type as the file names it, e.g. `BF16` or `Q4_1`.
    pub dtype: String,
}

/// A safetensors file, an HF folder (one file or shards) or a GGUF file, mapped into memory.
///
/// Names are HF's, without a leading `bert.`, `roberta.` or GGUF's own naming; shapes and byte ranges are
/// checked against the file's size when it is opened, so that no tensor is allocated that is not there.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    tensors: BTreeMap<String, TensorInfo>,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Shards(Shards),
    Gguf(Gguf),
    /// Made from this seed; nothing on disk, or a file that says so.
    Random(u64, Option<PathBuf>),
}

impl Weights {
    /// Opens a folder with `model.safetensors` or `model.safetensors.index.json`, a `.safetensors` file or a
    /// `.gguf` file.
    ///
    /// # Errors
    /// Unreadable, truncated or damaged files.
    pub fn open(path: &Path) -> Result<Self> {
        if path.extension().is_some_and(|e| e == "gguf") {
            return Self::from_gguf(Gguf::open(path)?);
        }
        Self::open_named(path, "model")
    }

    /// Opens the safetensors files of a folder that are called `stem` instead of `model`, one or in shards.
    ///
    /// # Errors
    /// Unreadable, truncated or damaged files.
    pub fn open_named(folder: &Path, stem: &str) -> Result<Self> {
        let shards = Shards::open(folder, stem)?;
        Ok(Self { path: folder.to_owned(), tensors: shards.infos(), source: Source::Shards(shards) })
    }

    /// Whether [`Weights::open_named`] would find files in a folder.
    pub fn exist(folder: &Path, stem: &str) -> bool {
        folder.join(format!("{stem}.safetensors")).is_file() || folder.join(index_name(stem)).is_file()
    }

    /// The tensors of an open GGUF file.
    ///
    /// # Errors
    /// Tensors without an HF name.
    pub fn from_gguf(gguf: Gguf) -> Result<Self> {
        Ok(Self { path: gguf.path().to_owned(), tensors: gguf.infos()?, source: Source::Gguf(gguf) })
    }

    /// Weights of no file, random but the same for the same seed and kind of device, for measuring speed: matrices with
    /// deviation 0.02 as models start with, norms one, everything else zero. Each is made on the device it is loaded to.
    pub fn random(specs: &[TensorSpec], seed: u64) -> Self {
        let info =
            |s: &TensorSpec| (s.name.clone(), TensorInfo { shape: s.shape.clone(), dtype: "F32".into() });
        Self {
            path: PathBuf::from("random weights"),
            tensors: specs.iter().map(info).collect(),
            source: Source::Random(seed, None),
        }
    }

    /// What every output of a model with these weights has to say: that they are random, where they are.
    pub fn warning(&self) -> Option<String> {
        let at = self.path.display();
        matches!(self.source, Source::Random(..))
            .then(|| format!("the weights of {at} are RANDOM: answers and scores mean nothing"))
    }

    /// The weights of a model's folder: [`Weights::open`], or [`Weights::random`] of `specs` where a
    /// [`RandomWeights`] file stands in for them.
    ///
    /// # Errors
    /// Unreadable, truncated or damaged files.
    pub fn of_model(folder: &Path, specs: impl FnOnce() -> Vec<TensorSpec>) -> Result<Self> {
        match RandomWeights::read(folder)? {
            Some((file, RandomWeights { seed })) if !Self::exist(folder, "model") => {
                let source = Source::Random(seed, Some(file));
                Ok(Self { path: folder.to_owned(), source, ..Self::random(&specs(), seed) })
            }
            _ => Self::open(folder),
        }
    }

    /// The file or folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files that make up the weights, for hashing.
    pub fn files(&self) -> Vec<PathBuf> {
        match &self.source {
            Source::Shards(shards) => shards.files(),
            Source::Gguf(gguf) => vec![gguf.path().to_owned()],
            Source::Random(_, recipe) => recipe.iter().cloned().collect(),
        }
    }

    /// All tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// Compares names, shapes and element types with what a model will ask for.
    ///
    /// # Errors
    /// All missing, unexpected and mismatched tensors at once; `ignored` ones may be there.
    pub fn check(&self, expected: &[TensorSpec], ignored: impl Fn(&str) -> bool) -> Result<()> {
        let mut problems = TensorProblems::default();
        let mut wanted = BTreeMap::new();
        for spec in expected {
            wanted.insert(spec.name.as_str(), spec);
            match self.tensors.get(&spec.name) {
                None => problems.missing.push(spec.name.clone()),
                Some(info) if info.shape != spec.shape => {
                    let how = format!("is {:?}, expected {:?}", info.shape, spec.shape);
                    problems.mismatched.push((spec.name.clone(), how));
                }
                Some(info) if !self.is_float(info) => {
                    let how = format!("holds {}, expected floating-point numbers", info.dtype);
                    problems.mismatched.push((spec.name.clone(), how));
                }
                Some(_) => {}
            }
        }
        let extra = |name: &&String| !wanted.contains_key(name.as_str()) && !ignored(name);
        problems.unexpected = self.tensors.keys().filter(extra).cloned().collect();
        if problems.is_empty() {
            return Ok(());
        }
        Err(LmError::Tensors { path: self.path.clone(), problems })
    }

    fn is_float(&self, info: &TensorInfo) -> bool {
        matches!(self.source, Source::Gguf(_))
            || matches!(info.dtype.as_str(), "F64" | "F32" | "F16" | "BF16")
    }

    /// Reads one tensor; quantised ones are dequantised.
    ///
    /// # Errors
    /// No tensor of that name; element types that cannot be read.
    pub fn load(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = match &self.source {
            Source::Shards(shards) => shards.load(name)?,
            Source::Gguf(gguf) => gguf.load(name)?.dequantize(&Device::Cpu)?,
            Source::Random(seed, _) => self.make(name, *seed, device)?,
        };
        Ok(tensor.to_dtype(dtype)?.to_device(device)?)
    }

    /// Reads one tensor and keeps it quantised: GGUF's as they are, dense matrices in blocks of 8 bits (Q8_0).
    ///
    /// # Errors
    /// No tensor of that name; dense matrices whose width is no multiple of 32.
    pub fn load_quantised(&self, name: &str, device: &Device) -> Result<QTensor> {
        let quantised = match &self.source {
            Source::Shards(_) | Source::Random(..) => {
                let dense = self.load(name, DType::F32, &Device::Cpu)?;
                let (width, block) = (dense.dim(D::Minus1)?, GgmlDType::Q8_0.block_size());
                if width % block != 0 {
                    let message =
                        format!("tensor `{name}` cannot be quantised: rows of {width} in blocks of {block}");
                    return Err(LmError::file(&self.path, message));
                }
                QTensor::quantize(&dense, GgmlDType::Q8_0)?
            }
            Source::Gguf(gguf) => gguf.load(name)?,
        };
        if device.is_cpu() {
            return Ok(quantised);
        }
        let storage =
            candle_core::quantized::QStorage::from_data(quantised.data()?, device, quantised.dtype())?;
        Ok(QTensor::new(storage, quantised.shape().clone())?)
    }

    fn make(&self, name: &str, seed: u64, device: &Device) -> Result<Tensor> {
        let Some(info) = self.tensors.get(name) else {
            return Err(LmError::Input(format!("there is no random tensor `{name}`")));
        };
        Ok(random::tensor(name, &info.shape, seed, device)?)
    }
}

/// The file that says which tensor is in which shard.
fn index_name(stem: &str) -> String {
    format!("{stem}.safetensors.index.json")
}

/// Maps a file into memory.
fn map(path: &Path) -> Result<memmap2::Mmap> {
    let file = std::fs::File::open(path).map_err(|e| LmError::io(path, e))?;
    // SAFETY: model files are not changed while they are in use, as with every program that maps its models;
    // one that is cut short meanwhile ends the process with SIGBUS and corrupts nothing.
    unsafe { memmap2::Mmap::map(&file) }.map_err(|e| LmError::io(path, e))
}
