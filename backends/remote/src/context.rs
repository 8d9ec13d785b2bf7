//! How long a prompt is, and what is cut of it where that is asked for.
//!
//! A server's tokenizer is not here. Tokens are those of a `tokenizer.json` the user names, or an estimate: every
//! `chars_per_token` characters are one. A policy then keeps whole tokens of the text as it is, LongBench's way; it is
//! exact to the token only with the model's own tokenizer, and the server's chat template is left to `margin`.

use crate::settings::bad_option;
use e2llm_backend::{BackendError, ErrorKind, Policy, Prompt, Usage};
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use tokenizers::Tokenizer;

/// Divides a text into tokens.
#[derive(Clone)]
pub(crate) enum Counter {
    /// So many characters each: an estimate.
    Characters(usize),
    /// A tokenizer's.
    Tokenizer(Arc<Tokenizer>),
}

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Characters(n) => write!(f, "Characters({n})"),
            Self::Tokenizer(_) => f.write_str("Tokenizer"),
        }
    }
}

impl Counter {
    pub(crate) fn characters(n: usize) -> Result<Self, BackendError> {
        if n == 0 {
            return Err(bad_option("chars_per_token", "0: it must be at least 1"));
        }
        Ok(Self::Characters(n))
    }

    pub(crate) fn tokenizer(file: &Path) -> Result<Self, BackendError> {
        let bad = |e: tokenizers::Error| bad_option("tokenizer", &format!("{}: {e}", file.display()));
        let mut tokenizer = Tokenizer::from_file(file).map_err(bad)?;
        tokenizer.with_truncation(None).map_err(bad)?;
        tokenizer.with_padding(None);
        Ok(Self::Tokenizer(Arc::new(tokenizer)))
    }

    /// Tokens of a text. Text that a tokenizer refuses is counted by its bytes: no token is shorter.
    pub(crate) fn count(&self, text: &str) -> usize {
        match self {
            Self::Characters(n) => text.chars().count().div_ceil(*n),
            Self::Tokenizer(tokenizer) => tokenizer.encode_fast(text, false).map_or(text.len(), |e| e.len()),
        }
    }

    /// The bytes of each token.
    fn ranges(&self, text: &str) -> Result<Vec<Range<usize>>, BackendError> {
        match self {
            Self::Characters(n) => {
                let mut starts: Vec<_> = text.char_indices().map(|(at, _)| at).step_by(*n).collect();
                starts.push(text.len());
                Ok(starts.windows(2).map(|w| w[0]..w[1]).collect())
            }
            Self::Tokenizer(tokenizer) => {
                let refused = |e: tokenizers::Error| BackendError::new(ErrorKind::BadRequest, e.to_string());
                let encoding = tokenizer.encode(text, false).map_err(refused)?;
                Ok(encoding.get_offsets().iter().map(|(start, end)| *start..*end).collect())
            }
        }
    }
}

/// What is done with the context of a prompt.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub(crate) counter: Counter,
    /// None: the server decides what to do with too much.
    pub(crate) policy: Option<Policy>,
    pub(crate) window: Option<usize>,
    /// Tokens of the window that are left to the server's chat template.
    pub(crate) margin: usize,
}

impl Context {
    /// What a reader of a result must know of its token counts.
    pub(crate) fn warning(&self) -> Option<String> {
        match self.counter {
            Counter::Characters(n) => {
                Some(format!("tokens of contexts are estimated: {n} characters each (no tokenizer is given)"))
            }
            Counter::Tokenizer(_) => None,
        }
    }

