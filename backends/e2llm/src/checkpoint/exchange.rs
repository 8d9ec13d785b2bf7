//! A checkpoint for other programs: its adapters added to the base models (plain HF folders), or in PEFT's layout.

use super::load::trained_tensors;
use super::{BaseModels, CheckpointError, Loaded, TRAINED, save};
use crate::config::E2llmConfig;
use candle_core::{DType, Device, Tensor};
use e2llm_lm::{
    DecoderFiles, EncoderFiles, LmError, LoraConfig, Params, PeftAdapter, PeftTask, Weights, write_decoder,
    write_encoder,
};
use std::collections::BTreeMap;
use std::path::Path;

/// The two parts that have LoRA: their folders, what stands before their tensors' names, and what they are to PEFT.
const PARTS: [(&str, &str, PeftTask); 2] =
    [("encoder", "encoder.", PeftTask::FeatureExtraction), ("decoder", "decoder.", PeftTask::CausalLm)];

/// Settings and trained tensors of a checkpoint, without its base models.
#[derive(Debug, Clone)]
pub struct Trained {
    /// The settings.
    pub config: E2llmConfig,
    /// By the names of `e2llm.safetensors`.
    pub tensors: BTreeMap<String, Tensor>,
}

impl Trained {
    /// Reads a checkpoint's settings and trained tensors, in float32.
    ///
    /// # Errors
    /// Files that are missing or damaged.
    pub fn read(folder: &Path) -> Result<Self, CheckpointError> {
        let config = super::load::settings_of(folder)?;
        let file = Weights::open_named(folder, TRAINED)?;
        let load = |name: &String| Ok((name.clone(), file.load(name, DType::F32, &Device::Cpu)?));
        let tensors = file.tensors().keys().map(load).collect::<Result<_, LmError>>()?;
        Ok(Self { config, tensors })
    }

    /// Writes it as a checkpoint, its tensors in `dtype` and in files of `max_bytes` at most.
    ///
    /// # Errors
    /// Anything that cannot be written.
    pub fn save(
        &self,
        folder: &Path,
        base: &BaseModels,
        dtype: DType,
        max_bytes: Option<usize>,
    ) -> Result<(), CheckpointError> {
        let cast = |(name, t): (&String, &Tensor)| Ok((name.clone(), t.to_dtype(dtype)?));
        let tensors = self.tensors.iter().map(cast).collect::<Result<_, CheckpointError>>()?;
        save(folder, &self.config, &tensors, base, max_bytes)
    }

    /// Writes the LoRA of both parts into `encoder/` and `decoder/` of `folder`, each as an adapter that PEFT loads onto
    /// its base model. The adapter between the parts has no place there and stays in the checkpoint.
    ///
    /// # Errors
    /// Anything that cannot be written.
    pub fn write_peft(&self, folder: &Path, base: &BaseModels, dtype: DType) -> Result<(), CheckpointError> {
        let bases = [&base.encoder, &base.decoder];
        for ((part, prefix, task), base) in PARTS.into_iter().zip(bases) {
            let own = |(n, t): (&String, &Tensor)| Some((n.strip_prefix(prefix)?.to_owned(), t.clone()));
            let tensors: BTreeMap<String, Tensor> = self.tensors.iter().filter_map(own).collect();
            if tensors.is_empty() {
                continue;
            }
            let tensors = tensors.into_iter().map(|(n, t)| Ok((n, t.to_dtype(dtype)?)));
            let tensors = tensors.collect::<Result<_, CheckpointError>>()?;
            let folder = folder.join(part);
            std::fs::create_dir_all(&folder).map_err(CheckpointError::io(&folder))?;
            let source = base.as_ref().map_or("", |b| b.source.as_str());
            let (config, modules_to_save) = (self.lora(part).clone(), Vec::new());
            PeftAdapter { config, modules_to_save, tensors }.write(&folder, source, task)?;
        }
        Ok(())
    }

    /// Replaces the LoRA of the parts that `folder` has PEFT adapters of, in `encoder/` and `decoder/`.
    ///
    /// # Errors
    /// Adapters of neither part; files that are damaged; tensors that do not fit the base models, all of them at once.
    pub fn read_peft(
        &mut self,
        folder: &Path,
        encoder: &EncoderFiles,
        decoder: &DecoderFiles,
    ) -> Result<(), CheckpointError> {
        let mut found = false;
        for (part, prefix, _) in PARTS {
            let path = folder.join(part);
            if !path.is_dir() {
                continue;
            }
            found = true;
            let adapter = PeftAdapter::read(&path)?;
            self.tensors.retain(|name, _| !name.starts_with(prefix));
            self.tensors.extend(adapter.tensors.into_iter().map(|(n, t)| (format!("{prefix}{n}"), t)));
            match part {
                "encoder" => self.config.encoder_lora = adapter.config,
                _ => self.config.decoder_lora = adapter.config,
            }
        }
        if !found {
            return Err(CheckpointError::NoBase {
                part: "LoRA adapter",
                searched: format!("{} has neither `encoder/` nor `decoder/`", folder.display()),
            });
        }
        let specs = trained_tensors(&self.config, encoder, decoder);
        let params = Params::new(self.tensors.clone(), &Device::Cpu, DType::F32, false);
        params.check(&specs).map_err(|problems| LmError::Tensors { path: folder.to_owned(), problems })?;
        Ok(())
    }

    fn lora(&self, part: &str) -> &LoraConfig {
        if part == "encoder" { &self.config.encoder_lora } else { &self.config.decoder_lora }
    }
}

/// Writes a checkpoint whose base models have the LoRA added to their weights, in `dtype`: `encoder/` and `decoder/` are
/// plain HF folders, and what is left to E2LLM is the adapter between them.
///
/// # Errors
/// Anything that cannot be written.
pub fn merge_lora(
    checkpoint: &Path,
    loaded: &Loaded,
    folder: &Path,
    dtype: DType,
) -> Result<(), CheckpointError> {
    for part in ["encoder", "decoder"] {
        let part = folder.join(part);
        std::fs::create_dir_all(&part).map_err(CheckpointError::io(&part))?;
    }
    write_encoder(&folder.join("encoder"), loaded.model.encoder(), &loaded.encoder, dtype)?;
    write_decoder(&folder.join("decoder"), loaded.model.decoder(), &loaded.decoder, dtype)?;
    let mut trained = Trained::read(checkpoint)?;
    trained.tensors.retain(|name, _| PARTS.iter().all(|(_, prefix, _)| !name.starts_with(prefix)));
    trained.config.encoder_lora.target_modules.clear();
    trained.config.decoder_lora.target_modules.clear();
    trained.save(folder, &BaseModels::default(), dtype, None)
}
