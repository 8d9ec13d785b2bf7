//! Reading ids run by run, with the likelihood of each.

use crate::prefill::read_blocks;
use crate::score::{chosen, on_host};
use crate::{KvCache, Llama, LmError, Result, Segment};

/// Reads ids one run after another and says how likely the decoder found each behind all before it.
///
/// Costs what reading costs, plus a row of logits for each id that is scored. Ids that are only skipped go through the
/// decoder together with the next run that is scored, and the last id of all only when something follows it.
#[derive(Debug)]
pub struct Reader<'a> {
    llama: &'a Llama,
    cache: KvCache,
    /// Read ids that the cache does not hold yet: the last one at least.
    pending: Vec<u32>,
}

/// Where a [`Reader`] was.
#[derive(Debug, Clone)]
pub struct Bookmark {
    len: usize,
    pending: Vec<u32>,
}

impl<'a> Reader<'a> {
    /// A reader that has read nothing and will read about `expected` ids.
    pub fn new(llama: &'a Llama, expected: usize) -> Self {
        Self { llama, cache: KvCache::new(expected), pending: Vec::new() }
    }

    /// Reads `ids` unscored, with what is read next.
    pub fn skip(&mut self, ids: &[u32]) {
        self.pending.extend(ids);
    }

    /// Reads `ids` and returns the log-likelihood (nats) of each, all of which leave the device at once.
    ///
    /// # Errors
    /// Nothing read before, so that the first has no likelihood; ids beyond the vocabulary; [`LmError::Cancelled`].
    pub fn read(&mut self, ids: &[u32], cancelled: &dyn Fn() -> bool) -> Result<Vec<f64>> {
        let Some(last) = ids.last() else { return Ok(Vec::new()) };
        let Some(before) = self.pending.len().checked_sub(1) else {
            return Err(LmError::Input("the first id of all has no likelihood".to_owned()));
        };
        let run = [&self.pending, &ids[..ids.len() - 1]].concat();
        let (llama, mut start, mut scores) = (self.llama, 0, Vec::new());
        read_blocks(llama, &[Segment::Ids(run)], &mut self.cache, cancelled, |hidden| {
            let end = start + hidden.dim(1)?;
            let from = before.max(start);
            if from < end {
                let rows = hidden.narrow(1, from - start, end - from)?;
                scores.push(chosen(llama, &rows, &ids[from - before..end - before])?);
            }
            start = end;
            Ok(())
        })?;
        self.pending = vec![*last];
        on_host(&scores)
    }

    /// Where the reader is.
    pub fn bookmark(&self) -> Bookmark {
        Bookmark { len: self.cache.offset(), pending: self.pending.clone() }
    }

    /// Forgets what was read since.
    pub fn go_back(&mut self, to: &Bookmark) {
        // What was pending there has been read if anything was, and does not depend on what followed.
        let read = to.len + to.pending.len().saturating_sub(1);
        if self.cache.offset() >= read {
            self.cache.truncate(read);
            self.pending = to.pending.last().copied().into_iter().collect();
        } else {
            self.cache.truncate(to.len);
            self.pending.clone_from(&to.pending);
        }
    }
}
