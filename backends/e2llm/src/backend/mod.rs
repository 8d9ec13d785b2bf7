//! `e2llm` as a backend: whole contexts as soft tokens, nothing cut.
//!
//! Source: Liao et al., E2LLM, arXiv 2409.06679. A context of T tokens is read in chunks of c tokens: encoding costs
//! O(T c) in attention and O(T) in everything else, the decoder then reads k T / c soft tokens, O((k T / c)^2). Memory is
//! bounded by one wave of chunks and the soft tokens, which are kept for the next question about the same text.

mod setup;

pub use setup::spec;

use crate::cache::{ContextCache, ContextKey, EncodedContext};
use crate::checkpoint::{self, CheckpointError, Sources};
use crate::model::E2llmModel;
use crate::prompt::{PromptIds, PromptStyle};
use crate::texts::{Chunks, Reader, Text, Texts, TokenCount};
use candle_core::Tensor;
use e2llm_backend::{
    Backend, BackendError, BackendInfo, BuildContext, CancelFlag, Choice, ErrorKind, Prompt, Request,
    Response, TokenCounter, Usage,
};
use e2llm_lm::{Desk, LmError, Segment, Tokenizer, answer_queue, queue_of, score_continuations};
use setup::{bad_option, info, settings};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The backend `e2llm`.
pub struct E2llmBackend {
    info: BackendInfo,
    model: E2llmModel,
    reader: Arc<Reader>,
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
    /// Without the context's length.
    usage: Usage,
    count: Option<TokenCount>,
    /// How long the context's text took to read.
    time: Duration,
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
        let wave = options.parse("encode_batch")?.unwrap_or(if settings.device.is_cpu() { 32 } else { 256 });
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
        let reader = Reader {
            chunker,
            tokenizer: encoder_tokenizer,
            window: loaded.model.encoder().config().window(),
        };
        Ok(Self {
            info,
            model: loaded.model,
            reader: Arc::new(reader),
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

    /// Contexts of a queue that are not in the cache.
    fn texts<'a>(&self, queue: &'a [Request]) -> Texts<'a> {
        let mut texts = Texts::default();
        for context in queue.iter().map(|r| r.prompt.context.as_str()).filter(|c| !c.is_empty()) {
            let key = ContextKey::new(context);
            if !self.cache.has(&key) {
                texts.add(key, context);
            }
        }
        texts
    }

    /// Calls `work` while other threads read the contexts of a queue, in its order, and then count their tokens.
    fn with_texts<'a, R>(
        &mut self,
        queue: &'a [Request],
        work: impl FnOnce(&mut Self, &Texts<'a>) -> R,
    ) -> R {
        let texts = self.texts(queue);
        let (reader, tokenizer) = (Arc::clone(&self.reader), Arc::clone(&self.tokenizer));
        rayon::in_place_scope(|scope| {
            for text in texts.iter() {
                let reader = &reader;
                scope.spawn(move |_| {
                    text.chunks(reader);
                });
            }
            for text in texts.iter() {
                let tokenizer = &tokenizer;
                scope.spawn(move |_| {
                    text.count.of(text.context, tokenizer);
                });
            }
            work(self, &texts)
        })
    }