    /// The name of the policy, or `none`.
    pub(crate) fn truncation(&self) -> &'static str {
        self.policy.map_or("none", Policy::name)
    }

    /// The text of a prompt, the beginning of the answer not included, and what became of its context; `room` tokens
    /// are left for the answer.
    ///
    /// # Errors
    /// [`ErrorKind::ContextTooLong`] where a policy has nothing left to cut; an empty prompt.
    pub(crate) fn prepare(&self, prompt: &Prompt, room: usize) -> Result<(String, Usage), BackendError> {
        let text = prompt.render();
        if text.trim().is_empty() {
            return Err(BackendError::new(ErrorKind::BadRequest, "the prompt is empty"));
        }
        let context_tokens = self.counter.count(&prompt.context) as u64;
        let shown = context_range(prompt);
        let hidden = shown.is_empty() && !prompt.context.is_empty();
        let whole = Usage {
            context_tokens,
            context_seen: if hidden { 0 } else { context_tokens },
            context_dropped: if hidden { context_tokens } else { 0 },
            ..Usage::default()
        };
        let (Some(policy), Some(window)) = (self.policy, self.window) else { return Ok((text, whole)) };
        let tokens = self.counter.ranges(&text)?;
        let taken = room + self.margin + self.counter.count(&prompt.answer_prefix);
        let max = window.saturating_sub(taken);
        let n = tokens.len();
        if n <= max {
            return Ok((text, whole));
        }
        let too_long = |what: &str| {
            let message = format!(
                "{what}: {n} tokens of prompt, {room} of answer, margin {}, window {window}",
                self.margin
            );
            BackendError::new(ErrorKind::ContextTooLong, message)
        };
        // Below 2 the official slices keep everything (see `Policy::kept`).
        if max < 2 {
            return Err(too_long("the window has no room for the prompt"));
        }
        let (text, dropped) = if policy == Policy::ContextTail {
            let inside: Vec<_> =
                tokens.iter().filter(|t| t.start < shown.end && t.end > shown.start).collect();
            let excess = n - max;
            if excess >= inside.len() {
                return Err(too_long("the prompt does not fit even without its context"));
            }
            let end = inside[inside.len() - excess].start.saturating_sub(shown.start);
            let kept = &prompt.context[..prompt.context.floor_char_boundary(end)];
            (prompt.render_with(kept), excess)
        } else {
            let kept = policy.kept(n, max);
            let head_end = kept.head.end.checked_sub(1).map_or(0, |last| tokens[last].end);
            let tail_start = tokens.get(kept.tail.start).map_or(text.len(), |t| t.start);
            let first = tokens.partition_point(|t| t.end <= shown.start);
            let last = tokens.partition_point(|t| t.start < shown.end);
            let dropped = kept.dropped_of(first..last.max(first));
            let (head, tail) = (text.floor_char_boundary(head_end), text.ceil_char_boundary(tail_start));
            ([&text[..head], &text[tail..]].concat(), if hidden { 0 } else { dropped })
        };
        let dropped = (dropped as u64).min(whole.context_seen);
        let usage = Usage {
            context_seen: whole.context_seen - dropped,
            context_dropped: whole.context_dropped + dropped,
            truncation: Some(policy.name().to_owned()),
            ..whole
        };
        Ok((text, usage))
    }

    /// Notes in `usage` where the server read fewer tokens than the text has, which only a tokenizer can tell: some
    /// servers cut prompts without a word.
    pub(crate) fn note_silent_cut(&self, usage: &mut Usage, text: &str) {
        let Counter::Tokenizer(_) = self.counter else { return };
        let sent = self.counter.count(text) as u64;
        if usage.prompt_tokens > 0 && usage.prompt_tokens < sent {
            let lost = (sent - usage.prompt_tokens).min(usage.context_seen);
            usage.context_seen -= lost;
            usage.context_dropped += lost;
            usage.truncation = Some("by-the-server".to_owned());
        }
    }
}

/// Where the context is in the rendered prompt; empty where the template does not show it.
fn context_range(prompt: &Prompt) -> Range<usize> {
    let Some(at) = prompt.template.find("{context}") else { return 0..0 };
    let before = Prompt { template: prompt.template[..at].to_owned(), ..prompt.clone() };
    let start = before.render_with("").len();
    start..start + prompt.context.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(policy: Option<Policy>, window: Option<usize>) -> Context {
        Context { counter: Counter::Characters(2), policy, window, margin: 3 }
    }

    fn prompt() -> Prompt {
        Prompt {
            context: "abcdefghijklmnopqrst".into(),
            instruction: "why?".into(),
            template: "<<{context}>>{instruction}".into(),
            ..Prompt::default()
        }
    }

    #[test]
    fn nothing_is_cut_unless_asked_for() {
        for context in
            [context(None, Some(4)), context(Some(Policy::Left), None), context(Some(Policy::Left), Some(22))]
        {
            let (text, usage) = context.prepare(&prompt(), 5).unwrap();
            assert_eq!(text, "<<abcdefghijklmnopqrst>>why?");
            assert_eq!((usage.context_tokens, usage.context_seen, usage.truncation), (10, 10, None));
        }
    }

    #[test]
    fn policies_keep_their_part_of_what_fits() {
        // 14 tokens of two characters; a window of 16 less 5 of answer and 3 of margin leaves 8
        for (policy, expected, dropped) in [
            (Policy::MiddleLongbenchV2, "<<abcdefst>>why?", 6),
            (Policy::Left, "klmnopqrst>>why?", 5),
            (Policy::Right, "<<abcdefghijklmn", 3),
            (Policy::ContextTail, "<<abcdefgh>>why?", 6),
        ] {
            let (text, usage) = context(Some(policy), Some(16)).prepare(&prompt(), 5).unwrap();
            assert_eq!((text.as_str(), usage.context_dropped), (expected, dropped), "{policy}");
            assert_eq!(usage.context_seen + usage.context_dropped, 10);
            assert_eq!(usage.truncation.as_deref(), Some(policy.name()));
        }
    }

    #[test]
    fn what_cannot_be_cut_is_too_long() {
        for (policy, window) in [(Policy::Left, 9), (Policy::ContextTail, 11)] {
            let error = context(Some(policy), Some(window)).prepare(&prompt(), 5).unwrap_err();
            assert_eq!(error.kind, ErrorKind::ContextTooLong, "{error}");
        }
        let empty = Prompt::default();
        assert_eq!(context(None, None).prepare(&empty, 5).unwrap_err().kind, ErrorKind::BadRequest);
    }

    #[test]
    fn a_cut_inside_a_character_is_none() {
        let long =
            Prompt { context: "é日🙂".repeat(9), template: "{context}".into(), ..Prompt::default() };
        for policy in Policy::ALL {
            let (text, _) = context(Some(policy), Some(14)).prepare(&long, 5).unwrap();
            assert!(!text.is_empty() && !text.contains('\u{FFFD}'));
        }
    }
}
