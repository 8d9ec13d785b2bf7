//! What the decoder reads before and after the soft tokens.
//!
//! The user's message is `context_prefix`, soft tokens, `instruction_prefix`, instruction. It is rendered in the
//! model's own chat template with a mark in the place of the soft tokens, and cut there, so that whatever the
//! template puts around a message is around this one too.

use crate::config::E2llmConfig;
use e2llm_lm::{ChatTemplate, LmError, Message, Tokenizer};

/// Decoder ids around the soft tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptIds {
    /// Ids before the soft tokens.
    pub prefix: Vec<u32>,
    /// Ids after them, up to where the answer begins.
    pub suffix: Vec<u32>,
}

/// How a prompt is put together.
#[derive(Debug, Clone, Copy)]
pub struct PromptStyle<'a> {
    /// The decoder's chat template; without one the message is raw text.
    pub template: Option<&'a ChatTemplate>,
    /// Text that the answer is made to begin with.
    pub answer_prefix: &'a str,
}

impl PromptIds {
    /// The ids around the soft tokens of a context.
    ///
    /// # Errors
    /// A chat template that refuses the message or does not show it once; text that cannot be tokenised.
    pub fn with_context(
        config: &E2llmConfig,
        tokenizer: &Tokenizer,
        instruction: &str,
        style: PromptStyle<'_>,
    ) -> Result<Self, LmError> {
        let mark = mark_absent_from(&[&config.context_prefix, &config.instruction_prefix, instruction]);
        let message = format!("{}{mark}{}{instruction}", config.context_prefix, config.instruction_prefix);
        let rendered = rendered(&message, style)?;
        let mut parts = rendered.split(&mark);
        let (Some(prefix), Some(suffix), None) = (parts.next(), parts.next(), parts.next()) else {
            let message = "the model's chat template does not show the user's message exactly once";
            return Err(LmError::Template(message.into()));
        };
        let prefix = tokenizer.encode(prefix, style.template.is_none())?;
        // Special tokens belong to the text's beginning: the second half must not get its own.
        Ok(Self { prefix, suffix: tokenizer.encode(suffix, false)? })
    }

    /// The ids of a prompt that has no context: the instruction alone, all of it in `suffix`.
    ///
    /// # Errors
    /// As [`PromptIds::with_context`].
    pub fn without_context(
        tokenizer: &Tokenizer,
        instruction: &str,
        style: PromptStyle<'_>,
    ) -> Result<Self, LmError> {
        let text = rendered(instruction, style)?;
        Ok(Self { prefix: Vec::new(), suffix: tokenizer.encode(&text, style.template.is_none())? })
    }
}

fn rendered(message: &str, style: PromptStyle<'_>) -> Result<String, LmError> {
    let mut text = match style.template {
        Some(template) => template.render(&[Message::new("user", message)], true)?,
        None => message.to_owned(),
    };
    text.push_str(style.answer_prefix);
    Ok(text)
}

/// A text that occurs in none of `texts`. It has no white space at its ends, which templates trim.
fn mark_absent_from(texts: &[&str]) -> String {
    let mut mark = "<soft-tokens>".to_owned();
    let mut number = 0u64;
    while texts.iter().any(|t| t.contains(&mark)) {
        number += 1;
        mark = format!("<soft-tokens-{number}>");
    }
    mark
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_is_not_in_the_text() {
        assert_eq!(mark_absent_from(&["a", "b"]), "<soft-tokens>");
        let instruction = "what do <soft-tokens> and <soft-tokens-1> mean?";
        assert_eq!(mark_absent_from(&["", instruction]), "<soft-tokens-2>");
    }
}
