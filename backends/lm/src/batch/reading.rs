//! Reading waiting prompts into free places, short ones together in one pass.

use super::{Batch, Desk, Queued, Row, choose, room, same};
use crate::generate::Writer;
use crate::packed::{self, Packed};
use crate::{LmError, PREFILL_BLOCK, Result, Segment, prefill, prompt_len};
use candle_core::Tensor;
use std::time::{Duration, Instant};

/// Positions of a pass that reads several prompts, on a GPU, which a block of one prompt does not keep busy; their activations
/// are some hundred megabytes where rows are 4096 wide.
const ON_GPU: usize = 2048;

/// A prompt whose answer begins.
struct Begun<'a> {
    number: usize,
    prompt: Vec<Segment>,
    writer: Writer<'a>,
    positions: usize,
    expected: usize,
}

impl<'a> Begun<'a> {
    fn new(desk: &Desk<'a>, queued: Queued) -> Result<Self> {
        let Queued { number, prompt, settings } = queued;
        let writer = Writer::new(desk.tokenizer, desk.eos_ids, &settings)?;
        let positions = prompt_len(&prompt);
        if positions == 0 {
            return Err(LmError::Input("the prompt is empty".to_owned()));
        }
        Ok(Self { number, prompt, writer, positions, expected: positions + settings.max_new_tokens })
    }

    fn row(self, time: Duration, token: Result<u32>) -> Row<'a> {
        let mut row = Row {
            number: self.number,
            writer: self.writer,
            failed: None,
            prompt_tokens: self.positions,
            expected: self.expected,
            time_to_first_token: time,
            decode_time: Duration::ZERO,
        };
        if !row.is_over() {
            row.take(token);
        }
        row
    }
}

impl<'a> Batch<'a, '_, '_> {
    /// Positions that a pass of several prompts has at most.
    pub(super) fn most(&self) -> usize {
        if self.desk.llama.device().is_cpu() { PREFILL_BLOCK } else { ON_GPU }
    }

    /// Reads waiting prompts into the places that are free, if it is time for that or `anyway`.
    pub(super) fn fill(&mut self, anyway: bool) -> Result<()> {
        let places = self.cache.places();
        let now = anyway || self.rows.is_empty();
        if !(now || self.waiting.is_time(places - self.rows.len(), places)) {
            return Ok(());
        }
        while self.rows.len() < places {
            let most = self.most();
            let group = self.waiting.group((places - self.rows.len(), most), |_| true);
            if group.is_empty() {
                return Ok(());
            }
            let needed = group.iter().map(room).max().unwrap_or(0);
            if let Err(error) = self.cache.grow(needed) {
                let error = error.into();
                group.into_iter().for_each(|queued| (self.done)(queued.number, Err(same(&error))));
                continue;
            }
            let free: Vec<usize> = (self.rows.len()..places).collect();
            for row in self.read(group, &free)? {
                self.cache.set(self.rows.len(), row.prompt_tokens, row.expected)?;
                self.rows.push(row);
            }
            self.leave()?;
        }
        Ok(())
    }

    /// Reads prompts into the first of `places`, which have room for them, and chooses their answers' first tokens. What fails
    /// is handed out and takes no place.
    pub(super) fn read(&mut self, group: Vec<Queued>, places: &[usize]) -> Result<Vec<Row<'a>>> {
        let start = Instant::now();
        let mut begun = Vec::with_capacity(group.len());
        for queued in group {
            let number = queued.number;
            match Begun::new(&self.desk, queued) {
                Ok(one) => begun.push(one),
                Err(error) => (self.done)(number, Err(error)),
            }
        }
        let together = if begun.len() > 1 { self.together(&mut begun, places) } else { Ok(Vec::new()) };
        if let Ok(tokens) = together
            && !tokens.is_empty()
        {
            let time = start.elapsed();
            return Ok(begun.into_iter().zip(tokens).map(|(one, token)| one.row(time, token)).collect());
        }
        // One of them, or one by one, so that an error is its own prompt's.
        let (mut rows, mut stopped) = (Vec::with_capacity(begun.len()), false);
        for mut one in begun {
            let start = Instant::now();
            match self.alone(&mut one, places[rows.len()]) {
                Ok(token) => rows.push(one.row(start.elapsed(), token)),
                Err(error) => {
                    stopped |= matches!(error, LmError::Cancelled);
                    (self.done)(one.number, Err(error));
                }
            }
        }
        if stopped {
            for row in rows {
                row.hand_out(Some(&LmError::Cancelled), self.done);
            }
            return Err(LmError::Cancelled);
        }
        Ok(rows)
    }

    /// The first token of each answer, its prompts being read in one pass.
    fn together(&self, begun: &mut [Begun<'a>], places: &[usize]) -> Result<Vec<Result<u32>>> {
        let llama = self.desk.llama;
        let mut parts = Vec::new();
        for segment in begun.iter().flat_map(|one| &one.prompt).filter(|segment| !segment.is_empty()) {
            parts.push(segment.embed(llama, 0, segment.len())?);
        }
        if (self.desk.cancelled)() {
            return Err(LmError::Cancelled);
        }
        let prompts = begun.iter().zip(places);
        let prompts =
            prompts.map(|(one, &place)| Packed { place, len: one.positions, expected: one.expected });
        let hidden =
            packed::read(llama, &Tensor::cat(&parts, 1)?, &prompts.collect::<Vec<_>>(), &self.cache)?;
        choose(llama, &hidden, &mut begun.iter_mut().map(|one| &mut one.writer).collect::<Vec<_>>())
    }

    /// The first token of one answer.
    fn alone(&self, one: &mut Begun<'a>, place: usize) -> Result<Result<u32>> {
        let llama = self.desk.llama;
        let mut memory = self.cache.place(place, one.expected)?;
        let hidden = prefill(llama, &one.prompt, &mut memory, self.desk.cancelled)?;
        if one.writer.has_ended() {
            return Ok(Ok(0));
        }
        if (self.desk.cancelled)() {
            return Err(LmError::Cancelled);
        }
        Ok(one.writer.choose_next(llama, &hidden))
    }
}
