//! `selfextend`: the whole prompt at two resolutions of position, so that no distance is one the decoder never saw.
//!
//! Source: SelfExtend (Jin et al. 2024, arXiv 2401.01325). A query at i sees a key at j at the distance `i - j` where that
//! is below w, and at `i / g - j / g + w - w / g` (whole numbers) elsewhere; the softmax goes over both. The window L becomes
//! `(L - w) g + w`. A group g of 1, or a prompt of at most w tokens, is plain attention.
//! Cost: O(T^2) attention, as `full`, and O(T w) more for what is near, with the same kernels; O(T) memory, without scores.
//! While no position is far from another one this is a plain memory, also for a GPU's whole layers.
//!
//! Settings: g = 4, w = 1024; the paper searches both for each model.

mod cache;

use crate::decoder::{Decoder, DecoderBackend, Draft, LORA, Method, WINDOW};
use crate::options::{at_least, bad_option};
use crate::prompt::Whole;
use cache::SelfExtendCache;
use e2llm_backend::{BackendError, BackendSpec, BuildContext, OptionSpec, Prompt};
use e2llm_lm::{LlamaConfig, Memory};

const NAME: &str = "selfextend";

/// The registry entry.
pub fn spec() -> BackendSpec {
    BackendSpec {
        name: NAME,
        description: "the whole prompt, far positions in groups, near ones as they are",
        source: "SelfExtend, arXiv 2401.01325",
        needs_model: true,
        options: &[
            OptionSpec { name: "group", default: "4", help: "far positions that count as one" },
            OptionSpec {
                name: "neighbours",
                default: "1024",
                help: "distance below which positions are exact",
            },
            WINDOW,
            LORA,
        ],
        build: |context| Ok(Box::new(DecoderBackend::new(NAME, "none", SelfExtend::new(context)?, context)?)),
    }
}

struct SelfExtend {
    group: usize,
    neighbours: usize,
}

impl SelfExtend {
    fn new(context: &BuildContext) -> Result<Self, BackendError> {
        let options = &context.options;
        Ok(Self { group: at_least(options, "group", 1)?, neighbours: at_least(options, "neighbours", 1)? })
    }
}

impl Method for SelfExtend {
    fn configure(&mut self, config: &mut LlamaConfig) -> Result<Vec<String>, BackendError> {
        let (window, near) = (config.max_position_embeddings, self.neighbours);
        if near >= window {
            let what = format!("{near}: it must be below the decoder's window of {window}");
            return Err(bad_option("neighbours", &what));
        }
        config.max_position_embeddings = (window - near) * self.group + near;
        Ok(Vec::new())
    }

    fn draft(&self, decoder: &Decoder, prompt: &Prompt, room: usize) -> Result<Draft<'_>, BackendError> {
        Whole::new(decoder, prompt)?.within_window(decoder, room).map(Draft::from)
    }

    fn remembers(&self) -> bool {
        true
    }

    fn memory(&self, _decoder: &Decoder, _prompt: usize, expected: usize) -> Box<dyn Memory> {
        Box::new(SelfExtendCache::new(self.group, self.neighbours, expected))
    }
}
