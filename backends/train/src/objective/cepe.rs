//! CEPE as something to train.
//!
//! Reasoning: the answer given the instruction and the end of the context, which the decoder reads, and the states of the
//! chunks before it, which it attends to. Reconstruction: the text of w consecutive chunks that the encoder reads, which
//! teaches the decoder to copy from there (the paper's warm-up); windows do not overlap.

use super::chunks::Windows;
use super::decoder::{Sequence, answer_loss_of, check_window};
use super::open::{Bases, Data, Sources, end_token, no_tokenizer, precision, trained_tensors};
use crate::config::TrainConfig;
use crate::{Batch, Item, Objective, Part, Result, Split, TrainError, Trainable};
use candle_core::{Device, Tensor, Var};
use e2llm::{E2llmConfig, PromptIds, PromptStyle};
use e2llm_baselines::cepe::{CepeConfig, CepeModel, METHOD};
use e2llm_baselines::trained;
use e2llm_lm::{DecoderFiles, EncoderFiles, Tokenizer};
use std::collections::BTreeMap;
use std::path::Path;

/// CEPE with its data.
pub struct CepeTask {
    model: CepeModel,
    vars: BTreeMap<String, Var>,
    tokenizer: Tokenizer,
    eos: u32,
    window: usize,
    data: Data,
    /// Where the decoder's part of the context is shown.
    style: E2llmConfig,
    /// The prompt of a reconstruction.
    restate: Vec<u32>,
    overhead: usize,
    windows: Windows,
    bases: Bases,
    save_dtype: String,
    seed: u64,
    warnings: Vec<String>,
}

impl CepeTask {
    /// Loads the base models, and start values or those of `config.model.start`, and opens the data.
    ///
    /// # Errors
    /// Files that cannot be loaded; data prepared for other tokenizers or chunks.
    pub fn open(sources: &Sources, config: &TrainConfig, device: &Device) -> Result<Self> {
        let data = Data::open(&config.data)?;
        let Some(of_encoder) = &sources.encoder else {
            return Err(TrainError::Config("the method `cepe` needs an encoder".into()));
        };
        let encoder = EncoderFiles::open(&of_encoder.path)?;
        let decoder = DecoderFiles::open(&sources.decoder.path)?;
        let tokenizer = decoder.tokenizer.clone().ok_or_else(|| no_tokenizer(&sources.decoder.path))?;
        data.check_tokenizer("decoder", &tokenizer)?;
        let missing = || no_tokenizer(&of_encoder.path);
        data.check_encoder(encoder.tokenizer.as_ref().ok_or_else(missing)?, encoder.config.window())?;
        let settings = settings(config, &data)?;
        let tensors = match &config.model.start {
            Some(folder) => {
                trained::tensors_of(folder, METHOD, &settings.tensors(&encoder.config, &decoder.config))?
            }
            None => settings.start_tensors(&encoder.config, &decoder.config, config.seed)?,
        };
        let bases = Bases::new(sources, Some(&encoder), &decoder)?;
        let files = (&encoder, &decoder);
        let (mut model, vars) =
            CepeModel::load(settings, files, tensors, (device, precision(config)?), true)?;
        model.set_checkpointing(config.compute.checkpointing);
        let style = PromptStyle { template: tokenizer.chat(), answer_prefix: "" };
        let own = trained::plain_style();
        let restate = PromptIds::without_context(&tokenizer, &own.reconstruction_instruction, style)?.suffix;
        let bare = PromptIds::with_context(&own, &tokenizer, "", style)?;
        Ok(Self {
            eos: end_token(&decoder, &tokenizer)?,
            window: decoder.config.max_position_embeddings,
            overhead: bare.prefix.len() + bare.suffix.len() + 1,
            model,
            vars,
            tokenizer,
            style: own,
            restate,
            windows: Windows::default(),
            bases,
            save_dtype: config.model.save_dtype.clone(),
            seed: config.seed,
            warnings: data.chunk_cuts(),
            data,
        })
    }

    /// The model.
    pub fn model(&self) -> &CepeModel {
        &self.model
    }

    /// What whoever trains it should know.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// How many of the chunks are read by the encoder: all but the last ones that the decoder reads, and at least half.
    fn encoded(&self, split: Split, chunks: &[usize]) -> usize {
        let data = self.data.split(split);
        let mut left = self.model.config().decoder_context;
        let mut n = chunks.len();
        while n > chunks.len().div_ceil(2) {
            let Some(rest) = left.checked_sub(data.decoder_len(chunks[n - 1])) else { break };
            (n, left) = (n - 1, rest);
        }
        n
    }

