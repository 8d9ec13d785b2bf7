//! Answering several prompts at once: each is read alone, then all answers get their next token in one pass.
//!
//! Every weight is read once for all rows, which is what decoding spends its time on. An answer that has ended leaves
//! the batch, so the others do not wait for it, and what goes wrong with one row ends that row only.

use crate::batch_cache::BatchCache;
use crate::generate::{Writer, finite, likeliest};
#[cfg(feature = "cuda")]
use crate::steps::{Together, not_finite};
use crate::{
    Generated, Generation, Llama, LmError, Result, Segment, Tokenizer, generate, prefill, prompt_len,
};
use candle_core::{DType, IndexOp};
use std::time::{Duration, Instant};

/// New positions that room is made for before the first token.
const AHEAD: usize = 256;

/// A prompt and how its answer is chosen.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// The prompt.
    pub prompt: &'a [Segment],
    /// How the answer is chosen and where it ends.
    pub settings: &'a Generation,
}

/// An answer being written.
struct Row<'a> {
    /// Which prompt it answers.
    ask: usize,
    writer: Writer<'a>,
    prompt_tokens: usize,
    time_to_first_token: Duration,
    decode_time: Duration,
}

impl Row<'_> {
    fn finish(self) -> Result<Generated> {
        self.writer.finish(self.prompt_tokens, self.time_to_first_token, self.decode_time)
    }
}

