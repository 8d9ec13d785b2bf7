//! A template, cut where the long text goes, so that context and instruction stay apart to the end.

use crate::{Error, Prompt, Result};
use sha2::{Digest, Sha256};
use std::fmt::Write;

/// An official template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// With `{context}` and `{instruction}`: what stands before the long text, and white space around the rest.
    frame: String,
    /// What follows the long text, with its placeholders.
    asked: String,
    has_context: bool,
    sha256: String,
}

impl Template {
    /// A template with the placeholder `context` at most once, and `fields` in what follows it.
    ///
    /// # Errors
    /// Placeholders in other places.
    pub fn new(text: &str, context: &str, fields: &[&str]) -> Result<Self> {
        let parts: Vec<&str> = text.split(context).collect();
        let (before, after) = match parts[..] {
            [all] => ("", all),
            [before, after] => (before, after),
            _ => return Err(Error::bad_request(format!("the template has {context} more than once"))),
        };
        let odd = ["{context}", "{instruction}"];
        if let Some(mark) = fields.iter().chain(&odd).find(|m| before.contains(**m)) {
            return Err(Error::bad_request(format!("the template has {mark} before {context}")));
        }
        // a tag that closes the text is part of the frame
        let closed = after.trim_start().strip_prefix("</").and_then(|tag| tag.split_once('>'));
        let asked = closed.map_or(after, |(_, rest)| rest).trim();
        let (lead, trail) = match after.find(asked) {
            Some(at) => (&after[..at], &after[at + asked.len()..]),
            None => ("", ""),
        };
        let has_context = parts.len() == 2;
        let long = if has_context { "{context}" } else { "" };
        Ok(Self {
            frame: format!("{before}{long}{lead}{{instruction}}{trail}"),
            asked: asked.to_owned(),
            has_context,
            sha256: sha256(text),
        })
    }

    /// Adds the text of a later turn to the hash.
    #[must_use]
    pub fn with_turn(mut self, text: &str) -> Self {
        self.sha256 = sha256(&format!("{}{}", self.sha256, sha256(text)));
        self
    }

    /// SHA-256 of the text.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The prompt: `values` are pairs of placeholder and value, put in in a single pass.
    pub fn prompt(
        &self,
        style: &str,
        context: &str,
        values: &[(&str, &str)],
        max_new_tokens: usize,
    ) -> Prompt {
        Prompt {
            style: style.to_owned(),
            context: if self.has_context { context.to_owned() } else { String::new() },
            instruction: fill(&self.asked, values),
            template: self.frame.clone(),
            template_sha256: self.sha256.clone(),
            max_new_tokens,
            chat: true,
            ..Prompt::default()
        }
    }
}

/// Replaces placeholders; a value that looks like one stays as it is.
pub(crate) fn fill(text: &str, values: &[(&str, &str)]) -> String {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some((at, (mark, value))) =
        values.iter().filter_map(|v| Some((rest.find(v.0)?, *v))).min_by_key(|(at, _)| *at)
    {
        out.push_str(&rest[..at]);
        out.push_str(value);
        rest = &rest[at + mark.len()..];
    }
    out + rest
}

fn sha256(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_the_template_filled_in() {
        let text = "Read.\n\n<t>\n$DOC$\n</t>\n\nQ: $Q$\n(A) $C_A$\n\nSay so: ";
        let template = Template::new(text, "$DOC$", &["$Q$", "$C_A$"]).unwrap();
        let p =
            template.prompt("official", "a $Q$ {instruction}", &[("$Q$", "why $C_A$?"), ("$C_A$", "x")], 8);
        assert_eq!(p.render(), "Read.\n\n<t>\na $Q$ {instruction}\n</t>\n\nQ: why $C_A$?\n(A) x\n\nSay so: ");
        assert!(p.instruction.starts_with("Q: why") && p.instruction.ends_with("Say so:"));
        assert_eq!((p.style.as_str(), p.max_new_tokens, p.chat), ("official", 8, true));
        // printf 'abc' | sha256sum
        let hash = Template::new("abc", "$DOC$", &[]).unwrap().sha256;
        assert_eq!(&hash[..16], "ba7816bf8f01cfea");
    }

    #[test]
    fn a_template_without_a_text_has_no_context() {
        let template = Template::new("What of $Q$?\n", "$DOC$", &["$Q$"]).unwrap();
        let p = template.prompt("official", "unread", &[("$Q$", "it")], 8);
        assert_eq!((p.context.as_str(), p.render().as_str()), ("", "What of it?\n"));
        assert_eq!(p.template, "{instruction}\n");
    }

    #[test]
    fn odd_templates_are_refused() {
        for (text, what) in [("{c} {c}", "more than once"), ("{q} {c}", "{q} before {c}")] {
            let error = Template::new(text, "{c}", &["{q}"]).unwrap_err();
            assert!(error.message.contains(what), "{error}");
        }
    }
}
