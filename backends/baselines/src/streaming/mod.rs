//! `streaming`: the decoder reads all of the prompt, however long, and remembers its beginning and its end.
//!
//! Source: StreamingLLM (Xiao et al. 2023, arXiv 2309.17453) and its code. The memory keeps the keys and values of the
//! first s positions, the attention sinks (s = 4), and of the latest W - s. Only distances count for rotated keys: those of the
//! latest are what they are in the text, and the sinks are turned so that they stand right ahead of them, as if the text had the
//! W positions alone. No distance is beyond the window, and while everything fits this is full attention.
//! Cost: O(T W) attention, O(W) memory whatever the context's length T; each block or token that is read also turns s keys anew,
//! and every W / 2 tokens the window's keys and values are moved to the beginning of their room.
//!
//! Ours: the prompt is read in blocks of a quarter of the rolling part (512 at most); a block makes room for itself
//! before it is read (as upstream's `evict_for_space`), so that its first position sees a little less than W positions.

#[cfg(test)]
mod tests;

use crate::decoder::{Decoder, DecoderBackend, Draft, LORA, Method, Prepared, WINDOW};
use crate::options::bad_option;
use crate::prompt::Whole;
use e2llm_backend::{BackendError, BackendSpec, OptionSpec, Prompt};
use e2llm_lm::{Memory, RollingCache, Segment};
use std::ops::Range;

const NAME: &str = "streaming";
/// What becomes of a prompt beyond the window.
const CUT: &str = "sinks-and-recent";

/// The registry entry.
pub fn spec() -> BackendSpec {
    BackendSpec {
        name: NAME,
        description: "reads everything, remembers the first tokens and a rolling window of the latest",
        source: "StreamingLLM, arXiv 2309.17453",
        needs_model: true,
        options: &[
            OptionSpec { name: "sinks", default: "4", help: "first positions that are never forgotten" },
            WINDOW,
            LORA,
        ],
        build: |context| {
            let sinks = context.options.parse("sinks")?.unwrap_or(4);
            let backend = DecoderBackend::new(NAME, CUT, Streaming { sinks }, context)?;
            if backend.window() <= sinks {
                let what = format!("{sinks}: the window of {} has no room for more", backend.window());
                return Err(bad_option("sinks", &what));
            }
            Ok(Box::new(backend))
        },
    }
}

struct Streaming {
    sinks: usize,
}

/// Which of `n` positions are forgotten once all are read.
fn evicted(n: usize, sinks: usize, window: usize) -> Range<usize> {
    let gone = n.saturating_sub(window);
    sinks..sinks + gone
}

/// How many positions of `a` are in `b`.
fn shared(a: &Range<usize>, b: &Range<usize>) -> usize {
    a.end.min(b.end).saturating_sub(a.start.max(b.start))
}

impl Method for Streaming {
    fn draft(&self, decoder: &Decoder, prompt: &Prompt, _room: usize) -> Result<Draft<'_>, BackendError> {
        let whole = Whole::new(decoder, prompt)?;
        let mut usage = whole.usage();
        let gone = evicted(whole.ids.len(), self.sinks, decoder.window);
        usage.context_evicted = shared(&gone, &whole.context) as u64;
        usage.truncation = (!gone.is_empty()).then(|| CUT.to_owned());
        Ok(Prepared::new(vec![Segment::Ids(whole.ids)], usage).into())
    }

    fn remembers(&self) -> bool {
        true
    }

    fn memory(&self, decoder: &Decoder, _prompt: usize, expected: usize) -> Box<dyn Memory> {
        Box::new(RollingCache::new(self.sinks, decoder.window - self.sinks, expected))
    }
}
