//! Greedy answers on a GPU: a step of all sequences is one launch, and its tokens are looked at some steps late.
//!
//! What was queued behind the token that ends an answer is thrown away. It has written behind the answer's end in the
//! memory, where nothing is read before it is written again.

use crate::batch_cache::BatchCache;
use crate::generate::Writer;
use crate::{Llama, LmError, Memory, Result};
use candle_core::Tensor;
use e2llm_kernels::GreedySteps;
use std::sync::Once;

/// Steps queued behind the one whose tokens are looked at.
const AHEAD: usize = 4;
/// Steps from which on a graph gains what making it costs.
const WORTH: usize = 8;

/// Sequences that are continued together until the positions end that a graph holds for.
pub(crate) struct Steps<'a> {
    steps: GreedySteps<'a>,
    /// How many there may be.
    most: usize,
}

/// Positions up to which a graph is made for sequences of `longest`, of which the longest answer lacks `left` tokens; nothing
/// where it is not worth it.
fn reach(longest: usize, left: usize) -> Option<usize> {
    let end = (longest + left).min((longest + 1).next_multiple_of(GreedySteps::ROUND));
    (end >= longest + WORTH).then_some(end)
}

impl<'a> Steps<'a> {
    /// Continues the first sequences of `memory`, whose last `tokens` are to be read next, up to `end` positions. `expected` are
    /// the positions each sequence is expected to have. Nothing where the decoder or its device cannot.
    fn new(
        llama: &'a Llama,
        memory: Vec<(Tensor, Tensor)>,
        tokens: &[u32],
        lengths: &[usize],
        expected: &[usize],
        end: usize,
    ) -> Result<Option<Self>> {
        let Some(model) = llama.step_model(end, expected)? else { return Ok(None) };
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let steps = GreedySteps::new(model, memory, tokens, lengths, end)?;
        Ok(Some(Self { steps, most: end - longest }))
    }

    /// The tokens of the next step; one that is not there could not be chosen.
    pub(crate) fn next(&mut self) -> Result<Vec<Option<u32>>> {
        while self.steps.pending() <= AHEAD && self.steps.launched() < self.most {
            self.steps.launch()?;
            if self.steps.launched() == 1
                && let Err(error) = self.steps.record()
            {
                static SAID: Once = Once::new();
                SAID.call_once(|| {
                    tracing::warn!(%error, "steps of decoding are launched kernel by kernel: no graph could be made of them");
                });
            }
        }
        Ok(self.steps.tokens()?)
    }

    /// No more steps than are queued.
    fn stop(&mut self) {
        self.most = self.steps.launched();
    }
}

/// Goes on with an answer whose last token was chosen and has not been read, as far as the GPU can by itself.
///
/// # Errors
/// As [`generate`](crate::generate).
pub(crate) fn alone(
    llama: &Llama,
    memory: &mut dyn Memory,
    writer: &mut Writer<'_>,
    cancelled: &dyn Fn() -> bool,
) -> Result<()> {
    while writer.is_greedy() && !writer.has_ended() {
        let Some(cache) = memory.plain() else { return Ok(()) };
        let (len, expected) = (cache.offset(), cache.expected());
        let Some(end) = reach(len, writer.left()).filter(|_| llama.has_steps()) else { return Ok(()) };
        let (config, like) = (llama.config(), Tensor::zeros(8, llama.dtype(), llama.device())?);
        let room = (1, config.num_key_value_heads, end - len, config.head_dim);
        let layers = 0..config.num_hidden_layers;
        let layers = layers.map(|i| cache.reserve(i, room, &like)).collect::<candle_core::Result<_>>()?;
        let Some(mut steps) = Steps::new(llama, layers, &[writer.last()], &[len], &[expected], end)? else {
            return Ok(());
        };
        for _ in len..end {
            if cancelled() {
                return Err(LmError::Cancelled);
            }
            let token = steps.next()?.into_iter().next().flatten();
            cache.advance(1);
            writer.push(token.ok_or_else(not_finite)?)?;
            if writer.has_ended() {
                break;
            }
        }
    }
    Ok(())
}

pub(crate) fn not_finite() -> LmError {
    LmError::Input("the decoder's logits are not finite".to_owned())
}

/// Answers that are continued side by side.
pub(crate) struct Together<'a> {
    steps: Steps<'a>,
    live: Vec<bool>,
    /// Positions of each row before the first step.
    lengths: Vec<usize>,
    done: usize,
}

impl<'a> Together<'a> {
    /// Continues all rows of `cache` behind their last `tokens`, where the longest answer lacks `left` tokens; nothing where the
    /// GPU cannot do it by itself, or it is not worth it.
    pub(crate) fn new(
        llama: &'a Llama,
        cache: &mut BatchCache,
        tokens: &[u32],
        left: usize,
    ) -> Result<Option<Self>> {
        let lengths = cache.positions();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let Some(end) = reach(longest, left).filter(|_| llama.has_steps()) else { return Ok(None) };
        let memory = cache.with_room(end)?;
        let steps = Steps::new(llama, memory, tokens, &lengths, &cache.expected(), end)?;
        let live = vec![true; tokens.len()];
        Ok(steps.map(|steps| Self { steps, live, lengths, done: 0 }))
    }

    /// The next tokens, by row; nothing once there are none, because the graph ends or more than half of the rows have ended.
    /// Those of ended rows mean nothing.
    pub(crate) fn next(&mut self) -> Result<Option<Vec<Option<u32>>>> {
        if self.done == self.steps.most {
            return Ok(None);
        }
        let tokens = self.steps.next()?;
        self.done += 1;
        Ok(Some(tokens))
    }

    pub(crate) fn is_live(&self, row: usize) -> bool {
        self.live[row]
    }

    /// Takes note of rows that have ended.
    pub(crate) fn end(&mut self, rows: &[usize]) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        rows.iter().for_each(|&row| self.live[row] = false);
        let left = self.live.iter().filter(|live| **live).count();
        if 2 * left <= self.live.len() {
            self.steps.stop();
        }
        if left > 0 && self.done < self.steps.most {
            let launched = self.steps.steps.launched();
            let lengths: Vec<usize> = self.lengths.iter().map(|n| n + launched).collect();
            self.steps.steps.keep(&self.live, &lengths)?;
        }
        Ok(())
    }

    /// Whether any row has not ended.
    pub(crate) fn goes_on(&self) -> bool {
        self.live.contains(&true)
    }

    /// The rows that have ended, and the positions that each row has read.
    pub(crate) fn finish(self) -> (Vec<usize>, usize) {
        let ended = self.live.iter().enumerate().filter(|(_, live)| !**live).map(|(row, _)| row);
        (ended.collect(), self.done)
    }
}
