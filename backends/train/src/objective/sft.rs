//! A plain decoder: the trained baselines `truncate` and `no-context` of every table, `yarn` fine-tuned, and LongLoRA.
//!
//! LoRA is trained, and by LongLoRA (Chen et al. 2023, arXiv 2309.12307) embeddings and norms in full, an output layer
//! that is tied to the embeddings with them. LongLoRA learns in shifted groups of attention and is validated, as it will
//! be used, in full attention.
//!
//! What is saved is an adapter in PEFT's layout beside what makes it a model of its own ([`TunedDecoder`]).

use super::decoder::{Sequence, answer_loss, check_window};
use super::open::{Data, Sources, end_token, no_tokenizer, precision, trained_tensors};
use crate::config::{Method, ModelConfig, TrainConfig};
use crate::{BaseSource, Batch, Item, Objective, Part, Result, Split, TrainError, Trainable};
use candle_core::{DType, Device, Tensor, Var};
use e2llm::{E2llmConfig, PromptIds, PromptStyle, initial_tensors};
use e2llm_lm::{
    DecoderFiles, Llama, LoraConfig, LoraSource, Params, PeftAdapter, Stretch, Tokenizer, TunedDecoder,
};
use std::collections::BTreeMap;
use std::path::Path;

const PREFIX: &str = "decoder.";

/// A decoder with its data.
pub struct SftTask {
    decoder: Llama,
    /// The same decoder as it learns, where that is another way of attending.
    learner: Option<Llama>,
    settings: ModelConfig,
    lora: LoraConfig,
    /// Modules that are trained in full.
    modules: Vec<String>,
    vars: BTreeMap<String, Var>,
    tokenizer: Tokenizer,
    eos: u32,
    window: usize,
    /// Where the context is shown: between nothing and an empty line.
    style: E2llmConfig,
    reads_context: bool,
    overhead: usize,
    data: Data,
    source: BaseSource,
    warnings: Vec<String>,
}

impl SftTask {
    /// Loads the decoder, and start values or those of `config.model.start` (an adapter in PEFT's layout), and opens
    /// the data.
    ///
    /// # Errors
    /// Files that cannot be loaded; data prepared for another tokenizer.
    pub fn open(sources: &Sources, config: &TrainConfig, device: &Device) -> Result<Self> {
        let data = Data::open(&config.data)?;
        let mut files = DecoderFiles::open(&sources.decoder.path)?;
        let mut settings = config.model.clone();
        settings.rope = rope(&settings)?;
        let mut warnings = Vec::new();
        if let Some(rope) = &settings.rope {
            let stretched = rope.apply(&mut files.config);
            warnings = stretched.map_err(|e| TrainError::Config(format!("[model.rope] {e}")))?;
        }
        let modules = match settings.method {
            Method::Longlora => files.config.embeddings_and_norms(),
            _ => Vec::new(),
        };
        let (lora, tensors) = start(config, &files, &modules)?;
        let mut params = Params::new(tensors, device, DType::F32, true);
        let source = LoraSource { config: &lora, params: &mut params, prefix: PREFIX };
        let mut decoder =
            Llama::load(&files.config, &files.weights, Some(source), device, precision(config)?)?;
        decoder.set_checkpointing(config.compute.checkpointing);
        let vars = params.finish()?;
        if vars.is_empty() {
            return Err(TrainError::Config(
                "model.decoder_lora has no target_modules: nothing is trained".into(),
            ));
        }
        let mut source = sources.decoder.clone();
        if source.sha256.is_empty() {
            source.sha256 = e2llm::checkpoint::weights_hash(&files.weights.files())?;
        }
        let tokenizer = files.tokenizer.clone().ok_or_else(|| no_tokenizer(&sources.decoder.path))?;
        data.check_tokenizer("decoder", &tokenizer)?;
        let style = e2llm_baselines::trained::plain_style();
        let mut task = Self {
            eos: end_token(&files, &tokenizer)?,
            window: files.config.max_position_embeddings,
            learner: (settings.method == Method::Longlora).then(|| decoder.with_shifted_groups()),
            decoder,
            lora,
            modules,
            vars,
            tokenizer,
            style,
            reads_context: settings.method != Method::SftNoContext,
            overhead: 0,
            data,
            source,
            settings,
            warnings,
        };
        let around = task.around("")?;
        task.overhead = around.prefix.len() + around.suffix.len() + 1;
        let train = task.data.split(Split::Train);
        let tokens = |d: usize| train.chunks(d).map(|c| train.decoder_len(c)).sum::<usize>();
        let most = config.data.max_context_tokens;
        let cuts = task.data.cuts(|d| task.reads_context && tokens(d) > most);
        task.warnings.extend(cuts);
        Ok(task)
    }

    /// What whoever trains it should know.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// How positions are stretched.
    pub fn stretch(&self) -> Option<&Stretch> {
        self.settings.rope.as_ref()
    }

    fn around(&self, instruction: &str) -> Result<PromptIds> {
        let style = PromptStyle { template: self.tokenizer.chat(), answer_prefix: "" };
        Ok(if self.reads_context {
            PromptIds::with_context(&self.style, &self.tokenizer, instruction, style)?
        } else {
            PromptIds::without_context(&self.tokenizer, instruction, style)?
        })
    }

