//! Answering a prompt token by token.

use crate::{KvCache, Llama, LmError, Memory, Result, Segment, TextStream, Tokenizer, prefill, prompt_len};
use candle_core::{D, DType, IndexOp, Tensor};
use candle_transformers::generation::{LogitsProcessor, Sampling};
use std::time::{Duration, Instant};

/// How an answer is chosen and where it ends.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// Tokens written at most.
    pub max_new_tokens: usize,
    /// 0: always the likeliest token.
    pub temperature: f64,
    /// Sampling keeps the likeliest tokens of this much probability; 1 keeps all.
    pub top_p: f64,
    /// Decides the sampling; the same seed gives the same answer.
    pub seed: u64,
    /// The answer's text ends before the first of these.
    pub stop: Vec<String>,
}

impl Default for Generation {
    fn default() -> Self {
        Self { max_new_tokens: 128, temperature: 0.0, top_p: 1.0, seed: 0, stop: Vec::new() }
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it.
    Eos,
    /// A stop string came.
    Stop,
    /// There was no room for more.
    Length,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Generated {
    /// Tokens written, without the one that ended the answer; with those of a stop string.
    pub ids: Vec<u32>,
    /// Their text without special tokens, cut before a stop string; empty without a tokenizer.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// Positions of the prompt.
    pub prompt_tokens: usize,
    /// From the call to the first token; in a batch, of its own prompt only.
    pub time_to_first_token: Duration,
    /// From the first token to the last; in a batch, of the passes it took part in.
    pub decode_time: Duration,
}

/// Answers a prompt of ids and embeddings.
///
/// Without a tokenizer the answer has no text, and stop strings cannot be given. `cancelled` is asked before every
/// block of the prompt and every token.
///
/// # Errors
/// An empty prompt, settings out of range, [`LmError::Cancelled`], any of the model.
pub fn generate(
    llama: &Llama,
    tokenizer: Option<&Tokenizer>,
    eos_ids: &[u32],
    prompt: &[Segment],
    settings: &Generation,
    cancelled: &dyn Fn() -> bool,
) -> Result<Generated> {
    let mut cache = KvCache::new(prompt_len(prompt) + settings.max_new_tokens);
    generate_with(&mut cache, llama, tokenizer, eos_ids, prompt, settings, cancelled)
}

/// As [`generate`], with a memory of the caller's, which is empty or holds what stands before the prompt.
///
/// # Errors
/// As [`generate`].
pub fn generate_with(
    memory: &mut dyn Memory,
    llama: &Llama,
    tokenizer: Option<&Tokenizer>,
    eos_ids: &[u32],
    prompt: &[Segment],
    settings: &Generation,
    cancelled: &dyn Fn() -> bool,
) -> Result<Generated> {
    let start = Instant::now();
    let mut writer = Writer::new(tokenizer, eos_ids, settings)?;
    let prompt_tokens = prompt_len(prompt);
    let mut first: Option<Instant> = None;
    let mut hidden = prefill(llama, prompt, memory, cancelled)?;
    while !writer.has_ended() {
        if cancelled() {
            return Err(LmError::Cancelled);
        }
        let next = writer.choose_next(llama, &hidden)?;
        first.get_or_insert_with(Instant::now);
        writer.push(next)?;
        #[cfg(feature = "cuda")]
        crate::steps::alone(llama, memory, &mut writer, cancelled)?;
        if !writer.has_ended() {
            hidden = llama.forward_hidden(&llama.embed(&[writer.last()])?, None, Some(&mut *memory))?;
        }
    }
    let first = first.unwrap_or_else(Instant::now);
    writer.finish(prompt_tokens, first - start, first.elapsed())
}

/// An answer while it is written.
pub(crate) struct Writer<'a> {
    sampler: LogitsProcessor,
    greedy: bool,
    text: Option<TextStream<'a>>,
    eos_ids: &'a [u32],
    max_new_tokens: usize,
    ids: Vec<u32>,
    end: Option<Finish>,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(
        tokenizer: Option<&'a Tokenizer>,
        eos_ids: &'a [u32],
        settings: &Generation,
    ) -> Result<Self> {
        if tokenizer.is_none() && !settings.stop.is_empty() {
            return Err(LmError::Input("stop strings need a tokenizer".to_owned()));
        }
        let sampling = settings.sampling()?;
        Ok(Self {
            greedy: matches!(sampling, Sampling::ArgMax),
            sampler: LogitsProcessor::from_sampling(settings.seed, sampling),
            text: tokenizer.map(|t| TextStream::new(t, &settings.stop)),
            eos_ids,
            max_new_tokens: settings.max_new_tokens,
            ids: Vec::new(),
            end: (settings.max_new_tokens == 0).then_some(Finish::Length),
        })
    }

    /// Whether always the likeliest token is chosen.
    pub(crate) fn is_greedy(&self) -> bool {
        self.greedy
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.end.is_some()
    }

    /// Tokens that may still come.
    #[cfg(feature = "cuda")]
    pub(crate) fn left(&self) -> usize {
        self.max_new_tokens - self.ids.len()
    }

    /// The last token; the next one is chosen behind it.
    pub(crate) fn last(&self) -> u32 {
        self.ids.last().copied().unwrap_or_default()
    }

    /// Chooses the next token behind the normalised hidden state `[1, 1, D]`.
    pub(crate) fn choose_next(&mut self, llama: &Llama, hidden: &Tensor) -> Result<u32> {
        if self.greedy && hidden.device().is_cuda() {
            // One small answer crosses over instead of all logits.
            let best = llama.likeliest(hidden)?;
            return best.first().map_or_else(|| finite(0, f32::NAN), |&(id, logit)| finite(id, logit));
        }
        self.choose(&llama.logits(hidden)?.i((0, 0))?.to_dtype(DType::F32)?)
    }

    /// Chooses the next token by float32 logits `[V]`.
    pub(crate) fn choose(&mut self, logits: &Tensor) -> Result<u32> {
        let id = self.sampler.sample(logits)?;
        finite(id, logits.i(id as usize)?.to_scalar::<f32>()?)
    }

    /// Takes the next token, which may end the answer.
    pub(crate) fn push(&mut self, id: u32) -> Result<()> {
        if self.eos_ids.contains(&id) {
            self.end = Some(Finish::Eos);
            return Ok(());
        }
        self.ids.push(id);
        if let Some(text) = &mut self.text
            && text.push(id)?
        {
            self.end = Some(Finish::Stop);
        } else if self.ids.len() >= self.max_new_tokens {
            self.end = Some(Finish::Length);
        }
        Ok(())
    }

    pub(crate) fn finish(
        self,
        prompt_tokens: usize,
        time_to_first_token: Duration,
        decode_time: Duration,
    ) -> Result<Generated> {
        let (text, stopped) = self.text.map_or(Ok((String::new(), false)), TextStream::finish)?;
        let finish = if stopped { Finish::Stop } else { self.end.unwrap_or(Finish::Length) };
        Ok(Generated { ids: self.ids, text, finish, prompt_tokens, time_to_first_token, decode_time })
    }
}

/// The likeliest token of each row of `[.., V]`, with its logit.
pub(crate) fn likeliest(logits: &Tensor) -> candle_core::Result<Vec<(u32, f32)>> {
    let best = logits.argmax_keepdim(D::Minus1)?;
    let values = logits.gather(&best, D::Minus1)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(best.flatten_all()?.to_vec1::<u32>()?.into_iter().zip(values).collect())
}

/// A token, if its logit is a number: a model that overflowed would go on writing its first token.
pub(crate) fn finite(id: u32, logit: f32) -> Result<u32> {
    if logit.is_finite() {
        return Ok(id);
    }
    Err(LmError::Input("the decoder's logits are not finite".to_owned()))
}

impl Generation {
    fn sampling(&self) -> Result<Sampling> {
        let (temperature, p) = (self.temperature, self.top_p);
        if !(temperature.is_finite() && temperature >= 0.0) {
            return Err(LmError::Input(format!("a temperature of {temperature}")));
        }
        if !(p > 0.0 && p <= 1.0) {
            return Err(LmError::Input(format!("top-p of {p}: it must lie above 0 and not above 1")));
        }
        Ok(match (temperature, p) {
            (0.0, _) => Sampling::ArgMax,
            (_, 1.0) => Sampling::All { temperature },
            _ => Sampling::TopP { p, temperature },
        })
    }
}
