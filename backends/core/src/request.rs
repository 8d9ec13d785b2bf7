//! What a backend is asked.

use serde::{Deserialize, Serialize};

/// A prompt whose parts are still apart, so that each method can treat the long part its own way.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Prompt {
    /// The long text. Empty where a turn has none.
    pub context: String,
    /// What is asked of it, choices included; understandable without `template`.
    pub instruction: String,
    /// How a method that reads plain text puts the two together: `{context}` and `{instruction}` are
    /// replaced once each, in a single pass.
    pub template: String,
    /// Text that the answer is made to begin with, put after the chat template (RULER).
    pub answer_prefix: String,
    /// Generation ends before the first of these.
    pub stop: Vec<String>,
    /// Whether the rendered text is a user message in the model's chat template, or raw.
    pub chat: bool,
}

impl Prompt {
    /// The template with `context` and `instruction` filled in. Text inside the values is never replaced.
    pub fn render(&self) -> String {
        self.render_with(&self.context)
    }

    /// The same with another context, e.g. a shortened one.
    pub fn render_with(&self, context: &str) -> String {
        let mut out = String::with_capacity(self.template.len() + context.len() + self.instruction.len());
        let mut rest = self.template.as_str();
        while let Some(at) = rest.find('{') {
            let (before, tail) = rest.split_at(at);
            out.push_str(before);
            let (value, skip) = if tail.starts_with("{context}") {
                (context, "{context}".len())
            } else if tail.starts_with("{instruction}") {
                (self.instruction.as_str(), "{instruction}".len())
            } else {
                ("{", 1)
            };
            out.push_str(value);
            rest = &tail[skip..];
        }
        out.push_str(rest);
        out
    }
}

/// How the answer is generated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    /// Tokens after which generation ends.
    pub max_new_tokens: usize,
    /// 0 is greedy.
    pub temperature: f64,
    /// Nucleus: the smallest set of tokens with at least this probability.
    pub top_p: f64,
    /// Seed of the sampling of this request.
    pub seed: u64,
}

impl Default for Generation {
    fn default() -> Self {
        Self { max_new_tokens: 128, temperature: 0.0, top_p: 1.0, seed: 0 }
    }
}

/// One question about one text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Names the request in messages.
    pub id: String,
    /// The document the context belongs to: requests with the same context share it, so that a backend can
    /// encode a document once.
    pub document: String,
    /// The prompt.
    pub prompt: Prompt,
    /// Generation settings.
    pub generation: Generation,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placeholder_inside_the_context_is_text() {
        let p = Prompt {
            context: "a {instruction} b".into(),
            instruction: "{context}?".into(),
            template: "<{x} {context}>\n{instruction}{".into(),
            ..Prompt::default()
        };
        assert_eq!(p.render(), "<{x} a {instruction} b>\n{context}?{");
    }
}
