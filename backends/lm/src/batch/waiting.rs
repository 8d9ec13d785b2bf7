//! Prompts that have no place yet.

use super::Queued;
use crate::{PREFILL_BLOCK, prompt_len};
use std::collections::VecDeque;

/// The head of a queue.
pub(super) struct Waiting<'n> {
    next: &'n mut dyn FnMut() -> Option<Queued>,
    ready: VecDeque<Queued>,
    is_over: bool,
}

impl<'n> Waiting<'n> {
    pub(super) fn new(next: &'n mut dyn FnMut() -> Option<Queued>) -> Self {
        Self { next, ready: VecDeque::new(), is_over: false }
    }

    /// The first `n` that wait; fewer where there are no more.
    pub(super) fn look_ahead(&mut self, n: usize) -> &VecDeque<Queued> {
        while self.ready.len() < n && !self.is_over {
            match (self.next)() {
                Some(queued) => self.ready.push_back(queued),
                None => self.is_over = true,
            }
        }
        &self.ready
    }

    /// Whether there is or may be another one.
    #[cfg(feature = "cuda")]
    pub(super) fn has_more(&self) -> bool {
        !(self.is_over && self.ready.is_empty())
    }

    /// Whether it is time to read prompts into `free` of `places`: a pass costs the same for one and for several, and holds
    /// up all that are being answered, so it waits for a few free places while there are prompts for them.
    pub(super) fn is_time(&mut self, free: usize, places: usize) -> bool {
        let enough = if places < 4 { 1 } else { (places / 8).max(2) };
        free > 0 && !self.look_ahead(free).is_empty() && (free >= enough || self.is_over)
    }

    /// The next ones to be read in one pass into at most `free` places: several short ones that have up to `most` positions
    /// together, or a single one; up to the first that `fits` refuses.
    pub(super) fn group(
        &mut self,
        (free, most): (usize, usize),
        fits: impl Fn(&Queued) -> bool,
    ) -> Vec<Queued> {
        let (mut group, mut positions) = (Vec::new(), 0);
        self.look_ahead(free);
        while group.len() < free
            && let Some(queued) = self.ready.front()
        {
            let len = prompt_len(&queued.prompt);
            let joins = len <= PREFILL_BLOCK && positions + len <= most;
            if !(group.is_empty() || joins) || !fits(queued) {
                break;
            }
            positions += len;
            group.extend(self.ready.pop_front());
            if len > PREFILL_BLOCK {
                break;
            }
        }
        group
    }

    /// All that wait and are known.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Queued> + use<> {
        self.is_over = true;
        std::mem::take(&mut self.ready).into_iter()
    }
}
