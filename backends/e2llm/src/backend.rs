//! `e2llm` as a backend: whole contexts as soft tokens, nothing cut.
//!
//! Source: Liao et al., E2LLM, arXiv 2409.06679. A context of T tokens is read in chunks of c tokens: encoding costs
//! O(T c) in attention and O(T) in everything else, the decoder then reads k T / c soft tokens, O((k T / c)^2). Memory is
//! bounded by one wave of chunks and the soft tokens, which are kept for the next question about the same text.

use crate::cache::{ContextCache, ContextKey, EncodedContext};
use crate::checkpoint::{self, CheckpointError, Loaded, Settings, Sources};
use crate::config::E2llmConfig;
use crate::model::E2llmModel;
use crate::prompt::{PromptIds, PromptStyle};
use crate::text::encoder_chunks;
use candle_core::Tensor;
use e2llm_backend::{
    Backend, BackendError, BackendInfo, BackendSpec, BuildContext, CancelFlag, Choice, Chunker, ErrorKind,
    Fingerprint, OptionSpec, Options, Prompt, Request, Response, TokenCounter, Usage,
};
use e2llm_lm::{
    LmError, Precision, Segment, Tokenizer, Weights, answer_batch, open_device, score_continuations,
};
use std::sync::Arc;
use std::time::Instant;

const NAME: &str = "e2llm";

/// The registry entry.
pub fn spec() -> BackendSpec {
    BackendSpec {
        name: NAME,
        description: "compresses the whole context into soft tokens by a text encoder and an adapter",
        source: "E2LLM, arXiv 2409.06679",
        needs_model: true,
        options: &[
            OptionSpec { name: "encode_batch", default: "32", help: "chunks encoded at once" },
            OptionSpec {
                name: "cache_mib",
                default: "256",
                help: "memory for soft tokens of recent contexts, in MiB; the last one is always kept",
            },
            OptionSpec {
                name: "adapter",
                default: "",
                help: "vpma, cls or mean, for a model without a checkpoint (untrained); a checkpoint knows its own",
            },
            OptionSpec {
                name: "soft_tokens_per_chunk",
                default: "",
                help: "soft tokens of a chunk, for a model without a checkpoint",
            },
            OptionSpec {
                name: "output_scale",
                default: "",
                help: "true: soft tokens as long as embeddings, for a model without a checkpoint",
            },
        ],
        build: |context| Ok(Box::new(E2llmBackend::new(context)?)),
    }
}

/// The backend `e2llm`.
pub struct E2llmBackend {
    info: BackendInfo,
    model: E2llmModel,
    chunker: Chunker,
    encoder_tokenizer: Tokenizer,
    tokenizer: Arc<Tokenizer>,
    eos_ids: Vec<u32>,
    window: usize,
    wave: usize,
    cache: ContextCache,
    contexts_encoded: u64,
    cancel: CancelFlag,
}

impl From<CheckpointError> for BackendError {
    fn from(error: CheckpointError) -> Self {
        match error {
            CheckpointError::Model(error) => error.into(),
            other => Self::failed(&other),
        }
    }
}

/// A prompt as the decoder reads it, and what became of its context.
struct Prepared {
    segments: Vec<Segment>,
    usage: Usage,
}

impl E2llmBackend {
    /// Loads the model.
    ///
    /// # Errors
    /// Options out of range; any error of [`checkpoint::load`]; a base model without a tokenizer.
    pub fn new(context: &BuildContext) -> Result<Self, BackendError> {
        let sources = Sources::find(&context.model)?;
        let settings = settings(context, &sources)?;
        let options = &context.options;
        let wave = options.parse::<usize>("encode_batch")?.unwrap_or(32);
        if wave == 0 {
            return Err(bad_option("encode_batch", "0: it must be at least 1"));
        }
        let mut loaded = checkpoint::load(&sources, &settings)?;
        let info = info(context, &sources, &settings, &loaded)?;
        let window = info.window.unwrap_or(0) as usize;
        let eos_ids = loaded.decoder.eos_ids();
        let encoder_tokenizer = loaded.encoder.tokenizer.take().ok_or_else(|| no_tokenizer("encoder"))?;
        let tokenizer = loaded.decoder.tokenizer.take().ok_or_else(|| no_tokenizer("decoder"))?;
        let chunker = loaded.model.config().chunker().map_err(|e| BackendError::failed(&e))?;
        Ok(Self {
            info,
            model: loaded.model,
            chunker,
            encoder_tokenizer,
            tokenizer: Arc::new(tokenizer),
            eos_ids,
            window,
            wave,
            cache: ContextCache::new(options.parse::<usize>("cache_mib")?.unwrap_or(256) << 20),
            contexts_encoded: 0,
            cancel: context.cancel.clone(),
        })
    }

