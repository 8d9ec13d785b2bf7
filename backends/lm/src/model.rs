//! Models as they lie on disk: a decoder's and an encoder's parts found, and loaded whole.

use crate::{
    BertConfig, BertEncoder, Generated, Generation, Gguf, Llama, LlamaConfig, LmError, LoraSource, Params,
    PeftAdapter, Result, Segment, Tokenizer, Weights, generate, prompt_len,
};
use candle_core::{DType, Device};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// How weights are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// Dense, in this element type; quantised files are dequantised.
    Dense(DType),
    /// Quantised, products in float32: GGUF's as they are, dense matrices in 8 bits (Q8_0).
    Quantised,
}

impl Precision {
    /// Float32.
    pub const F32: Self = Self::Dense(DType::F32);
    /// bfloat16.
    pub const BF16: Self = Self::Dense(DType::BF16);

    /// Element type of what flows between layers.
    pub fn activations(self) -> DType {
        match self {
            Self::Dense(dtype) => dtype,
            Self::Quantised => DType::F32,
        }
    }

    /// Whether low-rank updates are added to the weights for inference. On the CPU only where that rounds nothing; a GPU
    /// reads whole layers faster without them, so there the sum is rounded to the weights' type, once.
    pub fn merges(self, device: &Device) -> bool {
        self == Self::F32 || (device.is_cuda() && self != Self::Quantised)
    }
}

impl FromStr for Precision {
    type Err = LmError;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::BF16),
            "f64" => Ok(Self::Dense(DType::F64)),
            "q" => Ok(Self::Quantised),
            _ => Err(LmError::Setting(format!(
                "element type `{text}` is not known: f32, bf16, q (kept quantised)"
            ))),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dense(dtype) => f.write_str(dtype.as_str()),
            Self::Quantised => f.write_str("q"),
        }
    }
}

/// A decoder's files, opened and checked, nothing loaded yet.
#[derive(Debug)]
pub struct DecoderFiles {
    /// Its configuration; change it before loading, e.g. to stretch its positions.
    pub config: LlamaConfig,
    /// Its weights.
    pub weights: Weights,
    /// Its tokenizer, where the folder has one.
    pub tokenizer: Option<Tokenizer>,
    /// Files that decide its answers, for hashing.
    pub files: Vec<PathBuf>,
}