    /// Tokens read of a context of so many.
    fn context_len(&self, tokens: usize) -> usize {
        if self.reads_context { tokens.min(self.data.settings.max_context_tokens) } else { 0 }
    }

    fn sequence(&self, part: Part, item: u32) -> Result<Sequence> {
        let data = self.data.split(part.split);
        let question = data.question(item as usize);
        let around = self.around(&question.instruction)?;
        let mut prompt = around.prefix;
        if self.reads_context {
            let mut context: Vec<u32> =
                data.chunks(question.document).flat_map(|c| data.decoder_ids(c)).collect();
            let most = self.data.settings.max_context_tokens;
            if context.len() > most {
                let (head, tail) = (most.div_ceil(2), most / 2);
                context.drain(head..context.len() - tail);
            }
            prompt.extend(context);
        }
        prompt.extend(around.suffix);
        Ok(Sequence { prompt, answer: self.data.answer(question.answer, self.eos) })
    }
}

impl Trainable for SftTask {
    fn vars(&self) -> &BTreeMap<String, Var> {
        &self.vars
    }

    fn items(&self, part: Part) -> Result<Vec<Item>> {
        if part.objective == Objective::Reconstruction {
            return Ok(Vec::new());
        }
        let data = self.data.split(part.split);
        let context: Vec<usize> = (0..data.documents())
            .map(|d| self.context_len(data.chunks(d).map(|c| data.decoder_len(c)).sum()))
            .collect();
        let one = |q: usize| {
            let (document, instruction, answer) = data.question_size(q);
            let targets = self.data.answer_len(answer);
            let decoder = self.overhead + instruction + context[document] + targets;
            Item { encoder: 0, decoder: decoder as u32, targets: targets as u32 }
        };
        let items: Vec<Item> = (0..data.questions()).map(one).collect();
        check_window(&items, self.window, |i| self.describe(part, i))?;
        Ok(items)
    }

    fn loss(&self, batch: &Batch<'_>) -> Result<Tensor> {
        let sequences: Result<Vec<_>> = batch.items.iter().map(|i| self.sequence(batch.part, *i)).collect();
        let learner = self.learner.as_ref().filter(|_| batch.part.split == Split::Train);
        Ok(answer_loss(learner.unwrap_or(&self.decoder), &sequences?)?)
    }

    fn document(&self, part: Part, item: u32) -> String {
        self.data.document_of(part.split, item)
    }

    fn describe(&self, part: Part, item: u32) -> String {
        self.data.describe_question(part.split, item)
    }

    fn fingerprint(&self) -> String {
        format!("{} {}", self.data.fingerprint, self.source.sha256)
    }

    fn save(&self, folder: &Path) -> Result<()> {
        let tensors = trained_tensors(&self.vars, &self.settings.save_dtype)?;
        let tensors =
            tensors.into_iter().map(|(n, t)| (n.trim_start_matches(PREFIX).to_owned(), t)).collect();
        let adapter =
            PeftAdapter { config: self.lora.clone(), modules_to_save: self.modules.clone(), tensors };
        let method = self.settings.method.name().to_owned();
        let tuned = TunedDecoder { method, rope: self.settings.rope.clone(), adapter };
        tuned.write(folder, &self.source.name)?;
        self.source.refer(&folder.join("decoder"))
    }
}

/// How positions are stretched: as `model.start` has them where that is a decoder of a stretched window.
fn rope(settings: &ModelConfig) -> Result<Option<Stretch>> {
    let tuned = settings.start.as_deref().filter(|folder| TunedDecoder::is_at(folder));
    let before = tuned.map(TunedDecoder::settings).transpose()?.and_then(|(_, rope)| rope);
    match (before, &settings.rope) {
        (Some(before), Some(asked)) if before != *asked => Err(TrainError::Config(format!(
            "[model.rope]: model.start was trained with another stretch, {} by {}",
            before.scaling, before.factor
        ))),
        (before, asked) => Ok(before.or_else(|| asked.clone())),
    }
}

/// What is trained, with its start values: those of `model.start`, or LoRA that changes nothing and the modules as the base
/// model has them.
fn start(
    config: &TrainConfig,
    files: &DecoderFiles,
    modules: &[String],
) -> Result<(LoraConfig, BTreeMap<String, Tensor>)> {
    let Some(folder) = &config.model.start else {
        let lora = config.model.decoder_lora.clone();
        let mut tensors = initial_tensors(&files.config.lora_tensors(&lora, PREFIX), config.seed)?;
        for spec in files.config.module_tensors(modules, "") {
            let tensor = files.weights.load(&spec.name, DType::F32, &Device::Cpu)?;
            tensors.insert(format!("{PREFIX}{}", spec.name), tensor);
        }
        return Ok((lora, tensors));
    };
    let PeftAdapter { config: lora, tensors, .. } = PeftAdapter::read(folder)?;
    let specs = PeftAdapter::specs(&files.config, &lora, modules);
    let params = Params::new(tensors.clone(), &Device::Cpu, DType::F32, false);
    params.check(&specs).map_err(|problems| e2llm_lm::LmError::Tensors { path: folder.clone(), problems })?;
    Ok((lora, tensors.into_iter().map(|(n, t)| (format!("{PREFIX}{n}"), t)).collect()))
}