    /// How many contexts were encoded so far; all others came from the cache.
    pub fn contexts_encoded(&self) -> u64 {
        self.contexts_encoded
    }

    /// A context's soft tokens, from the cache or by encoding it.
    fn encoded(&mut self, context: &str) -> Result<EncodedContext, BackendError> {
        let key = ContextKey::new(context);
        if let Some(known) = self.cache.get(&key) {
            return Ok(known);
        }
        let window = self.model.encoder().config().window();
        let chunks = encoder_chunks(context, &self.chunker, &self.encoder_tokenizer, window)?;
        // Refused before the work is done: encoding a million tokens takes its time.
        let soft = chunks.len() * self.model.config().soft_tokens_per_chunk;
        self.check_room(soft, chunks.len(), 0, 0)?;
        let encoded = EncodedContext {
            soft: self.encode_in_waves(&chunks)?,
            context_tokens: self.tokenizer.encode(context, false)?.len(),
        };
        self.contexts_encoded += 1;
        self.cache.insert(key, encoded.clone());
        Ok(encoded)
    }

    /// Soft tokens `[C k, D]` in the order of the chunks. Chunks of like length share a wave, so that little is padded.
    fn encode_in_waves(&self, chunks: &[Vec<u32>]) -> Result<Tensor, BackendError> {
        let mut order: Vec<usize> = (0..chunks.len()).collect();
        order.sort_by_key(|&i| chunks[i].len());
        let mut waves = Vec::new();
        for wave in order.chunks(self.wave) {
            self.cancel.check()?;
            let wave: Vec<_> = wave.iter().map(|&i| chunks[i].clone()).collect();
            waves.push(self.model.soft_tokens(&wave).map_err(LmError::from)?);
        }
        let mut place = vec![0u32; chunks.len()];
        for (row, &chunk) in order.iter().enumerate() {
            place[chunk] = row as u32;
        }
        in_order(&waves, place).map_err(|e| LmError::from(e).into())
    }

    fn prepare(&mut self, request: &Request, room: usize) -> Result<Prepared, BackendError> {
        let prompt = &request.prompt;
        if prompt.instruction.is_empty() && prompt.context.is_empty() {
            let message = format!("request {} has neither context nor instruction", request.id);
            return Err(BackendError::new(ErrorKind::BadRequest, message));
        }
        let tokenizer = Arc::clone(&self.tokenizer);
        let style = style(prompt, &tokenizer);
        if prompt.context.is_empty() {
            let ids = PromptIds::without_context(&tokenizer, &prompt.instruction, style)?;
            return self.prepared(ids, None, room);
        }
        let config = self.model.config();
        let ids = PromptIds::with_context(config, &tokenizer, &prompt.instruction, style)?;
        let encoded = self.encoded(&prompt.context)?;
        self.prepared(ids, Some(encoded), room)
    }

    fn prepared(
        &self,
        ids: PromptIds,
        context: Option<EncodedContext>,
        room: usize,
    ) -> Result<Prepared, BackendError> {
        let soft = context.as_ref().map_or(0, |c| c.soft.dims()[0]);
        let words = ids.prefix.len() + ids.suffix.len();
        self.check_room(soft, soft / self.model.config().soft_tokens_per_chunk, words, room)?;
        let context_tokens = context.as_ref().map_or(0, |c| c.context_tokens) as u64;
        let usage = Usage {
            prompt_tokens: (words + soft) as u64,
            context_tokens,
            context_compressed: context_tokens,
            soft_tokens: soft as u64,
            ..Usage::default()
        };
        let segments = [
            Some(Segment::Ids(ids.prefix)),
            context.map(|c| Segment::Embeds(c.soft)),
            Some(Segment::Ids(ids.suffix)),
        ];
        let segments = segments.into_iter().flatten().filter(|s| !s.is_empty()).collect();
        Ok(Prepared { segments, usage })
    }

