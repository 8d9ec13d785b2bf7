//! Answering a prompt token by token.

use crate::{KvCache, Llama, LmError, Memory, Result, Segment, TextStream, Tokenizer, prefill, prompt_len};
use candle_core::{IndexOp, Tensor};
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
    /// From the call to the first token.
    pub time_to_first_token: Duration,
    /// From the first token to the last.
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
    let mut cache = KvCache::new(prompt_len(prompt));
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
    let mut sampler = LogitsProcessor::from_sampling(settings.seed, settings.sampling()?);
    if tokenizer.is_none() && !settings.stop.is_empty() {
        return Err(LmError::Input("stop strings need a tokenizer".to_owned()));
    }
    let mut text = tokenizer.map(|t| TextStream::new(t, &settings.stop));
    let prompt_tokens = prompt_len(prompt);
    let mut ids = Vec::new();
    let mut finish = Finish::Length;
    let mut first: Option<Instant> = None;
    let mut hidden = prefill(llama, prompt, memory, cancelled)?;
    while ids.len() < settings.max_new_tokens {
        if cancelled() {
            return Err(LmError::Cancelled);
        }
        let next = pick(&mut sampler, &llama.logits(&hidden)?)?;
        first.get_or_insert_with(Instant::now);
        if eos_ids.contains(&next) {
            finish = Finish::Eos;
            break;
        }
        ids.push(next);
        if let Some(text) = &mut text
            && text.push(next)?
        {
            finish = Finish::Stop;
            break;
        }
        if ids.len() < settings.max_new_tokens {
            hidden = llama.forward_hidden(&llama.embed(&[next])?, None, Some(&mut *memory))?;
        }
    }
    let first = first.unwrap_or_else(Instant::now);
    let (text, stopped) = text.map_or(Ok((String::new(), false)), TextStream::finish)?;
    Ok(Generated {
        ids,
        text,
        finish: if stopped { Finish::Stop } else { finish },
        prompt_tokens,
        time_to_first_token: first - start,
        decode_time: first.elapsed(),
    })
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

/// The next token by the logits `[1, 1, V]` of the last position.
fn pick(sampler: &mut LogitsProcessor, logits: &Tensor) -> Result<u32> {
    let logits = logits.i((0, 0))?.to_dtype(candle_core::DType::F32)?;
    let id = sampler.sample(&logits)?;
    // A model that overflowed would go on writing its first token.
    if !logits.i(id as usize)?.to_scalar::<f32>()?.is_finite() {
        return Err(LmError::Input("the decoder's logits are not finite".to_owned()));
    }
    Ok(id)
}
