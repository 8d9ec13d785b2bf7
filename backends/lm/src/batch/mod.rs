//! Answering several prompts at once: all answers get their next token in one pass, and a prompt that waits takes the place of
//! an answer that has ended.
//!
//! Every weight is read once for all rows, which is what decoding spends its time on. No answer waits for another one, and
//! what goes wrong with one row ends that row only. What is done when depends on the prompts alone and on no clock, so that
//! the same queue is answered in the same way again.

mod reading;
#[cfg(feature = "cuda")]
mod together;
mod waiting;

use crate::batch_cache::BatchCache;
use crate::generate::{Writer, finite, likeliest};
use crate::{Generated, Generation, Llama, LmError, Result, Segment, Tokenizer, generate};
use candle_core::{DType, IndexOp, Tensor};
use std::time::{Duration, Instant};
use waiting::Waiting;

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

/// A prompt of a queue.
#[derive(Debug, Clone)]
pub struct Queued {
    /// What its answer is handed out with.
    pub number: usize,
    /// The prompt.
    pub prompt: Vec<Segment>,
    /// How the answer is chosen and where it ends.
    pub settings: Generation,
}

/// What all answers of a queue are written with.
#[derive(Clone, Copy)]
pub struct Desk<'a> {
    /// The decoder.
    pub llama: &'a Llama,
    /// Without it answers have no text, and stop strings cannot be given.
    pub tokenizer: Option<&'a Tokenizer>,
    /// Tokens that end an answer.
    pub eos_ids: &'a [u32],
    /// Asked before every block of a prompt and every pass.
    pub cancelled: &'a dyn Fn() -> bool,
}

/// Answers prompts side by side; the result is that of [`generate`] for each of them, up to rounding.
///
/// An answer's time to its first token is that of the pass in which its prompt was read, without the wait for others; its
/// decoding time is that of the passes it took part in.
pub fn generate_batch(
    llama: &Llama,
    tokenizer: Option<&Tokenizer>,
    eos_ids: &[u32],
    asks: &[Ask<'_>],
    cancelled: &dyn Fn() -> bool,
) -> Vec<Result<Generated>> {
    let desk = Desk { llama, tokenizer, eos_ids, cancelled };
    let mut queue = asks.iter().enumerate().map(|(number, ask)| Queued {
        number,
        prompt: ask.prompt.to_vec(),
        settings: ask.settings.clone(),
    });
    let mut results: Vec<Option<Result<Generated>>> = asks.iter().map(|_| None).collect();
    let ended =
        generate_queue(desk, asks.len(), &mut || queue.next(), &mut |i, answer| results[i] = Some(answer));
    let unanswered = || match &ended {
        Err(error) => same(error),
        Ok(()) => LmError::Input("a prompt was left unanswered".to_owned()),
    };
    results.into_iter().map(|r| r.unwrap_or_else(|| Err(unanswered()))).collect()
}

/// Answers the prompts that `next` gives until it gives none, `at_once` of them at a time, and hands each answer with its
/// prompt's number to `done`, in any order. Times are those of [`generate_batch`].
///
/// # Errors
/// What ends all of the queue: an interrupt, a pass that failed. Prompts that `next` gave have had that error as their
/// answer then; it is not asked for others.
pub fn generate_queue(
    desk: Desk<'_>,
    at_once: usize,
    next: &mut dyn FnMut() -> Option<Queued>,
    done: &mut dyn FnMut(usize, Result<Generated>),
) -> Result<()> {
    let Desk { llama, tokenizer, eos_ids, cancelled } = desk;
    if at_once <= 1 {
        while let Some(Queued { number, prompt, settings }) = next() {
            let answer = generate(llama, tokenizer, eos_ids, &prompt, &settings, cancelled);
            let stopped = matches!(answer, Err(LmError::Cancelled));
            done(number, answer);
            if stopped {
                return Err(LmError::Cancelled);
            }
        }
        return Ok(());
    }
    let mut waiting = Waiting::new(next);
    let first = waiting.look_ahead(at_once);
    let (places, room) = (first.len(), first.iter().map(room).max().unwrap_or(0).max(1));
    if places == 0 {
        return Ok(());
    }
    let cache = BatchCache::new(llama.config(), (places, room), llama.dtype(), llama.device());
    let ended = match cache {
        Ok(cache) => {
            let mut batch = Batch { desk, waiting: &mut waiting, done: &mut *done, rows: Vec::new(), cache };
            let ended = batch.run();
            if let Err(error) = &ended {
                batch.fail(error);
            }
            ended
        }
        Err(error) => Err(error.into()),
    };
    if let Err(error) = &ended {
        waiting.take_all().for_each(|queued| done(queued.number, Err(same(error))));
    }
    ended
}

/// Positions to make room for.
fn room(queued: &Queued) -> usize {
    crate::prompt_len(&queued.prompt) + queued.settings.max_new_tokens.min(AHEAD)
}

/// An answer being written.
struct Row<'a> {
    /// Number of the prompt it answers.
    number: usize,
    writer: Writer<'a>,
    /// What ended it otherwise than the writer.
    failed: Option<LmError>,
    prompt_tokens: usize,
    /// Positions its sequence is expected to have.
    expected: usize,
    time_to_first_token: Duration,
    decode_time: Duration,
}

