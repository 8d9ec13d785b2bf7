//! `truncate`: a decoder in its own window, the prompt cut where it does not fit.
//!
//! Source: LongBench v1 and v2 (`pred.py`), HELMET for `context-tail`. The whole rendered prompt is tokenised with
//! special tokens; if it has more than `max = W - max_new_tokens - template tokens - margin`, the policy's tokens
//! are decoded without special ones and the text goes into the chat template. Upstream does not look again
//! after that; here a text that became longer by being tokenised anew, beyond the window W, is cut a little more (ours).
//! Cost: O(T) for tokenising, then that of a prompt of at most W tokens: O(W^2) attention, O(W) memory.

use crate::decoder::{Decoder, DecoderBackend, Draft, LORA, Method, Prepared, WINDOW};
use crate::prompt::{context_range, covering};
use e2llm_backend::{
    BackendError, BackendSpec, BuildContext, ErrorKind, Kept, OptionSpec, Policy, Prompt, Usage,
};
use e2llm_lm::Segment;
use std::ops::Range;

const NAME: &str = "truncate";

/// The registry entry.
pub fn spec() -> BackendSpec {
    BackendSpec {
        name: NAME,
        description: "the decoder reads what fits its window, the rest is cut by a policy",
        source: "LongBench v1 and v2, HELMET",
        needs_model: true,
        options: &[
            OptionSpec {
                name: "policy",
                default: "middle",
                help: "what is cut: middle (= middle-longbench-v2), middle-longbench-v1, left, right, context-tail",
            },
            OptionSpec { name: "margin", default: "16", help: "positions left unused, for safety" },
            WINDOW,
            LORA,
        ],
        build: |context| {
            let method = Truncate::new(context)?;
            let policy = method.policy;
            Ok(Box::new(DecoderBackend::new(NAME, policy.name(), method, context)?))
        },
    }
}

/// The method with its options.
pub(crate) struct Truncate {
    pub(crate) policy: Policy,
    pub(crate) margin: usize,
}

impl Truncate {
    fn new(context: &BuildContext) -> Result<Self, BackendError> {
        let name = context.options.text("policy");
        let policy = if name.is_empty() { Ok(Policy::MiddleLongbenchV2) } else { name.parse() };
        let bad =
            |e: String| BackendError::new(ErrorKind::BadRequest, format!("backend option `policy`: {e}"));
        let margin = context.options.parse("margin")?.unwrap_or(16);
        Ok(Self { policy: policy.map_err(bad)?, margin })
    }
}

/// A rendered prompt with its tokens.
struct Rendered {
    text: String,
    /// With special tokens.
    ids: Vec<u32>,
    /// Of each id, where in the text it comes from; empty ranges for special tokens.
    bytes: Vec<Range<usize>>,
    /// Where the context is in the text.
    context_bytes: Range<usize>,
    /// Which of the ids have part of the context.
    context_ids: Range<usize>,
    /// Tokens of a context that the template does not show.
    hidden: usize,
}

impl Rendered {
    fn new(decoder: &Decoder, prompt: &Prompt) -> Result<Self, BackendError> {
        let text = prompt.render();
        let tokens = decoder.tokenizer.encode_with_offsets(&text)?;
        let (before, after) = decoder.tokenizer.affixes();
        let mut bytes = vec![0..0; before.len()];
        bytes.extend(tokens.iter().map(|(_, range)| range.clone()));
        bytes.extend(vec![text.len()..text.len(); after.len()]);
        let ids: Vec<u32> = tokens.into_iter().map(|(id, _)| id).collect();
        let context_bytes = context_range(prompt);
        let context_ids = covering(&bytes, &context_bytes);
        let is_hidden = context_bytes.is_empty() && !prompt.context.is_empty();
        let hidden = if is_hidden { decoder.tokenizer.encode(&prompt.context, false)?.len() } else { 0 };
        Ok(Self { hidden, ids: decoder.tokenizer.wrap(&ids), text, bytes, context_bytes, context_ids })
    }

    /// The text with at most `max` tokens, and how many of the context's tokens it lost.
    fn cut(
        &self,
        policy: Policy,
        max: usize,
        decoder: &Decoder,
        prompt: &Prompt,
    ) -> Result<(String, usize), BackendError> {
        if policy == Policy::ContextTail {
            let excess = self.ids.len().saturating_sub(max);
            return Ok(self.cut_context(excess, prompt));
        }
        let kept: Kept = policy.kept(self.ids.len(), max);
        let mut text = String::new();
        for piece in kept.pieces(&self.ids) {
            text.push_str(&decoder.tokenizer.decode(&piece, true)?);
        }
        Ok((text, kept.dropped_of(self.context_ids.clone())))
    }

    /// The prompt without the last `excess` tokens of its context.
    fn cut_context(&self, excess: usize, prompt: &Prompt) -> (String, usize) {
        let ids = &self.context_ids;
        let dropped = excess.min(ids.len());
        if dropped == 0 {
            return (self.text.clone(), 0);
        }
        let end = self.bytes[ids.end - dropped].start.saturating_sub(self.context_bytes.start);
        let context = &prompt.context[..prompt.context.floor_char_boundary(end)];
        (prompt.render_with(context), dropped)
    }
}

fn usage(rendered: &Rendered, dropped: usize) -> Usage {
    let shown = rendered.context_ids.len();
    Usage {
        context_tokens: (shown + rendered.hidden) as u64,
        context_seen: (shown - dropped) as u64,
        context_dropped: (dropped + rendered.hidden) as u64,
        ..Usage::default()
    }
}

impl Method for Truncate {
    fn draft(&self, decoder: &Decoder, prompt: &Prompt, room: usize) -> Result<Draft<'_>, BackendError> {
        let rendered = Rendered::new(decoder, prompt)?;
        let n = rendered.ids.len();
        if n == 0 {
            return Err(BackendError::new(ErrorKind::BadRequest, "the prompt is empty"));
        }
        let taken = room + decoder.overhead(prompt)? + self.margin;
        let mut max = decoder.window.saturating_sub(taken);
        loop {
            // Below 2 the official slices keep everything (see `Policy::kept`).
            if max < 2 && n > max {
                let what = "the window has no room for the prompt beside template, answer and margin";
                return Err(decoder.too_long(what, n, room));
            }
            let (text, dropped) = if n <= max {
                (rendered.text.clone(), 0)
            } else {
                rendered.cut(self.policy, max, decoder, prompt)?
            };
            let ids = decoder.wrap(&text, prompt)?;
            let excess = (ids.len() + room).saturating_sub(decoder.window);
            if excess == 0 {
                let truncation = (n > max).then(|| self.policy.name().to_owned());
                let usage =
                    Usage { prompt_tokens: ids.len() as u64, truncation, ..usage(&rendered, dropped) };
                return Ok(Prepared::new(vec![Segment::Ids(ids)], usage).into());
            }
            if self.policy == Policy::ContextTail && dropped == rendered.context_ids.len() {
                let what = "the prompt does not fit even without its context";
                return Err(decoder.too_long(what, ids.len(), room));
            }
            max = max.min(n).saturating_sub(excess);
        }
    }
}
