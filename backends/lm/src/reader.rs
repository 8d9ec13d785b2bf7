//! Reading ids run by run, with the likelihood of each.

use crate::prefill::read_blocks;
use crate::score::{LOGIT_ROWS, at, log_softmax};
use crate::{KvCache, Llama, LmError, Result, Segment};
use candle_core::Tensor;

/// Reads ids one run after another and says how likely the decoder found each behind all before it.
///
/// Costs what reading costs, plus a row of logits for each id that is scored.
#[derive(Debug)]
pub struct Reader<'a> {
    llama: &'a Llama,
    cache: KvCache,
    /// Hidden state `[1, 1, D]` of the last position.
    last: Option<Tensor>,
}

/// Where a [`Reader`] was.
#[derive(Debug, Clone)]
pub struct Bookmark {
    len: usize,
    last: Option<Tensor>,
}

impl<'a> Reader<'a> {
    /// A reader that has read nothing and will read about `expected` ids.
    pub fn new(llama: &'a Llama, expected: usize) -> Self {
        Self { llama, cache: KvCache::new(expected), last: None }
    }

    /// Reads `ids` unscored.
    ///
    /// # Errors
    /// Ids beyond the vocabulary; [`LmError::Cancelled`].
    pub fn skip(&mut self, ids: &[u32], cancelled: &dyn Fn() -> bool) -> Result<()> {
        self.run(ids, cancelled, |_, _| Ok(()))
    }

    /// Reads `ids` and returns the log-likelihood (nats) of each.
    ///
    /// # Errors
    /// Nothing read before, so that the first has no likelihood; ids beyond the vocabulary; [`LmError::Cancelled`].
    pub fn read(&mut self, ids: &[u32], cancelled: &dyn Fn() -> bool) -> Result<Vec<f64>> {
        let (Some(last), Some(first)) = (&self.last, ids.first()) else {
            if ids.is_empty() {
                return Ok(Vec::new());
            }
            return Err(LmError::Input("the first id of all has no likelihood".to_owned()));
        };
        let llama = self.llama;
        let mut scores = vec![at(&log_softmax(&llama.logits(last)?)?, 0, *first)?];
        self.run(ids, cancelled, |hidden, start| {
            let t = hidden.dim(1)?.min(ids.len() - 1 - start);
            for from in (0..t).step_by(LOGIT_ROWS) {
                let rows = LOGIT_ROWS.min(t - from);
                let logits = log_softmax(&llama.logits(&hidden.narrow(1, from, rows)?)?)?;
                for row in 0..rows {
                    scores.push(at(&logits, row, ids[start + from + row + 1])?);
                }
            }
            Ok(())
        })?;
        Ok(scores)
    }

    /// Where the reader is.
    pub fn bookmark(&self) -> Bookmark {
        Bookmark { len: self.cache.offset(), last: self.last.clone() }
    }

    /// Forgets what was read since.
    pub fn go_back(&mut self, to: &Bookmark) {
        self.cache.truncate(to.len);
        self.last.clone_from(&to.last);
    }

    /// `each` gets the hidden states of a block and the index of its first id.
    fn run(
        &mut self,
        ids: &[u32],
        cancelled: &dyn Fn() -> bool,
        mut each: impl FnMut(&Tensor, usize) -> candle_core::Result<()>,
    ) -> Result<()> {
        let (mut start, last) = (0, &mut self.last);
        read_blocks(self.llama, &[Segment::Ids(ids.to_vec())], &mut self.cache, cancelled, |hidden| {
            each(hidden, start)?;
            start += hidden.dim(1)?;
            *last = Some(hidden.narrow(1, hidden.dim(1)? - 1, 1)?.contiguous()?);
            Ok(())
        })
    }
}