    /// Refuses a prompt that leaves no room for its answer.
    fn check_room(&self, soft: usize, chunks: usize, words: usize, room: usize) -> Result<(), BackendError> {
        if soft + words + room <= self.window {
            return Ok(());
        }
        let k = self.model.config().soft_tokens_per_chunk;
        let message = format!(
            "the context becomes {soft} soft tokens ({chunks} chunks x {k}), which with {words} tokens of prompt and \
             {room} of answer do not fit the decoder's window of {}; a model with fewer soft tokens per chunk or \
             larger chunks is needed",
            self.window
        );
        Err(BackendError::new(ErrorKind::ContextTooLong, message))
    }

    /// A request's prompt; `alone` says that nothing else is waited for at the same time.
    fn timed(&mut self, request: &Request, alone: bool) -> Result<e2llm_lm::Prepared, BackendError> {
        let start = Instant::now();
        self.cancel.check()?;
        let Prepared { segments, usage } = self.prepare(request, request.generation.max_new_tokens)?;
        if !alone {
            // An accelerator still works on it, and the next one would wait in its time.
            self.model.decoder().device().synchronize().map_err(LmError::from)?;
        }
        Ok(e2llm_lm::Prepared { segments, usage, time: start.elapsed() })
    }
}

impl Backend for E2llmBackend {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn generate(&mut self, batch: &[Request]) -> Vec<Result<Response, BackendError>> {
        let prompts = batch.iter().map(|request| self.timed(request, batch.len() == 1)).collect();
        let cancelled = || self.cancel.is_cancelled();
        answer_batch(self.model.decoder(), &self.tokenizer, &self.eos_ids, batch, prompts, &cancelled)
    }

    fn choose(&mut self, request: &Request, choices: &[String]) -> Result<Choice, BackendError> {
        let start = Instant::now();
        self.cancel.check()?;
        let continuations = e2llm_lm::continuation_ids(&self.tokenizer, choices)?;
        let longest = continuations.iter().map(Vec::len).max().unwrap_or(0);
        let Prepared { segments, mut usage } = self.prepare(request, longest)?;
        let cancelled = || self.cancel.is_cancelled();
        let scores = score_continuations(self.model.decoder(), &segments, &continuations, &cancelled)?;
        usage.time_to_first_token = start.elapsed().as_secs_f64();
        let tokens = continuations.iter().map(Vec::len).collect();
        Ok(Choice { log_likelihoods: scores, tokens, usage })
    }

    fn token_counter(&self) -> Option<TokenCounter> {
        Some(e2llm_lm::token_counter(&self.tokenizer))
    }
}

fn style<'a>(prompt: &'a Prompt, tokenizer: &'a Tokenizer) -> PromptStyle<'a> {
    let template = tokenizer.chat().filter(|_| prompt.chat);
    PromptStyle { template, answer_prefix: &prompt.answer_prefix }
}

/// Waves of `[n_i, k, D]` to `[C k, D]`, chunk `i` being row `place[i]` of the waves put together.
fn in_order(waves: &[Tensor], place: Vec<u32>) -> candle_core::Result<Tensor> {
    let all = Tensor::cat(waves, 0)?;
    let n = place.len();
    let place = Tensor::from_vec(place, n, all.device())?;
    all.index_select(&place, 0)?.flatten(0, 1)
}

fn bad_option(name: &str, what: &str) -> BackendError {
    BackendError::new(ErrorKind::BadRequest, format!("backend option `{name}`: {what}"))
}

fn no_tokenizer(part: &str) -> BackendError {
    BackendError::new(
        ErrorKind::Failed,
        format!("the {part} has no `tokenizer.json`, so it cannot read text"),
    )
}

