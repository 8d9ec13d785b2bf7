//! What both tasks are opened from.

use crate::config::{DataConfig, TrainConfig};
use crate::data::{Dataset, Manifest};
use crate::{Result, Split, TrainError};
use candle_core::{DType, Tensor, Var};
use e2llm::ConfigError;
use e2llm::checkpoint::{self, BaseModel, BaseModels};
use e2llm_lm::{DecoderFiles, EncoderFiles, Precision, Tokenizer};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A base model, as the user named it and where it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BaseSource {
    /// What a checkpoint refers to it by: a catalogue name, or an absolute path.
    pub name: String,
    /// Its folder or file.
    pub path: PathBuf,
    /// SHA-256 of its weights, as checkpoints name it.
    pub sha256: String,
}

impl BaseSource {
    /// Writes a reference to it into `folder`, where the part of a checkpoint would be.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn refer(&self, folder: &Path) -> Result<()> {
        #[derive(Serialize)]
        struct Reference<'a> {
            source: &'a str,
            sha256: &'a str,
        }
        std::fs::create_dir_all(folder).map_err(TrainError::io(folder))?;
        let path = folder.join("source.toml");
        let reference = Reference { source: &self.name, sha256: &self.sha256 };
        let text = toml::to_string(&reference).map_err(|e| TrainError::file(&path, e))?;
        std::fs::write(&path, text).map_err(TrainError::io(&path))
    }
}

/// The base models of a training.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources {
    /// The encoder; not needed where the decoder alone is trained.
    pub encoder: Option<BaseSource>,
    /// The decoder.
    pub decoder: BaseSource,
}

/// Prepared data, both splits of it.
pub(super) struct Data {
    pub(super) manifest: Manifest,
    pub(super) settings: DataConfig,
    train: Dataset,
    validation: Dataset,
    pub(super) fingerprint: String,
}

impl Data {
    pub(super) fn open(settings: &DataConfig) -> Result<Self> {
        let folder = &settings.folder;
        let manifest = Manifest::of(folder)?;
        Ok(Self {
            fingerprint: manifest.fingerprint(folder)?,
            manifest,
            settings: settings.clone(),
            train: Dataset::open(folder, Split::Train)?,
            validation: Dataset::open(folder, Split::Validation)?,
        })
    }

    pub(super) fn split(&self, split: Split) -> &Dataset {
        match split {
            Split::Train => &self.train,
            Split::Validation => &self.validation,
        }
    }

    /// Refuses an encoder that the data was not prepared for: another tokenizer, or another window, for which chunks would
    /// be cut otherwise when the model answers.
    pub(super) fn check_encoder(&self, tokenizer: &Tokenizer, window: usize) -> Result<()> {
        self.check_tokenizer("encoder", tokenizer)?;
        let prepared = self.manifest.encoder_window;
        if prepared == window {
            return Ok(());
        }
        let message = format!(
            "was prepared for an encoder that reads {prepared} tokens of a chunk, this one reads {window}: prepare it again for \
             this model"
        );
        Err(TrainError::file(&self.settings.folder, message))
    }

    /// A question's answer as it is learned: cut where it is too long, with an end where it is not.
    pub(super) fn answer(&self, mut ids: Vec<u32>, eos: u32) -> Vec<u32> {
        if ids.len() > self.settings.max_answer_tokens {
            ids.truncate(self.settings.max_answer_tokens);
        } else {
            ids.push(eos);
        }
        ids
    }

    /// Tokens of an answer as it is learned.
    pub(super) fn answer_len(&self, tokens: usize) -> usize {
        if tokens > self.settings.max_answer_tokens { self.settings.max_answer_tokens } else { tokens + 1 }
    }

