//! `full`: the decoder reads the whole prompt, the upper anchor of every table where it can be had.
//!
//! Source: common practice. Prompt = chat(rendered prompt), nothing cut; a prompt that leaves no room for its answer in
//! the window W is an error of kind `ContextTooLong`, never a shorter prompt.
//! Cost: O(T^2) attention and O(T) memory for a context of T tokens.

use crate::decoder::{Decoder, DecoderBackend, Draft, LORA, Method, WINDOW};
use crate::prompt::Whole;
use e2llm_backend::{BackendError, BackendSpec, Prompt};

const NAME: &str = "full";

/// The registry entry.
pub fn spec() -> BackendSpec {
    BackendSpec {
        name: NAME,
        description: "the decoder reads the whole prompt; an error where that does not fit its window",
        source: "common practice",
        needs_model: true,
        options: &[WINDOW, LORA],
        build: |context| Ok(Box::new(DecoderBackend::new(NAME, "none", Full, context)?)),
    }
}

struct Full;

impl Method for Full {
    fn draft(&self, decoder: &Decoder, prompt: &Prompt, room: usize) -> Result<Draft<'_>, BackendError> {
        Whole::new(decoder, prompt)?.within_window(decoder, room).map(Draft::from)
    }
}