/// Answers prompts side by side; the result is that of [`generate`] for each of them, up to rounding.
///
/// An answer's time to its first token is that of reading its own prompt, without the wait for those before it; its
/// decoding time is that of the passes it took part in.
pub fn generate_batch(
    llama: &Llama,
    tokenizer: Option<&Tokenizer>,
    eos_ids: &[u32],
    asks: &[Ask<'_>],
    cancelled: &dyn Fn() -> bool,
) -> Vec<Result<Generated>> {
    if let [ask] = asks {
        return vec![generate(llama, tokenizer, eos_ids, ask.prompt, ask.settings, cancelled)];
    }
    if asks.is_empty() {
        return Vec::new();
    }
    let room = |a: &Ask<'_>| prompt_len(a.prompt) + a.settings.max_new_tokens.min(AHEAD);
    let room = asks.iter().map(room).max().unwrap_or(0).max(1);
    let mut cache = match BatchCache::new(llama.config(), (asks.len(), room), llama.dtype(), llama.device()) {
        Ok(cache) => cache,
        Err(error) => return asks.iter().map(|_| Err(again(&error))).collect(),
    };
    let mut results: Vec<Option<Result<Generated>>> = asks.iter().map(|_| None).collect();
    let mut rows: Vec<Row<'_>> = Vec::with_capacity(asks.len());
    for (ask, result) in results.iter_mut().enumerate() {
        let start = Start { llama, tokenizer, eos_ids, cancelled };
        match start.row(ask, &asks[ask], &mut cache) {
            Ok(row) if row.writer.has_ended() => *result = Some(row.finish()),
            Ok(row) => rows.push(row),
            Err(error) => *result = Some(Err(error)),
        }
    }
    while !rows.is_empty() {
        #[cfg(feature = "cuda")]
        if let Err(error) = go_on(llama, &mut rows, &mut cache, &mut results, cancelled) {
            for row in rows.drain(..).filter(|row| results[row.ask].is_none()).collect::<Vec<_>>() {
                let ask = row.ask;
                results[ask] = Some(if row.writer.has_ended() { row.finish() } else { Err(same(&error)) });
            }
        }
        if rows.is_empty() {
            break;
        }
        let start = Instant::now();
        let tokens = match step(llama, &mut rows, &mut cache, cancelled) {
            Ok(tokens) => tokens,
            Err(error) => {
                for row in rows {
                    results[row.ask] = Some(Err(same(&error)));
                }
                break;
            }
        };
        let mut ended = Vec::new();
        for (i, (row, token)) in rows.iter_mut().zip(tokens).enumerate() {
            if let Err(error) = token.and_then(|token| row.writer.push(token)) {
                results[row.ask] = Some(Err(error));
            }
            if results[row.ask].is_some() || row.writer.has_ended() {
                ended.push(i);
            }
        }
        let time = start.elapsed();
        rows.iter_mut().for_each(|row| row.decode_time += time);
        if let Err(error) = leave(ended, &mut rows, &mut cache, &mut results) {
            for row in rows.drain(..) {
                results[row.ask] = Some(Err(same(&error)));
            }
        }
    }
    let unanswered = || Err(LmError::Input("a prompt was left unanswered".to_owned()));
    results.into_iter().map(|r| r.unwrap_or_else(unanswered)).collect()
}

/// Takes rows that have ended out of the batch.
fn leave(
    ended: Vec<usize>,
    rows: &mut Vec<Row<'_>>,
    cache: &mut BatchCache,
    results: &mut [Option<Result<Generated>>],
) -> Result<()> {
    // From the last one on, so that those that take a place have been looked at.
    for i in ended.into_iter().rev() {
        let row = rows.swap_remove(i);
        let ask = row.ask;
        if results[ask].is_none() {
            results[ask] = Some(row.finish());
        }
        cache.swap_remove(i)?;
    }
    Ok(())
}

/// Writes on as long as the GPU can by itself, which it can for greedy answers.
#[cfg(feature = "cuda")]
fn go_on(
    llama: &Llama,
    rows: &mut Vec<Row<'_>>,
    cache: &mut BatchCache,
    results: &mut [Option<Result<Generated>>],
    cancelled: &dyn Fn() -> bool,
) -> Result<()> {
    while !rows.is_empty() && rows.iter().all(|row| row.writer.is_greedy()) {
        let mut start = Instant::now();
        let last: Vec<u32> = rows.iter().map(|row| row.writer.last()).collect();
        let left = rows.iter().map(|row| row.writer.left()).max().unwrap_or(0);
        let Some(mut together) = Together::new(llama, cache, &last, left)? else { return Ok(()) };
        while together.goes_on()
            && let Some(tokens) = together.next()?
        {
            if cancelled() {
                return Err(LmError::Cancelled);
            }
            let mut ended = Vec::new();
            let time = start.elapsed();
            for (i, (row, token)) in rows.iter_mut().zip(tokens).enumerate() {
                if !together.is_live(i) {
                    continue;
                }
                row.decode_time += time;
                let token = token.ok_or_else(not_finite);
                if let Err(error) = token.and_then(|token| row.writer.push(token)) {
                    results[row.ask] = Some(Err(error));
                }
                if results[row.ask].is_some() || row.writer.has_ended() {
                    ended.push(i);
                }
            }
            start += time;
            together.end(&ended)?;
        }
        let (ended, read) = together.finish();
        cache.count(read);
        leave(ended, rows, cache, results)?;
    }
    Ok(())
}

/// What is the same for all rows.
struct Start<'a, 'c> {
    llama: &'a Llama,
    tokenizer: Option<&'a Tokenizer>,
    eos_ids: &'a [u32],
    cancelled: &'c dyn Fn() -> bool,
}

impl<'a> Start<'a, '_> {
    /// Reads a prompt and chooses its first token; the row is in the cache unless the answer has ended with it.
    fn row(&self, ask: usize, what: &Ask<'a>, cache: &mut BatchCache) -> Result<Row<'a>> {
        let start = Instant::now();
        let mut writer = Writer::new(self.tokenizer, self.eos_ids, what.settings)?;
        let prompt_tokens = prompt_len(what.prompt);
        let mut read = cache.row(prompt_tokens + what.settings.max_new_tokens)?;
        let hidden = prefill(self.llama, what.prompt, &mut read, self.cancelled)?;
        if !writer.has_ended() {
            if (self.cancelled)() {
                return Err(LmError::Cancelled);
            }
            let token = writer.choose_next(self.llama, &hidden)?;
            writer.push(token)?;
        }
        if !writer.has_ended() {
            cache.push(&read);
        }
        let time_to_first_token = start.elapsed();
        Ok(Row { ask, writer, prompt_tokens, time_to_first_token, decode_time: Duration::ZERO })
    }
}

/// The next token of every row, or what is wrong with its logits.
fn step(
    llama: &Llama,
    rows: &mut [Row<'_>],
    cache: &mut BatchCache,
    cancelled: &dyn Fn() -> bool,
) -> Result<Vec<Result<u32>>> {
    if cancelled() {
        return Err(LmError::Cancelled);
    }
    let last: Vec<u32> = rows.iter().map(|row| row.writer.last()).collect();
    let hidden = llama.forward_rows(&llama.embed(&last)?, cache)?;
    let all_greedy = rows.iter().all(|row| row.writer.is_greedy());
    let logits = if all_greedy { None } else { Some(llama.logits(&hidden)?.squeeze(0)?) };
    let greedy = match &logits {
        None => Some(llama.likeliest(&hidden.squeeze(0)?)?),
        Some(logits) if rows.iter().any(|row| row.writer.is_greedy()) => Some(likeliest(logits)?),
        Some(_) => None,
    };
    let mut tokens = Vec::with_capacity(rows.len());
    for (i, row) in rows.iter_mut().enumerate() {
        tokens.push(match (&greedy, &logits) {
            (Some(best), _) if row.writer.is_greedy() => finite(best[i].0, best[i].1),
            (_, Some(logits)) => row.writer.choose(&logits.i(i)?.to_dtype(DType::F32)?),
            _ => return Err(LmError::Input("neither logits nor likeliest tokens".to_owned())),
        });
    }
    Ok(tokens)
}

/// An error that concerns several rows, once more.
fn same(error: &LmError) -> LmError {
    match error {
        LmError::Cancelled => LmError::Cancelled,
        LmError::Candle(error) => again(error),
        other => LmError::Input(other.to_string()),
    }
}

fn again(error: &candle_core::Error) -> LmError {
    LmError::Candle(candle_core::Error::Msg(error.to_string()))
}
