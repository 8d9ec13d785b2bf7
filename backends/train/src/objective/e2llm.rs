//! E2LLM as something to train.
//!
//! Reasoning: the answer given soft tokens of the whole context (at most `max_chunks` chunks of it) and the
//! instruction. Reconstruction: the text of w consecutive chunks given their soft tokens; windows do not overlap.

use super::chunks::Windows;
use super::decoder::check_window;
use super::open::{Data, Sources, end_token, no_tokenizer, precision, trained_tensors};
use crate::config::TrainConfig;
use crate::data::Dataset;
use crate::{BaseSource, Batch, Item, Objective, Part, Result, Split, TrainError, Trainable};
use candle_core::{Device, Tensor, Var};
use e2llm::checkpoint::{self, BaseModel, BaseModels};
use e2llm::{E2llmConfig, E2llmModel, Example, PromptIds, PromptStyle};
use e2llm_lm::{Tokenizer, Weights};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// E2LLM with its data.
pub struct E2llmTask {
    model: E2llmModel,
    vars: BTreeMap<String, Var>,
    tokenizer: Tokenizer,
    eos: u32,
    window: usize,
    data: Data,
    /// Around the soft tokens when restating them.
    restate: PromptIds,
    /// Tokens around soft tokens and instruction.
    overhead: usize,
    windows: Windows,
    sources: (BaseSource, BaseSource),
    save_dtype: String,
    seed: u64,
    /// What whoever trains it should know.
    warnings: Vec<String>,
}

impl E2llmTask {
    /// Loads the base models, and start values or those of `config.model.start`, and opens the data.
    ///
    /// # Errors
    /// Anything of [`checkpoint::load`]; data prepared for other tokenizers or chunks.
    pub fn open(sources: &Sources, config: &TrainConfig, device: &Device) -> Result<Self> {
        let data = Data::open(&config.data)?;
        let Some(encoder) = sources.encoder.clone() else {
            return Err(TrainError::Config("the method `e2llm` needs an encoder".into()));
        };
        if let Some(start) = &config.model.start
            && !Weights::exist(start, checkpoint::TRAINED)
        {
            let at = start.display();
            return Err(TrainError::Config(format!(
                "model.start: no checkpoint of `e2llm` in {at} (no e2llm.safetensors): give the folder of one, as train/first/best"
            )));
        }
        let parts = checkpoint::Sources {
            checkpoint: config.model.start.clone(),
            encoder: encoder.path.clone(),
            decoder: sources.decoder.path.clone(),
        };
        let settings = checkpoint::Settings {
            device: device.clone(),
            encoder: precision(config)?,
            decoder: precision(config)?,
            trainable: true,
            merge_lora: false,
            seed: config.seed,
            untrained: model_settings(config, &data),
        };
        let mut loaded = checkpoint::load(&parts, &settings)?;
        loaded.model.set_checkpointing(config.compute.checkpointing);
        let eos = {
            let tokenizer = loaded.decoder.tokenizer.as_ref();
            end_token(&loaded.decoder, tokenizer.ok_or_else(|| no_tokenizer(&parts.decoder))?)?
        };
        let tokenizer = loaded.decoder.tokenizer.take().ok_or_else(|| no_tokenizer(&parts.decoder))?;
        data.check_tokenizer("decoder", &tokenizer)?;
        let of_encoder = loaded.encoder.tokenizer.take().ok_or_else(|| no_tokenizer(&parts.encoder))?;
        data.check_encoder(&of_encoder, loaded.encoder.config.window())?;
        let own = loaded.model.config();
        check_chunks(own, &data, &config.phase)?;
        let style = PromptStyle { template: tokenizer.chat(), answer_prefix: "" };
        let restate = PromptIds::with_context(own, &tokenizer, &own.reconstruction_instruction, style)?;
        let bare = PromptIds::with_context(own, &tokenizer, "", style)?;
        // An instruction's own tokens may join those around it, so that this is at most one too few.
        let overhead = bare.prefix.len() + bare.suffix.len() + 1;
        if config.model.start.is_none() {
            // Being untrained is what a training starts with.
            loaded.warnings.retain(|w| !w.contains("UNTRAINED"));
        }
        loaded.warnings.extend(data.chunk_cuts());
        let hashed = |source: BaseSource, hash: &str| BaseSource {
            sha256: if source.sha256.is_empty() { hash.to_owned() } else { source.sha256 },
            ..source
        };
        Ok(Self {
            window: loaded.model.decoder().config().max_position_embeddings,
            sources: (
                hashed(encoder, &loaded.base.encoder),
                hashed(sources.decoder.clone(), &loaded.base.decoder),
            ),
            model: loaded.model,
            vars: loaded.vars,
            tokenizer,
            eos,
            data,
            restate,
            overhead,
            windows: Windows::default(),
            save_dtype: config.model.save_dtype.clone(),
            seed: config.seed,
            warnings: loaded.warnings,
        })
    }

    /// The model.
    pub fn model(&self) -> &E2llmModel {
        &self.model
    }

