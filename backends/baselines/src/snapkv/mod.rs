//! `snapkv`: the decoder reads the whole prompt, then keeps what its end attends to.
//!
//! Source: SnapKV (Li et al. 2024, arXiv 2404.14469) and its code. Once the prompt is read, in each layer the queries of
//! its last w positions vote: `vote(j) = sum_i softmax(q_i K / sqrt(d))_j`, pooled over k neighbours; the C - w positions
//! of the highest votes and the last w stay, keys and values as they were computed, the rest is dropped. The answer
//! goes on at the prompt's true length. Settings as in the paper's LongBench runs: w = 32, k = 7, the maximum; C = 1024.
//! Cost: reading is that of `full`, O(T^2) attention and O(T) memory, so T is bounded by the window; writing then costs
//! O(C) a token in attention and memory. All but the prompt's last w positions are read, and the answer is written, as a
//! plain memory is.
//!
//! Ours: with grouped queries the votes of a group's query heads are averaged, so that a key head keeps one set of
//! positions (upstream repeats the keys and keeps a set for each query head).

mod cache;
mod select;
#[cfg(test)]
mod tests;

use crate::decoder::{Decoder, DecoderBackend, Draft, LORA, Method, WINDOW};
use crate::options::{at_least, bad_option};
use crate::prompt::Whole;
use cache::{Keeping, SnapKvCache};
use e2llm_backend::{BackendError, BackendSpec, BuildContext, OptionSpec, Prompt, Usage};
use e2llm_lm::Memory;

const NAME: &str = "snapkv";

/// The registry entry.
pub fn spec() -> BackendSpec {
    BackendSpec {
        name: NAME,
        description: "reads the whole prompt, then keeps the positions its end attends to",
        source: "SnapKV, arXiv 2404.14469",
        needs_model: true,
        options: &[
            OptionSpec { name: "budget", default: "1024", help: "positions of the prompt that are kept" },
            OptionSpec { name: "observe", default: "32", help: "last positions, which choose the others" },
            OptionSpec {
                name: "kernel",
                default: "7",
                help: "neighbours whose votes are pooled, an odd number",
            },
            OptionSpec { name: "pooling", default: "max", help: "max or avg" },
            WINDOW,
            LORA,
        ],
        build: |context| Ok(Box::new(DecoderBackend::new(NAME, NAME, SnapKv::new(context)?, context)?)),
    }
}

struct SnapKv(Keeping);

impl SnapKv {
    fn new(context: &BuildContext) -> Result<Self, BackendError> {
        let options = &context.options;
        let observe = at_least(options, "observe", 1)?;
        let budget = at_least(options, "budget", 1)?;
        if budget <= observe {
            let what = format!("{budget}: it must be above observe = {observe}");
            return Err(bad_option("budget", &what));
        }
        let kernel = at_least(options, "kernel", 1)?;
        if kernel % 2 == 0 {
            return Err(bad_option("kernel", &format!("{kernel}: it must be odd")));
        }
        let pooling = options.text("pooling").parse().map_err(|e: String| bad_option("pooling", &e))?;
        Ok(Self(Keeping { budget, observe, kernel, pooling }))
    }
}

impl Method for SnapKv {
    fn draft(&self, decoder: &Decoder, prompt: &Prompt, room: usize) -> Result<Draft<'_>, BackendError> {
        let whole = Whole::new(decoder, prompt)?;
        let gone = whole.ids.len().saturating_sub(self.0.budget);
        // Heads keep different positions: the context's share of what they drop is not known, only its size. What
        // is not context is short and mostly at the end, where all is kept.
        let evicted = gone.min(whole.context.len()) as u64;
        let mut prepared = whole.within_window(decoder, room)?;
        let truncation = (gone > 0).then(|| NAME.to_owned());
        prepared.usage = Usage { context_evicted: evicted, truncation, ..prepared.usage };
        Ok(prepared.into())
    }

    fn remembers(&self) -> bool {
        true
    }

    fn memory(&self, _decoder: &Decoder, prompt: usize, expected: usize) -> Box<dyn Memory> {
        Box::new(SnapKvCache::new(self.0, prompt, expected))
    }
}