    fn question(&self, split: Split, item: u32, draw: u64) -> Result<(Vec<Vec<u32>>, Sequence)> {
        let data = self.data.split(split);
        let question = data.question(item as usize);
        let chunks = self.data.chosen(split, question.document, item, self.seed ^ draw);
        let (encoder, decoder) = chunks.split_at(self.encoded(split, &chunks));
        let style = PromptStyle { template: self.tokenizer.chat(), answer_prefix: "" };
        let around = if decoder.is_empty() {
            PromptIds::without_context(&self.tokenizer, &question.instruction, style)?
        } else {
            PromptIds::with_context(&self.style, &self.tokenizer, &question.instruction, style)?
        };
        let mut prompt = around.prefix;
        prompt.extend(decoder.iter().flat_map(|c| data.decoder_ids(*c)));
        prompt.extend(around.suffix);
        let answer = self.data.answer(question.answer, self.eos);
        Ok((encoder.iter().map(|c| data.encoder_ids(*c)).collect(), Sequence { prompt, answer }))
    }
}

/// Settings of a checkpoint to go on from, or new ones with chunks as the data has them.
fn settings(config: &TrainConfig, data: &Data) -> Result<CepeConfig> {
    let (chars, overlap) = (data.manifest.chunk_chars, data.manifest.chunk_overlap);
    let Some(folder) = &config.model.start else {
        return Ok(CepeConfig {
            encoder_lora: config.model.encoder_lora.clone(),
            decoder_context: config.model.decoder_context,
            chunk_chars: chars,
            chunk_overlap: overlap,
        });
    };
    let own: CepeConfig = trained::settings_of(folder, METHOD)?
        .ok_or_else(|| TrainError::file(folder, "this is no checkpoint of `cepe`"))?;
    if (own.chunk_chars, own.chunk_overlap) != (chars, overlap) {
        return Err(TrainError::Data(format!(
            "the model's chunks have {} characters with overlap {}, those of the data {chars} with {overlap}: prepare it \
             again",
            own.chunk_chars, own.chunk_overlap
        )));
    }
    Ok(own)
}

impl Trainable for CepeTask {
    fn vars(&self) -> &BTreeMap<String, Var> {
        &self.vars
    }

    fn items(&self, part: Part) -> Result<Vec<Item>> {
        let data = self.data.split(part.split);
        let tokens = |chunks: &[usize]| chunks.iter().map(|c| data.decoder_len(*c)).sum::<usize>();
        let encoder = |chunks: &[usize]| chunks.iter().map(|c| data.encoder_len(*c)).sum::<usize>() as u32;
        let items: Vec<Item> = match part.objective {
            Objective::Reasoning => (0..data.questions())
                .map(|q| {
                    let (document, instruction, answer) = data.question_size(q);
                    let chunks = self.data.chosen(part.split, document, q as u32, self.seed);
                    let (first, last) = chunks.split_at(self.encoded(part.split, &chunks));
                    let targets = self.data.answer_len(answer);
                    let decoder = self.overhead + instruction + tokens(last) + targets;
                    Item { encoder: encoder(first), decoder: decoder as u32, targets: targets as u32 }
                })
                .collect(),
            Objective::Reconstruction => {
                let windows = self.windows.of(&self.data, part.split, part.window);
                let one = |w: &std::ops::Range<usize>| {
                    let chunks: Vec<usize> = w.clone().collect();
                    let targets = tokens(&chunks) + 1;
                    let decoder = self.restate.len() + targets;
                    Item { encoder: encoder(&chunks), decoder: decoder as u32, targets: targets as u32 }
                };
                windows.iter().map(one).collect()
            }
        };
        check_window(&items, self.window, |i| self.describe(part, i))?;
        Ok(items)
    }

    fn loss(&self, batch: &Batch<'_>) -> Result<Tensor> {
        let split = batch.part.split;
        let data = self.data.split(split);
        let mut examples = Vec::with_capacity(batch.items.len());
        for &item in batch.items {
            examples.push(match batch.part.objective {
                Objective::Reasoning => self.question(split, item, batch.draw)?,
                Objective::Reconstruction => {
                    let windows = self.windows.of(&self.data, split, batch.part.window);
                    let chunks = windows[item as usize].clone();
                    let mut answer: Vec<u32> = chunks.clone().flat_map(|c| data.decoder_ids(c)).collect();
                    answer.push(self.eos);
                    let read = chunks.map(|c| data.encoder_ids(c)).collect();
                    (read, Sequence { prompt: self.restate.clone(), answer })
                }
            });
        }
        let (chunks, sequences): (Vec<_>, Vec<_>) = examples.into_iter().unzip();
        let source = self.model.source(&chunks)?;
        Ok(answer_loss_of(self.model.decoder(), &sequences, source.as_ref())?)
    }

    fn document(&self, part: Part, item: u32) -> String {
        self.windows.document(&self.data, part, item)
    }

    fn describe(&self, part: Part, item: u32) -> String {
        self.windows.describe(&self.data, part, item)
    }

    fn fingerprint(&self) -> String {
        self.bases.fingerprint(&self.data)
    }

    fn save(&self, folder: &Path) -> Result<()> {
        let tensors = trained_tensors(&self.vars, &self.save_dtype)?;
        self.bases.save(folder, METHOD, self.model.config(), &tensors)
    }
}
