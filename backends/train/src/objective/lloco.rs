//! LLoCO as something to train.
//!
//! Reasoning: the answer given the summary vectors of the context (at most `max_chunks` chunks of it) and the instruction.
//! Reconstruction: the text of w consecutive chunks given their summary vectors; windows do not overlap.

use super::chunks::Windows;
use super::decoder::check_window;
use super::open::{Bases, Data, Sources, end_token, no_tokenizer, precision, trained_tensors};
use crate::config::TrainConfig;
use crate::{Batch, Item, Objective, Part, Result, Split, TrainError, Trainable};
use candle_core::{Device, Tensor, Var};
use e2llm::{E2llmConfig, PromptIds, PromptStyle};
use e2llm_baselines::lloco::{LlocoConfig, LlocoModel, METHOD};
use e2llm_baselines::trained;
use e2llm_lm::{DecoderFiles, Llama, Part as Piece, Tokenizer};
use std::collections::BTreeMap;
use std::path::Path;

/// LLoCO with its data.
pub struct LlocoTask {
    model: LlocoModel,
    vars: BTreeMap<String, Var>,
    /// What is saved as it was loaded.
    frozen: BTreeMap<String, Tensor>,
    tokenizer: Tokenizer,
    eos: u32,
    window: usize,
    data: Data,
    style: E2llmConfig,
    /// Around the summary vectors when restating them.
    restate: PromptIds,
    overhead: usize,
    windows: Windows,
    bases: Bases,
    save_dtype: String,
    seed: u64,
    warnings: Vec<String>,
}

/// A document, what stands around its summary vectors, and the answer.
struct Example {
    document: Vec<u32>,
    around: PromptIds,
    answer: Vec<u32>,
}

impl LlocoTask {
    /// Loads the decoder, and start values or those of `config.model.start`, and opens the data.
    ///
    /// # Errors
    /// Files that cannot be loaded; data prepared for another tokenizer.
    pub fn open(sources: &Sources, config: &TrainConfig, device: &Device) -> Result<Self> {
        let data = Data::open(&config.data)?;
        let files = DecoderFiles::open(&sources.decoder.path)?;
        let tokenizer = files.tokenizer.clone().ok_or_else(|| no_tokenizer(&sources.decoder.path))?;
        data.check_tokenizer("decoder", &tokenizer)?;
        let eos = end_token(&files, &tokenizer)?;
        let settings = settings(config)?;
        let (pass, window) =
            (settings.positions(settings.segment_tokens), files.config.max_position_embeddings);
        if pass > window {
            return Err(TrainError::Config(format!(
                "a segment takes {pass} positions, the decoder has {window}: lower model.segment_tokens"
            )));
        }
        let place = (device, precision(config)?);
        let base = Llama::load(&files.config, &files.weights, None, place.0, place.1)?;
        let tensors = match &config.model.start {
            Some(folder) => trained::tensors_of(folder, METHOD, &settings.tensors(&files.config))?,
            None => settings.start_tensors(&base, eos, config.seed)?,
        };
        let trainable = (config.model.train_compressor, true);
        let (mut model, vars) = LlocoModel::load(settings, &base, tensors.clone(), place, trainable)?;
        model.set_checkpointing(config.compute.checkpointing);
        if vars.is_empty() {
            return Err(TrainError::Config("nothing is trained: no LoRA has target_modules".into()));
        }
        let chat = PromptStyle { template: tokenizer.chat(), answer_prefix: "" };
        let own = trained::plain_style();
        let restate = PromptIds::with_context(&own, &tokenizer, &own.reconstruction_instruction, chat)?;
        let bare = PromptIds::with_context(&own, &tokenizer, "", chat)?;
        Ok(Self {
            frozen: tensors.into_iter().filter(|(name, _)| !vars.contains_key(name)).collect(),
            eos,
            window,
            overhead: bare.prefix.len() + bare.suffix.len() + 1,
            bases: Bases::new(sources, None, &files)?,
            model,
            vars,
            tokenizer,
            style: own,
            restate,
            windows: Windows::default(),
            save_dtype: config.model.save_dtype.clone(),
            seed: config.seed,
            warnings: data.chunk_cuts(),
            data,
        })
    }