impl Row<'_> {
    fn is_over(&self) -> bool {
        self.failed.is_some() || self.writer.has_ended()
    }

    /// Takes the next token, or why there is none.
    fn take(&mut self, token: Result<u32>) {
        self.failed = token.and_then(|token| self.writer.push(token)).err();
    }

    /// Hands its answer out; `error` is that of one that is not over.
    fn hand_out(self, error: Option<&LmError>, done: &mut dyn FnMut(usize, Result<Generated>)) {
        let error = if self.is_over() { self.failed } else { error.map(same) };
        let answer = match error {
            Some(error) => Err(error),
            None => self.writer.finish(self.prompt_tokens, self.time_to_first_token, self.decode_time),
        };
        done(self.number, answer);
    }
}

/// Answers being written side by side; row by row what `cache` holds.
struct Batch<'a, 'q, 'n> {
    desk: Desk<'a>,
    waiting: &'q mut Waiting<'n>,
    done: &'q mut dyn FnMut(usize, Result<Generated>),
    rows: Vec<Row<'a>>,
    cache: BatchCache,
}

impl Batch<'_, '_, '_> {
    fn run(&mut self) -> Result<()> {
        loop {
            self.fill(false)?;
            if self.rows.is_empty() {
                return Ok(());
            }
            #[cfg(feature = "cuda")]
            {
                self.go_on()?;
                if self.rows.is_empty() {
                    continue;
                }
            }
            let start = Instant::now();
            let tokens = self.step()?;
            let time = start.elapsed();
            for (row, token) in self.rows.iter_mut().zip(tokens) {
                row.decode_time += time;
                row.take(token);
            }
            self.leave()?;
        }
    }

    /// Takes rows that are over out of the batch.
    fn leave(&mut self) -> Result<()> {
        // From the last one on, so that those that take a place have been looked at.
        for i in (0..self.rows.len()).rev().filter(|&i| self.rows[i].is_over()).collect::<Vec<_>>() {
            let row = self.rows.swap_remove(i);
            row.hand_out(None, self.done);
            self.cache.swap_remove(i)?;
        }
        Ok(())
    }

    /// Ends all rows: those that are not over by an error that concerns all of them.
    fn fail(&mut self, error: &LmError) {
        for row in self.rows.drain(..) {
            row.hand_out(Some(error), self.done);
        }
    }

    /// The next token of every row, or what is wrong with its logits.
    fn step(&mut self) -> Result<Vec<Result<u32>>> {
        if (self.desk.cancelled)() {
            return Err(LmError::Cancelled);
        }
        let llama = self.desk.llama;
        let last: Vec<u32> = self.rows.iter().map(|row| row.writer.last()).collect();
        let hidden = llama.forward_rows(&llama.embed(&last)?, &mut self.cache)?;
        choose(llama, &hidden, &mut self.rows.iter_mut().map(|row| &mut row.writer).collect::<Vec<_>>())
    }
}

/// The token that each writer chooses behind the normalised hidden states `[1, B, D]`.
fn choose(llama: &Llama, hidden: &Tensor, writers: &mut [&mut Writer<'_>]) -> Result<Vec<Result<u32>>> {
    let all_greedy = writers.iter().all(|writer| writer.is_greedy());
    let logits = if all_greedy { None } else { Some(llama.logits(hidden)?.squeeze(0)?) };
    let greedy = match &logits {
        None => Some(llama.likeliest(&hidden.squeeze(0)?)?),
        Some(logits) if writers.iter().any(|writer| writer.is_greedy()) => Some(likeliest(logits)?),
        Some(_) => None,
    };
    let mut tokens = Vec::with_capacity(writers.len());
    for (i, writer) in writers.iter_mut().enumerate() {
        tokens.push(match (&greedy, &logits) {
            (Some(best), _) if writer.is_greedy() => finite(best[i].0, best[i].1),
            (_, Some(logits)) => writer.choose(&logits.i(i)?.to_dtype(DType::F32)?),
            _ => return Err(LmError::Input("neither logits nor likeliest tokens".to_owned())),
        });
    }
    Ok(tokens)
}

/// An error that concerns several answers, once more.
pub(crate) fn same(error: &LmError) -> LmError {
    match error {
        LmError::Cancelled => LmError::Cancelled,
        LmError::Candle(error) => LmError::Candle(candle_core::Error::Msg(error.to_string())),
        other => LmError::Input(other.to_string()),
    }
}
