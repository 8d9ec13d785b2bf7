//! `no-context`: the question alone, the lower anchor of every table.
//!
//! Source: LongBench v2's `--no_context` and common practice. Prompt = chat(instruction). Cost: that of the
//! instruction's tokens, whatever the context's length T.

use crate::decoder::{Decoder, DecoderBackend, Draft, LORA, Method, Prepared, WINDOW};
use e2llm_backend::{BackendError, BackendSpec, ErrorKind, Prompt, Usage};
use e2llm_lm::Segment;

const NAME: &str = "no-context";

/// The registry entry.
pub fn spec() -> BackendSpec {
    BackendSpec {
        name: NAME,
        description: "the decoder gets the instruction only: what can be answered without reading",
        source: "LongBench v2 (--no_context)",
        needs_model: true,
        options: &[WINDOW, LORA],
        build: |context| Ok(Box::new(DecoderBackend::new(NAME, "all of it", NoContext, context)?)),
    }
}

struct NoContext;

impl Method for NoContext {
    fn draft(&self, decoder: &Decoder, prompt: &Prompt, room: usize) -> Result<Draft<'_>, BackendError> {
        if prompt.instruction.is_empty() {
            return Err(BackendError::new(ErrorKind::BadRequest, "the instruction is empty"));
        }
        let ids = decoder.wrap(&prompt.instruction, prompt)?;
        if ids.len() + room > decoder.window {
            return Err(decoder.too_long("the instruction alone does not fit", ids.len(), room));
        }
        let context_tokens = decoder.tokenizer.encode(&prompt.context, false)?.len() as u64;
        let usage = Usage {
            prompt_tokens: ids.len() as u64,
            context_tokens,
            context_dropped: context_tokens,
            ..Usage::default()
        };
        Ok(Prepared::new(vec![Segment::Ids(ids)], usage).into())
    }
}