    /// What whoever trains it should know.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    fn question(&self, split: Split, item: u32, draw: u64) -> Result<Example> {
        let data = self.data.split(split);
        let question = data.question(item as usize);
        let chunks = self.data.chosen(split, question.document, item, self.seed ^ draw);
        let chat = PromptStyle { template: self.tokenizer.chat(), answer_prefix: "" };
        Ok(Example {
            document: chunks.into_iter().flat_map(|c| data.decoder_ids(c)).collect(),
            around: PromptIds::with_context(&self.style, &self.tokenizer, &question.instruction, chat)?,
            answer: self.data.answer(question.answer, self.eos),
        })
    }

    fn restatement(&self, split: Split, window: usize, item: u32) -> Example {
        let data = self.data.split(split);
        let chunks = self.windows.of(&self.data, split, window)[item as usize].clone();
        let document: Vec<u32> = chunks.flat_map(|c| data.decoder_ids(c)).collect();
        let mut answer = document.clone();
        answer.push(self.eos);
        Example { document, around: self.restate.clone(), answer }
    }

    /// Sum of the cross-entropies of all answer tokens.
    fn answer_loss(&self, batch: &[Example]) -> candle_core::Result<Tensor> {
        let documents: Vec<_> = batch.iter().map(|e| e.document.clone()).collect();
        let summaries = self.model.compressor.summaries(&documents, || Ok(()))?;
        let (mut sequences, mut row) = (Vec::with_capacity(batch.len()), 0);
        for (example, own) in batch.iter().zip(&summaries) {
            let read = row..row + own.dim(0)?;
            row = read.end;
            let words = |ids: &[u32]| Piece::Ids(ids.to_vec());
            let e = &example.around;
            sequences.push(vec![
                words(&e.prefix),
                Piece::Soft(read),
                words(&e.suffix),
                words(&example.answer),
            ]);
        }
        let decoder = &self.model.decoder;
        let (x, lengths) = decoder.embed_parts(&sequences, Some(&Tensor::cat(&summaries, 0)?))?;
        let hidden = decoder.forward_hidden(&x, Some(&lengths), None)?;
        let longest = x.dim(1)?;
        let (mut rows, mut targets) = (Vec::new(), Vec::<u32>::new());
        for (i, (example, length)) in batch.iter().zip(&lengths).enumerate() {
            let first = i * longest + length - example.answer.len() - 1;
            rows.extend((first..first + example.answer.len()).map(|r| r as u32));
            targets.extend(&example.answer);
        }
        let kept = e2llm_kernels::gather_rows(&hidden.flatten(0, 1)?, &rows)?;
        let n = targets.len();
        decoder.cross_entropy(&kept, &Tensor::from_vec(targets, n, decoder.device())?)
    }
}

/// Settings of a checkpoint to go on from, or new ones.
fn settings(config: &TrainConfig) -> Result<LlocoConfig> {
    let m = &config.model;
    let own = match &m.start {
        Some(folder) => trained::settings_of(folder, METHOD)?
            .ok_or_else(|| TrainError::file(folder, "this is no checkpoint of `lloco`"))?,
        None => LlocoConfig {
            segment_tokens: m.segment_tokens,
            summary_tokens: m.summary_tokens,
            bptt_segments: m.bptt_segments,
            compressor_lora: m.compressor_lora.clone(),
            decoder_lora: m.decoder_lora.clone(),
        },
    };
    own.check().map_err(|e| TrainError::Config(format!("model: {e}")))?;
    Ok(own)
}

impl Trainable for LlocoTask {
    fn vars(&self) -> &BTreeMap<String, Var> {
        &self.vars
    }

    fn items(&self, part: Part) -> Result<Vec<Item>> {
        let data = self.data.split(part.split);
        let config = self.model.config();
        let one = |chunks: &mut dyn Iterator<Item = usize>, words: usize, targets: Option<usize>| {
            let tokens: usize = chunks.map(|c| data.decoder_len(c)).sum();
            let targets = targets.unwrap_or(tokens + 1);
            let (segments, soft) = (tokens.div_ceil(config.segment_tokens), config.summaries(tokens));
            // Each pass reads the vectors of all before it.
            let again = config.summary_tokens * segments * segments.saturating_sub(1) / 2;
            Item {
                encoder: (tokens + soft + again) as u32,
                decoder: (soft + words + targets) as u32,
                targets: targets as u32,
            }
        };
        let items: Vec<Item> = match part.objective {
            Objective::Reasoning => (0..data.questions())
                .map(|q| {
                    let (document, instruction, answer) = data.question_size(q);
                    let chunks = self.data.chosen(part.split, document, q as u32, self.seed);
                    let targets = self.data.answer_len(answer);
                    one(&mut chunks.into_iter(), self.overhead + instruction, Some(targets))
                })
                .collect(),
            Objective::Reconstruction => {
                let words = self.restate.prefix.len() + self.restate.suffix.len();
                let windows = self.windows.of(&self.data, part.split, part.window);
                windows.iter().map(|w| one(&mut w.clone(), words, None)).collect()
            }
        };
        check_window(&items, self.window, |i| self.describe(part, i))?;
        Ok(items)
    }

    fn loss(&self, batch: &Batch<'_>) -> Result<Tensor> {
        let part = batch.part;
        let example = |item: &u32| match part.objective {
            Objective::Reasoning => self.question(part.split, *item, batch.draw),
            Objective::Reconstruction => Ok(self.restatement(part.split, part.window, *item)),
        };
        let examples: Result<Vec<_>> = batch.items.iter().map(example).collect();
        Ok(self.answer_loss(&examples?)?)
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
        let mut tensors = trained_tensors(&self.vars, &self.save_dtype)?;
        tensors.extend(self.frozen.clone());
        self.bases.save(folder, METHOD, self.model.config(), &tensors)
    }
}
