//! Answers that a GPU writes on by itself, which it can for greedy ones.

use super::{Batch, Queued};
use crate::steps::{Together, not_finite};
use crate::{LmError, Result, prompt_len};
use std::time::Instant;

impl Batch<'_, '_, '_> {
    /// Writes on as long as the GPU can by itself; prompts take the places of answers that have ended, without a new graph
    /// where they fit this one.
    pub(super) fn go_on(&mut self) -> Result<()> {
        loop {
            if self.waiting.has_more() {
                // A new graph is made anyway.
                self.fill(true)?;
            }
            if self.rows.is_empty() || !self.rows.iter().all(|row| row.writer.is_greedy()) {
                return Ok(());
            }
            let last: Vec<u32> = self.rows.iter().map(|row| row.writer.last()).collect();
            let left = self.rows.iter().map(|row| row.writer.left()).max().unwrap_or(0);
            let left = if self.waiting.has_more() { None } else { Some(left) };
            let llama = self.desk.llama;
            let Some(mut together) = Together::new(llama, &mut self.cache, &last, left)? else {
                return Ok(());
            };
            let written = self.write(&mut together);
            for row in 0..self.rows.len() {
                self.cache.count(row, together.read(row));
            }
            written?;
            drop(together);
            self.leave()?;
        }
    }

    /// Takes tokens until the graph ends or no row of it goes on.
    fn write(&mut self, together: &mut Together<'_>) -> Result<()> {
        let mut start = Instant::now();
        while together.goes_on()
            && let Some(tokens) = together.next()?
        {
            if (self.desk.cancelled)() {
                return Err(LmError::Cancelled);
            }
            let (time, mut ended) = (start.elapsed(), Vec::new());
            for (i, (row, token)) in self.rows.iter_mut().zip(tokens).enumerate() {
                if !together.is_live(i) {
                    continue;
                }
                row.decode_time += time;
                row.take(token.ok_or_else(not_finite));
                if row.is_over() {
                    ended.push(i);
                }
            }
            start += time;
            let more = self.waiting.has_more();
            together.end(&ended, more);
            if more && self.refill(together)? {
                start = Instant::now();
            }
        }
        Ok(())
    }

    /// Reads prompts that wait into the places of answers that have ended, if it is time; whether it did.
    fn refill(&mut self, together: &mut Together<'_>) -> Result<bool> {
        let mut free: Vec<usize> = (0..self.rows.len()).filter(|&i| self.rows[i].is_over()).collect();
        if together.is_stopped() || !self.waiting.is_time(free.len(), self.cache.places()) {
            return Ok(false);
        }
        // Or the time of a prompt would have that of the steps which are queued.
        self.desk.llama.device().synchronize()?;
        let mut has_read = false;
        while !free.is_empty() {
            let fits = |queued: &Queued| {
                let len = prompt_len(&queued.prompt);
                together.takes_in(len, len + queued.settings.max_new_tokens)
            };
            let most = self.most();
            let group = self.waiting.group((free.len(), most), fits);
            if group.is_empty() {
                if self.waiting.has_more() {
                    // Another graph is needed; this one may end.
                    together.stop();
                }
                break;
            }
            has_read = true;
            let rows = self.read(group, &free)?;
            for (row, place) in rows.into_iter().zip(free.clone()) {
                if row.is_over() {
                    row.hand_out(None, self.done);
                    continue;
                }
                free.retain(|&i| i != place);
                self.cache.set(place, row.prompt_tokens, row.expected)?;
                together.put(place, row.writer.last(), row.prompt_tokens)?;
                let greedy = row.writer.is_greedy();
                let old = std::mem::replace(&mut self.rows[place], row);
                old.hand_out(None, self.done);
                if !greedy {
                    together.stop();
                }
            }
            if together.is_stopped() {
                break;
            }
        }
        Ok(has_read)
    }
}