    /// What whoever trains it should know.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    fn question(&self, split: Split, item: u32, draw: u64) -> Result<Example> {
        let data = self.data.split(split);
        let question = data.question(item as usize);
        let style = PromptStyle { template: self.tokenizer.chat(), answer_prefix: "" };
        let ids =
            PromptIds::with_context(self.model.config(), &self.tokenizer, &question.instruction, style)?;
        let chunks = self.data.chosen(split, question.document, item, self.seed ^ draw);
        Ok(Example {
            chunks: chunks.into_iter().map(|c| data.encoder_ids(c)).collect(),
            prefix: ids.prefix,
            suffix: ids.suffix,
            answer: self.data.answer(question.answer, self.eos),
        })
    }

    fn restatement(&self, data: &Dataset, chunks: Range<usize>) -> Example {
        let mut answer: Vec<u32> = chunks.clone().flat_map(|c| data.decoder_ids(c)).collect();
        answer.push(self.eos);
        Example {
            chunks: chunks.map(|c| data.encoder_ids(c)).collect(),
            prefix: self.restate.prefix.clone(),
            suffix: self.restate.suffix.clone(),
            answer,
        }
    }
}

/// The settings of a new model: chunks as the data has them.
fn model_settings(config: &TrainConfig, data: &Data) -> E2llmConfig {
    let m = &config.model;
    E2llmConfig {
        adapter: m.adapter,
        soft_tokens_per_chunk: m.soft_tokens_per_chunk,
        vpma_num_heads: m.vpma_num_heads,
        output_scale: m.output_scale,
        encoder_lora: m.encoder_lora.clone(),
        decoder_lora: m.decoder_lora.clone(),
        chunk_chars: data.manifest.chunk_chars,
        chunk_overlap: data.manifest.chunk_overlap,
        ..E2llmConfig::default()
    }
}

fn check_chunks(model: &E2llmConfig, data: &Data, phases: &[crate::config::Phase]) -> Result<()> {
    model.check().map_err(|e| TrainError::Config(e.to_string()))?;
    let (m, d) = ((model.chunk_chars, model.chunk_overlap), &data.manifest);
    if m != (d.chunk_chars, d.chunk_overlap) {
        return Err(TrainError::Data(format!(
            "the model's chunks have {} characters with overlap {}, those of the data {} with {}: prepare it again",
            m.0, m.1, d.chunk_chars, d.chunk_overlap
        )));
    }
    if m.1 > 0.0 && phases.iter().any(|p| p.reconstruction_batch > 0 && p.window > 1) {
        let message =
            "windows of overlapping chunks have text twice: use `window = 1`, or prepare without overlap";
        return Err(TrainError::Config(message.into()));
    }
    Ok(())
}

impl Trainable for E2llmTask {
    fn vars(&self) -> &BTreeMap<String, Var> {
        &self.vars
    }

    fn items(&self, part: Part) -> Result<Vec<Item>> {
        let data = self.data.split(part.split);
        let k = self.model.config().soft_tokens_per_chunk;
        let item = |chunks: &mut dyn Iterator<Item = usize>, words: usize, targets: usize| {
            let (mut encoder, mut n) = (0, 0);
            for chunk in chunks {
                encoder += data.encoder_len(chunk);
                n += 1;
            }
            Item {
                encoder: encoder as u32,
                decoder: (n * k + words + targets) as u32,
                targets: targets as u32,
            }
        };
        let items: Vec<Item> = match part.objective {
            Objective::Reasoning => (0..data.questions())
                .map(|q| {
                    let (document, instruction, answer) = data.question_size(q);
                    let chunks = self.data.chosen(part.split, document, q as u32, self.seed);
                    item(&mut chunks.into_iter(), self.overhead + instruction, self.data.answer_len(answer))
                })
                .collect(),
            Objective::Reconstruction => {
                let words = self.restate.prefix.len() + self.restate.suffix.len();
                let windows = self.windows.of(&self.data, part.split, part.window);
                let one = |w: &Range<usize>| {
                    let targets = w.clone().map(|c| data.decoder_len(c)).sum::<usize>() + 1;
                    item(&mut w.clone(), words, targets)
                };
                windows.iter().map(one).collect()
            }
        };
        check_window(&items, self.window, |i| self.describe(part, i))?;
        Ok(items)
    }

    fn loss(&self, batch: &Batch<'_>) -> Result<Tensor> {
        let data = self.data.split(batch.part.split);
        let examples: Result<Vec<Example>> = match batch.part.objective {
            Objective::Reasoning => {
                batch.items.iter().map(|i| self.question(batch.part.split, *i, batch.draw)).collect()
            }
            Objective::Reconstruction => {
                let windows = self.windows.of(&self.data, batch.part.split, batch.part.window);
                batch.items.iter().map(|i| Ok(self.restatement(data, windows[*i as usize].clone()))).collect()
            }
        };
        Ok(self.model.answer_loss(&examples?)?.sum)
    }

    fn document(&self, part: Part, item: u32) -> String {
        self.windows.document(&self.data, part, item)
    }

    fn describe(&self, part: Part, item: u32) -> String {
        self.windows.describe(&self.data, part, item)
    }

    fn fingerprint(&self) -> String {
        let (encoder, decoder) = &self.sources;
        format!("{} {} {}", self.data.fingerprint, encoder.sha256, decoder.sha256)
    }

    fn save(&self, folder: &Path) -> Result<()> {
        let base = |s: &BaseSource| Some(BaseModel { source: s.name.clone(), sha256: s.sha256.clone() });
        let (encoder, decoder) = &self.sources;
        let bases = BaseModels { encoder: base(encoder), decoder: base(decoder) };
        let tensors = trained_tensors(&self.vars, &self.save_dtype)?;
        checkpoint::save(folder, self.model.config(), &tensors, &bases, None)?;
        for (part, source) in [("encoder", encoder), ("decoder", decoder)] {
            source.refer(&folder.join(part))?;
        }
        Ok(())
    }
}