impl DecoderFiles {
    /// Opens an HF folder or a `.gguf` file.
    ///
    /// # Errors
    /// Missing, damaged or unsupported files.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            let config = LlamaConfig::from_file(&path.join("config.json"))?;
            let (tokenizer, mut files) = folder_tokenizer(path)?;
            let weights = Weights::of_model(path, || config.tensors())?;
            files.extend(weights.files());
            return Ok(Self { config, weights, tokenizer, files });
        }
        let gguf = Gguf::open(path)?;
        let config = LlamaConfig::from_gguf(&gguf)?;
        let tokenizer = Some(Tokenizer::from_gguf(&gguf)?);
        Ok(Self { config, weights: Weights::from_gguf(gguf)?, tokenizer, files: vec![path.to_owned()] })
    }

    /// Tokens that end an answer: the tokenizer's and the configuration's.
    pub fn eos_ids(&self) -> Vec<u32> {
        let mut ids = self.tokenizer.as_ref().map(|t| t.eos_ids().to_vec()).unwrap_or_default();
        ids.extend(&self.config.eos_token_ids);
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// An encoder's files, opened and checked, nothing loaded yet.
#[derive(Debug)]
pub struct EncoderFiles {
    /// Its configuration.
    pub config: BertConfig,
    /// Its weights.
    pub weights: Weights,
    /// Its tokenizer, where the folder has one.
    pub tokenizer: Option<Tokenizer>,
    /// Files that decide its answers, for hashing.
    pub files: Vec<PathBuf>,
}

impl EncoderFiles {
    /// Opens an HF folder.
    ///
    /// # Errors
    /// Missing, damaged or unsupported files.
    pub fn open(folder: &Path) -> Result<Self> {
        let config = BertConfig::from_file(&folder.join("config.json"))?;
        let (tokenizer, mut files) = folder_tokenizer(folder)?;
        let weights = Weights::of_model(folder, || config.tensors())?;
        files.extend(weights.files());
        Ok(Self { config, weights, tokenizer, files })
    }

    /// Loads the encoder without adapters.
    ///
    /// # Errors
    /// Tensors that do not fit the configuration.
    pub fn load(&self, device: &Device, precision: Precision) -> Result<BertEncoder> {
        BertEncoder::load(&self.config, &self.weights, None, device, precision)
    }
}

fn folder_tokenizer(folder: &Path) -> Result<(Option<Tokenizer>, Vec<PathBuf>)> {
    let names = [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "chat_template.jinja",
    ];
    let files = names.iter().map(|n| folder.join(n)).filter(|p| p.is_file()).collect();
    let tokenizer =
        if folder.join("tokenizer.json").is_file() { Some(Tokenizer::from_folder(folder)?) } else { None };
    Ok((tokenizer, files))
}

/// A decoder ready to answer: weights, tokenizer and what ends an answer.
#[derive(Debug, Clone)]
pub struct DecoderModel {
    /// The decoder.
    pub llama: Llama,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Tokens that end an answer.
    pub eos_ids: Vec<u32>,
    /// Positions it may read and write.
    pub window: usize,
}

impl DecoderModel {
    /// Loads an HF folder or a `.gguf` file.
    ///
    /// # Errors
    /// Missing, damaged or unsupported files; tensors that do not fit the configuration.
    pub fn load(path: &Path, device: &Device, precision: Precision) -> Result<Self> {
        Self::from_files(DecoderFiles::open(path)?, device, precision)
    }

    /// Loads opened files, whose configuration may have been changed.
    ///
    /// # Errors
    /// No tokenizer; tensors that do not fit the configuration.
    pub fn from_files(files: DecoderFiles, device: &Device, precision: Precision) -> Result<Self> {
        Self::with_adapter(files, None, device, precision)
    }

    /// Loads opened files with a LoRA adapter on top. It is added to the weights in float32 and, for speed, on a GPU, where
    /// the sum is rounded to the weights' type once; elsewhere it stays beside them. Modules that were trained in full
    /// replace the files'.
    ///
    /// # Errors
    /// No tokenizer; tensors of either that do not fit the configuration.
    pub fn with_adapter(
        files: DecoderFiles,
        adapter: Option<PeftAdapter>,
        device: &Device,
        precision: Precision,
    ) -> Result<Self> {
        let eos_ids = files.eos_ids();
        let Some(tokenizer) = files.tokenizer else {
            return Err(LmError::file(files.weights.path(), "this folder has no `tokenizer.json`"));
        };
        let (config, weights) = (&files.config, &files.weights);
        let llama = match adapter {
            None => Llama::load(config, weights, None, device, precision)?,
            Some(PeftAdapter { config: lora, modules_to_save, tensors }) => {
                let mut params = Params::new(tensors, device, precision.activations(), false);
                params
                    .check(&PeftAdapter::specs(config, &lora, &modules_to_save))
                    .map_err(|problems| LmError::Tensors { path: weights.path().to_owned(), problems })?;
                let source = LoraSource { config: &lora, params: &mut params, prefix: "" };
                let mut llama = Llama::load(config, weights, Some(source), device, precision)?;
                if precision.merges(device) {
                    llama.merge_lora()?;
                }
                llama
            }
        };
        Ok(Self { llama, tokenizer, eos_ids, window: files.config.max_position_embeddings })
    }

    /// Answers a prompt, see [`generate`]; the answer ends at the window's end at the latest.
    ///
    /// # Errors
    /// [`LmError::TooLong`] where no position is left for an answer; those of [`generate`].
    pub fn generate(
        &self,
        prompt: &[Segment],
        settings: &Generation,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Generated> {
        let positions = prompt_len(prompt);
        if positions >= self.window {
            return Err(LmError::TooLong { prompt: positions, window: self.window });
        }
        let mut settings = settings.clone();
        settings.max_new_tokens = settings.max_new_tokens.min(self.window - positions);
        generate(&self.llama, Some(&self.tokenizer), &self.eos_ids, prompt, &settings, cancelled)
    }
}
