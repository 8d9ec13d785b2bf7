//! A whole prompt as the decoder reads it, and where in it the context is.

use crate::decoder::{Decoder, Prepared};
use e2llm_backend::{BackendError, ErrorKind, Prompt, Usage};
use e2llm_lm::Segment;
use std::ops::Range;

/// Why a prompt is refused, and what can be done.
const TOO_LONG: &str = "the whole prompt does not fit (a method that shortens or streams it, or a stretched window, would take it)";

/// A prompt of which nothing is cut.
pub(crate) struct Whole {
    pub(crate) ids: Vec<u32>,
    /// Positions that have some of the context.
    pub(crate) context: Range<usize>,
    /// Tokens of a context that the template does not show.
    hidden: usize,
}

impl Whole {
    /// Refuses an empty prompt.
    pub(crate) fn new(decoder: &Decoder, prompt: &Prompt) -> Result<Self, BackendError> {
        let rendered = prompt.render();
        let (text, add_special) = decoder.text(&rendered, prompt)?;
        let tokens = decoder.tokenizer.encode_with_offsets(&text)?;
        let shown = context_range(prompt);
        // Templates trim a message.
        let lost = rendered.len() - rendered.trim_start().len();
        let message = rendered.trim();
        let within = |at: usize| at.saturating_sub(lost).min(message.len());
        let context = match text.find(message) {
            Some(at) => at + within(shown.start)..at + within(shown.end),
            None => 0..text.len(), // a template that rewrites its messages
        };
        let ranges: Vec<_> = tokens.iter().map(|(_, range)| range.clone()).collect();
        let mut context = if shown.is_empty() { 0..0 } else { covering(&ranges, &context) };
        let mut ids: Vec<u32> = tokens.into_iter().map(|(id, _)| id).collect();
        if add_special {
            let before = decoder.tokenizer.affixes().0.len();
            context = context.start + before..context.end + before;
            ids = decoder.tokenizer.wrap(&ids);
        }
        if ids.is_empty() {
            return Err(BackendError::new(ErrorKind::BadRequest, "the prompt is empty"));
        }
        let is_hidden = shown.is_empty() && !prompt.context.is_empty();
        let hidden = if is_hidden { decoder.tokenizer.encode(&prompt.context, false)?.len() } else { 0 };
        Ok(Self { ids, context, hidden })
    }

    /// What becomes of the context where all of it is read.
    pub(crate) fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.ids.len() as u64,
            context_tokens: (self.context.len() + self.hidden) as u64,
            context_seen: self.context.len() as u64,
            context_dropped: self.hidden as u64,
            ..Usage::default()
        }
    }

    /// The prompt, all of which the window must hold.
    pub(crate) fn within_window(self, decoder: &Decoder, room: usize) -> Result<Prepared, BackendError> {
        if self.ids.len() + room > decoder.window {
            return Err(decoder.too_long(TOO_LONG, self.ids.len(), room));
        }
        let usage = self.usage();
        Ok(Prepared::new(vec![Segment::Ids(self.ids)], usage))
    }
}

/// Where the context is in the rendered prompt; empty where the template does not show it.
pub(crate) fn context_range(prompt: &Prompt) -> Range<usize> {
    let Some(at) = prompt.template.find("{context}") else {
        return 0..0;
    };
    let before = Prompt { template: prompt.template[..at].to_owned(), ..prompt.clone() };
    let start = before.render_with("").len();
    start..start + prompt.context.len()
}

/// Positions of the tokens that have some of `range`.
pub(crate) fn covering(tokens: &[Range<usize>], range: &Range<usize>) -> Range<usize> {
    let touches = |t: &Range<usize>| t.start < range.end && t.end > range.start;
    let Some(first) = tokens.iter().position(touches) else {
        return 0..0;
    };
    let last = tokens.iter().rposition(touches).unwrap_or(first);
    first..last + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(template: &str) -> Prompt {
        Prompt {
            context: "ctx".into(),
            instruction: "ask {context}".into(),
            template: template.into(),
            ..Prompt::default()
        }
    }

    #[test]
    fn the_context_is_found_in_the_rendered_prompt() {
        for (template, expected) in [
            ("a {context} b", 2..5),
            ("{instruction}{ {context}", 15..18),
            ("{instruction}", 0..0),
            ("{context}", 0..3),
        ] {
            let prompt = prompt(template);
            let range = context_range(&prompt);
            assert_eq!(range, expected, "{template}");
            assert!(range.is_empty() || &prompt.render()[range] == "ctx", "{template}");
        }
    }

    #[test]
    fn tokens_that_have_part_of_a_range() {
        let tokens = [0..0, 0..3, 3..5, 5..9, 9..9];
        assert_eq!(covering(&tokens, &(4..6)), 2..4);
        assert_eq!(covering(&tokens, &(3..5)), 2..3);
        assert_eq!(covering(&tokens, &(9..9)), 0..0);
        assert_eq!(covering(&tokens, &(0..9)), 1..4);
    }
}