    /// What of the training split is cut before it is learned from: answers, and contexts for which `is_cut`.
    pub(super) fn cuts(&self, is_cut: impl Fn(usize) -> bool) -> Vec<String> {
        let data = &self.train;
        let most = self.settings.max_answer_tokens;
        let questions = data.questions();
        let answers = (0..questions).filter(|q| data.question_size(*q).2 > most).count();
        let contexts = (0..questions).filter(|q| is_cut(data.question_size(*q).0)).count();
        [
            (answers, format!("answers are longer than {most} tokens (data.max_answer_tokens) and are cut")),
            (
                contexts,
                "contexts are longer than what is read of them (data.max_chunks, data.max_context_tokens)"
                    .into(),
            ),
        ]
        .into_iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, what)| format!("{n} of {questions} {what}"))
        .collect()
    }

    /// The name of the document that a question is about.
    pub(super) fn document_of(&self, split: Split, question: u32) -> String {
        let data = self.split(split);
        data.name(data.question_size(question as usize).0).to_owned()
    }

    pub(super) fn describe_question(&self, split: Split, item: u32) -> String {
        let data = self.split(split);
        if item as usize >= data.questions() {
            return format!("question {item}");
        }
        let (document, ..) = data.question_size(item as usize);
        format!("question {item} about document {document} ({})", data.name(document))
    }

    /// Refuses a tokenizer that the data was not prepared with.
    pub(super) fn check_tokenizer(&self, part: &str, tokenizer: &Tokenizer) -> Result<()> {
        let expected = match part {
            "encoder" => &self.manifest.encoder_tokenizer,
            _ => &self.manifest.decoder_tokenizer,
        };
        if *expected == Manifest::tokenizer_id(tokenizer)? {
            return Ok(());
        }
        let message =
            format!("was prepared with another {part}'s tokenizer: prepare it again for this model");
        Err(TrainError::file(&self.settings.folder, message))
    }
}

/// The base models of a method whose checkpoints refer to them.
pub(super) struct Bases {
    encoder: Option<BaseSource>,
    decoder: BaseSource,
}

impl Bases {
    /// Hashes are computed where `sources` has none.
    pub(super) fn new(
        sources: &Sources,
        encoder: Option<&EncoderFiles>,
        decoder: &DecoderFiles,
    ) -> Result<Self> {
        let hashed = |source: &BaseSource, files: &[PathBuf]| -> Result<BaseSource> {
            let known = !source.sha256.is_empty();
            let sha256 = if known { source.sha256.clone() } else { checkpoint::weights_hash(files)? };
            Ok(BaseSource { sha256, ..source.clone() })
        };
        let encoder = match (&sources.encoder, encoder) {
            (Some(source), Some(files)) => Some(hashed(source, &files.weights.files())?),
            _ => None,
        };
        Ok(Self { encoder, decoder: hashed(&sources.decoder, &decoder.weights.files())? })
    }

    pub(super) fn fingerprint(&self, data: &Data) -> String {
        let all = [self.encoder.as_ref(), Some(&self.decoder)];
        let hashes: Vec<_> = all.into_iter().flatten().map(|s| s.sha256.as_str()).collect();
        format!("{} {}", data.fingerprint, hashes.join(" "))
    }

    /// Writes a checkpoint of `method` with references to them.
    pub(super) fn save(
        &self,
        folder: &Path,
        method: &str,
        settings: &impl Serialize,
        tensors: &BTreeMap<String, Tensor>,
    ) -> Result<()> {
        let base = |s: &BaseSource| BaseModel { source: s.name.clone(), sha256: s.sha256.clone() };
        let names =
            BaseModels { encoder: self.encoder.as_ref().map(base), decoder: Some(base(&self.decoder)) };
        let text = serde_json::to_string_pretty(settings).map(|t| t + "\n").map_err(ConfigError::Json);
        checkpoint::save_named(folder, method, text, tensors, &names, None)?;
        if let Some(encoder) = &self.encoder {
            encoder.refer(&folder.join("encoder"))?;
        }
        self.decoder.refer(&folder.join("decoder"))
    }
}

/// The token that ends an answer.
pub(super) fn end_token(files: &DecoderFiles, tokenizer: &Tokenizer) -> Result<u32> {
    let ids = [tokenizer.eos_ids(), &files.config.eos_token_ids].concat();
    ids.first().copied().ok_or_else(|| TrainError::Config("the decoder has no end-of-sequence token".into()))
}

pub(super) fn no_tokenizer(path: &Path) -> TrainError {
    TrainError::file(path, "this model has no tokenizer")
}

pub(super) fn precision(config: &TrainConfig) -> Result<Precision> {
    Ok(config.compute.dtype.parse()?)
}

/// The variables as they are saved.
pub(super) fn trained_tensors(vars: &BTreeMap<String, Var>, dtype: &str) -> Result<BTreeMap<String, Tensor>> {
    let dtype = if dtype == "bf16" { DType::BF16 } else { DType::F32 };
    vars.iter().map(|(n, v)| Ok((n.clone(), v.as_detached_tensor().to_dtype(dtype)?))).collect()
}
