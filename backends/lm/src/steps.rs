//! Greedy answers on a GPU: a step of all sequences is one launch, and its tokens are looked at some steps late.
//!
//! What was queued behind the token that ends an answer is thrown away. It has written behind the answer's end in the
//! memory, where nothing is read before it is written again.

use crate::batch_cache::BatchCache;
use crate::generate::Writer;
use crate::{CrossKeys, Llama, LmError, Memory, Result, rolling};
use candle_core::Tensor;
use e2llm_kernels::{GreedySteps, Rolling};
use std::sync::{Arc, Once};

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
    /// Continues the first sequences of `memory`, whose last `tokens` are to be read next, up to `end` positions, by the angles of
    /// all of them; `states` are what cross-attention reads. Nothing where the decoder or its device cannot.
    fn new(
        llama: &'a Llama,
        memory: Vec<(Tensor, Tensor)>,
        (tokens, lengths): (&[u32], &[usize]),
        (angles, states): ((Tensor, Tensor), Option<&'a [CrossKeys]>),
        end: usize,
        rolling: Option<(Arc<Rolling>, usize)>,
    ) -> Result<Option<Self>> {
        if let Some((rolling, window)) = &rolling
            && !rolling.takes_steps(llama.config().num_attention_heads, *window)?
        {
            return Ok(None);
        }
        let Some(model) = llama.step_model(angles, states)? else { return Ok(None) };
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let steps = GreedySteps::new(model, memory, tokens, lengths, end, rolling)?;
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

/// Where a graph can go on from here, for an answer that lacks `left` tokens; nothing where it cannot or it is not worth it.
fn ahead(llama: &Llama, memory: &mut dyn Memory, left: usize) -> Result<Option<rolling::Steps>> {
    if let Some(cache) = memory.rolling() {
        let ahead = cache.begin_steps(left.min(GreedySteps::ROUND), llama.rope())?;
        return Ok(ahead.filter(|ahead| ahead.end >= ahead.next + WORTH));
    }
    let (position, left) = (memory.offset(), left.min(memory.block()));
    let Some(cache) = memory.behind() else { return Ok(None) };
    let (len, expected) = (cache.offset(), cache.expected());
    let Some(end) = reach(len, left) else { return Ok(None) };
    // Some positions of the text may not be held.
    let (dropped, positions) = (position - len, position - len + end);
    let Some((cos, sin)) = llama.rope().common_tables(positions, &[expected])? else { return Ok(None) };
    let angles = (cos.narrow(0, dropped, end)?, sin.narrow(0, dropped, end)?);
    let (config, like) = (llama.config(), Tensor::zeros(8, llama.dtype(), llama.device())?);
    let room = (1, config.num_key_value_heads, end - len, config.head_dim);
    let layers = 0..config.num_hidden_layers;
    let layers = layers.map(|i| cache.reserve(i, room, &like)).collect::<candle_core::Result<_>>()?;
    Ok(Some(rolling::Steps { memory: layers, next: len, end, angles, rolling: None }))
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
    let states = memory.cross();
    while writer.is_greedy() && !writer.has_ended() && llama.has_steps() {
        let Some(ahead) = ahead(llama, memory, writer.left())? else { return Ok(()) };
        let rolling::Steps { memory: layers, next, end, angles, rolling } = ahead;
        let (last, states) = ([writer.last()], states.as_ref().map(|s| &s[..]));
        let steps = Steps::new(llama, layers, (&last, &[next]), (angles, states), end, rolling)?;
        let Some(mut steps) = steps else { return Ok(()) };
        for _ in next..end {
            if cancelled() {
                return Err(LmError::Cancelled);
            }
            let token = steps.next()?.into_iter().next().flatten();
            memory.advance(1);
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
    llama: &'a Llama,
    steps: Steps<'a>,
    rows: Vec<Place>,
    /// Positions that no row may go beyond.
    end: usize,
    /// Positions that the first row is expected to have: the angles are those of such sequences.
    expected: usize,
    /// Steps whose tokens were looked at.
    done: usize,
    stopped: bool,
    /// Whether the GPU does not know of all rows that have ended or come.
    changed: bool,
}

/// A row of a graph.
struct Place {
    live: bool,
    /// Its positions when `from` steps were queued.
    len: usize,
    from: usize,
}

impl<'a> Together<'a> {
    /// Continues all rows of `cache` behind their last `tokens`, where the longest answer lacks `left` tokens, or as far as a
    /// graph goes; nothing where the GPU cannot do it by itself, or it is not worth it.
    pub(crate) fn new(
        llama: &'a Llama,
        cache: &mut BatchCache,
        tokens: &[u32],
        left: Option<usize>,
    ) -> Result<Option<Self>> {
        let (lengths, all_expected) = (cache.positions(), cache.expected());
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let left = left.unwrap_or(GreedySteps::ROUND);
        let Some(end) = reach(longest, left).filter(|_| llama.has_steps()) else { return Ok(None) };
        let memory = cache.with_room(end)?;
        let expected = all_expected.first().copied().unwrap_or(0);
        let Some(angles) = llama.rope().common_tables(end, &all_expected)? else { return Ok(None) };
        let steps = Steps::new(llama, memory, (tokens, &lengths), (angles, None), end, None)?;
        let rows = lengths.into_iter().map(|len| Place { live: true, len, from: 0 }).collect();
        let (done, stopped, changed) = (0, false, false);
        Ok(steps.map(|steps| Self { llama, steps, rows, end, expected, done, stopped, changed }))
    }

    /// The next tokens, by row; nothing once there are none, because the graph ends or was stopped. Those of rows that are not
    /// [live](Together::is_live) mean nothing.
    pub(crate) fn next(&mut self) -> Result<Option<Vec<Option<u32>>>> {
        if self.changed && !self.stopped {
            let launched = self.steps.steps.launched();
            let live: Vec<bool> = self.rows.iter().map(|row| row.live).collect();
            let lengths: Vec<usize> = self.rows.iter().map(|row| row.len + launched - row.from).collect();
            self.steps.steps.keep(&live, &lengths)?;
            let longest = self.rows.iter().zip(&lengths).filter(|(row, _)| row.live).map(|(_, n)| *n).max();
            self.steps.most = launched + longest.map_or(0, |n| self.end.saturating_sub(n));
        }
        self.changed = false;
        if self.done == self.steps.most {
            return Ok(None);
        }
        let tokens = self.steps.next()?;
        self.done += 1;
        Ok(Some(tokens))
    }

    /// Whether the last tokens have one of this row.
    pub(crate) fn is_live(&self, row: usize) -> bool {
        self.rows[row].live && self.rows[row].from < self.done
    }

    /// Takes note of rows that have ended. Without `more` to come in their place, the graph ends when half of them have.
    pub(crate) fn end(&mut self, rows: &[usize], more: bool) {
        for &row in rows {
            self.rows[row].live = false;
            self.changed = true;
        }
        let left = self.rows.iter().filter(|row| row.live).count();
        if !more && !rows.is_empty() && 2 * left <= self.rows.len() {
            self.stop();
        }
    }

    /// Queues no more steps; the tokens of those that are queued still come.
    pub(crate) fn stop(&mut self) {
        self.stopped = true;
        self.steps.stop();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Whether a sequence of `len` positions, which is expected to have `expected`, can be one of its rows.
    pub(crate) fn takes_in(&self, len: usize, expected: usize) -> bool {
        len + WORTH <= self.end && self.llama.shares_angles(self.end, self.expected, expected)
    }

    /// Puts a sequence of `len` positions, whose last token was chosen and has not been read, in the place of a row that has
    /// ended. Its memory must have been written behind all steps that were queued so far.
    pub(crate) fn put(&mut self, row: usize, token: u32, len: usize) -> Result<()> {
        self.steps.steps.put(row, token)?;
        self.rows[row] = Place { live: true, len, from: self.steps.steps.launched() };
        self.changed = true;
        Ok(())
    }

    /// Whether any row has not ended.
    pub(crate) fn goes_on(&self) -> bool {
        self.rows.iter().any(|row| row.live)
    }

    /// The positions that a row has read.
    pub(crate) fn read(&self, row: usize) -> usize {
        let Place { len, from, .. } = self.rows[row];
        len + self.done.saturating_sub(from)
    }
}