    /// A context's soft tokens, from the cache or by encoding it, and how long its text took to read.
    fn encoded(
        &mut self,
        context: &str,
        texts: &Texts<'_>,
    ) -> Result<(EncodedContext, Duration), BackendError> {
        let key = ContextKey::new(context);
        if let Some(known) = self.cache.get(&key) {
            return Ok((known, Duration::ZERO));
        }
        // One that was cached when the batch was read may have been driven out since.
        let own;
        let text = match texts.get(&key) {
            Some(text) => text,
            None => {
                own = Text::new(context);
                &own
            }
        };
        let Chunks { ids, time } = text.chunks(&self.reader);
        let chunks = ids.as_ref().map_err(BackendError::clone)?;
        // Refused before the work is done: encoding a million tokens takes its time.
        let soft = chunks.len() * self.model.config().soft_tokens_per_chunk;
        self.check_room(soft, chunks.len(), 0, 0)?;
        let encoded = EncodedContext { soft: self.encode_in_waves(chunks)?, count: text.count.clone() };
        self.contexts_encoded += 1;
        self.cache.insert(key, encoded.clone());
        Ok((encoded, *time))
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

    fn prepare(
        &mut self,
        request: &Request,
        texts: &Texts<'_>,
        room: usize,
    ) -> Result<Prepared, BackendError> {
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
        let (encoded, time) = self.encoded(&prompt.context, texts)?;
        Ok(Prepared { time, ..self.prepared(ids, Some(encoded), room)? })
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
        let usage =
            Usage { prompt_tokens: (words + soft) as u64, soft_tokens: soft as u64, ..Usage::default() };
        let count = context.as_ref().map(|c| c.count.clone());
        let segments = [
            Some(Segment::Ids(ids.prefix)),
            context.map(|c| Segment::Embeds(c.soft)),
            Some(Segment::Ids(ids.suffix)),
        ];
        let segments = segments.into_iter().flatten().filter(|s| !s.is_empty()).collect();
        Ok(Prepared { segments, usage, count, time: Duration::ZERO })
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
    fn timed(
        &mut self,
        request: &Request,
        texts: &Texts<'_>,
        room: usize,
        alone: bool,
    ) -> Result<Prepared, BackendError> {
        self.cancel.check()?;
        let device = self.model.decoder().device().clone();
        // An accelerator may still work on others, and would on this one in the time of the next.
        let wait = || if alone { Ok(()) } else { device.synchronize().map_err(LmError::from) };
        wait()?;
        let start = Instant::now();
        let prepared = self.prepare(request, texts, room)?;
        wait()?;
        Ok(Prepared { time: prepared.time + start.elapsed(), ..prepared })
    }
}

impl Backend for E2llmBackend {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn generate(&mut self, batch: &[Request]) -> Vec<Result<Response, BackendError>> {
        self.generate_queue(batch, batch.len())
    }

    fn generate_queue(&mut self, queue: &[Request], at_once: usize) -> Vec<Result<Response, BackendError>> {
        let (decoder, tokenizer) = (self.model.decoder().clone(), Arc::clone(&self.tokenizer));
        let (eos_ids, cancel) = (self.eos_ids.clone(), self.cancel.clone());
        let cancelled = || cancel.is_cancelled();
        let desk =
            Desk { llama: &decoder, tokenizer: Some(&tokenizer), eos_ids: &eos_ids, cancelled: &cancelled };
        let mut counts: Vec<Option<TokenCount>> = vec![None; queue.len()];
        let answers = self.with_texts(queue, |own, texts| {
            answer_queue(desk, queue, at_once, &mut |i| {
                let room = queue[i].generation.max_new_tokens;
                let Prepared { segments, usage, count, time } =
                    own.timed(&queue[i], texts, room, queue.len() == 1)?;
                counts[i] = count;
                Ok(e2llm_lm::Prepared { segments, usage, time })
            })
        });
        let with_counts = answers.into_iter().zip(queue).zip(counts);
        let counted = with_counts.map(|((answer, request), count)| {
            answer.map(|response| {
                let usage = counted(response.usage, count, &request.prompt.context, &tokenizer);
                Response { usage, ..response }
            })
        });
        counted.collect()
    }

    fn queue(&self, at_once: usize) -> usize {
        queue_of(at_once, self.model.decoder().device())
    }

    fn choose(&mut self, request: &Request, choices: &[String]) -> Result<Choice, BackendError> {
        let start = Instant::now();
        self.cancel.check()?;
        let continuations = e2llm_lm::continuation_ids(&self.tokenizer, choices)?;
        let longest = continuations.iter().map(Vec::len).max().unwrap_or(0);
        let alone = std::slice::from_ref(request);
        let prepared = self.with_texts(alone, |own, texts| own.timed(request, texts, longest, true));
        let Prepared { segments, usage, count, .. } = prepared?;
        let cancelled = || self.cancel.is_cancelled();
        let scores = score_continuations(self.model.decoder(), &segments, &continuations, &cancelled)?;
        let mut usage = counted(usage, count, &request.prompt.context, &self.tokenizer);
        usage.time_to_first_token = start.elapsed().as_secs_f64();
        let tokens = continuations.iter().map(Vec::len).collect();
        Ok(Choice { log_likelihoods: scores, tokens, usage })
    }

    fn token_counter(&self) -> Option<TokenCounter> {
        Some(e2llm_lm::token_counter(&self.tokenizer))
    }
}

/// With the context's length, counted at the latest now.
fn counted(usage: Usage, count: Option<TokenCount>, context: &str, tokenizer: &Tokenizer) -> Usage {
    let tokens = count.map_or(0, |count| count.of(context, tokenizer)) as u64;
    Usage { context_tokens: tokens, context_compressed: tokens, ..usage }
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

fn no_tokenizer(part: &str) -> BackendError {
    BackendError::new(
        ErrorKind::Failed,
        format!("the {part} has no `tokenizer.json`, so it cannot read text"),
    )
}