fn settings(context: &BuildContext, sources: &Sources) -> Result<Settings, BackendError> {
    let device = open_device(context.device)?;
    let decoder: Precision = match context.dtype.as_str() {
        "" if device.is_cpu() => Precision::F32,
        "" => Precision::BF16,
        name => name.parse()?,
    };
    // Eight-bit products would save nothing worth their error in a model this small.
    let encoder = if decoder == Precision::Quantised { Precision::F32 } else { decoder };
    let merge_lora = decoder.merges(&device);
    Ok(Settings {
        device,
        encoder,
        decoder,
        trainable: false,
        merge_lora,
        seed: context.seed,
        untrained: untrained(&context.options, sources)?,
    })
}

/// The settings of a model without a checkpoint. One with a checkpoint has its own, and they cannot be overruled.
fn untrained(options: &Options, sources: &Sources) -> Result<E2llmConfig, BackendError> {
    let mut config = E2llmConfig::default();
    let mut named = ["adapter", "soft_tokens_per_chunk", "output_scale"].into_iter();
    if let Some(folder) = &sources.checkpoint
        && let Some(name) = named.find(|n| !options.text(n).is_empty())
    {
        let what = format!("the checkpoint {} has its own settings", folder.display());
        return Err(bad_option(name, &what));
    }
    if !options.text("adapter").is_empty() {
        config.adapter = options.text("adapter").parse().map_err(|e| BackendError::failed(&e))?;
    }
    if let Some(k) = options.parse("soft_tokens_per_chunk")? {
        config.soft_tokens_per_chunk = k;
    }
    if let Some(scale) = options.parse("output_scale")? {
        config.output_scale = scale;
    }
    config.check().map_err(|e| BackendError::failed(&e))?;
    Ok(config)
}

fn info(
    context: &BuildContext,
    sources: &Sources,
    settings: &Settings,
    loaded: &Loaded,
) -> Result<BackendInfo, BackendError> {
    let positions = loaded.decoder.config.max_position_embeddings as u64;
    let window = context.model.window.unwrap_or(positions).min(positions);
    let mut warnings = loaded.warnings.clone();
    let template = loaded.decoder.tokenizer.as_ref().and_then(Tokenizer::chat);
    if template.is_none() {
        warnings.push("the decoder has no chat template: prompts are raw text".into());
    }
    let base = loaded.encoder.config.parameters() + loaded.decoder.config.parameters();
    Ok(BackendInfo {
        name: NAME.into(),
        model: context.model.name.clone(),
        parameters: base + loaded.trained_parameters,
        trained_parameters: if loaded.trained { loaded.trained_parameters } else { 0 },
        window: Some(window),
        dtype: settings.decoder.to_string(),
        device: context.device.to_string(),
        truncation: "none".into(),
        fingerprint: fingerprint(sources, settings, loaded, window)?,
        chat_template: template.map(|t| t.hash()),
        warnings,
    })
}

/// Hash of everything that decides an answer beside the request.
fn fingerprint(
    sources: &Sources,
    settings: &Settings,
    loaded: &Loaded,
    window: u64,
) -> Result<String, BackendError> {
    let mut hash = Fingerprint::new(NAME, env!("CARGO_PKG_VERSION"));
    let config = loaded.model.config().to_json().map_err(|e| BackendError::failed(&e))?;
    hash.text("settings", &config).text("dtype", &settings.decoder.to_string());
    hash.text("window", &window.to_string());
    hash.text("encoder", &loaded.base.encoder).text("decoder", &loaded.base.decoder);
    let weights = [loaded.encoder.weights.files(), loaded.decoder.weights.files()].concat();
    for file in loaded.encoder.files.iter().chain(&loaded.decoder.files).filter(|f| !weights.contains(f)) {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        hash.file(&name, file).map_err(|e| BackendError::failed(&e))?;
    }
    match sources.checkpoint.as_ref().filter(|_| loaded.trained) {
        Some(folder) => {
            let files = Weights::open_named(folder, checkpoint::TRAINED)?.files();
            hash.text("trained", &checkpoint::weights_hash(&files)?)
        }
        None => hash.text("seed", &settings.seed.to_string()),
    };
    Ok(hash.finish())
}
