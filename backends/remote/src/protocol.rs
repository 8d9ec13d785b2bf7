//! The JSON of OpenAI's `chat/completions`, `completions` and `models`, and of those who speak it after them.

use crate::client::Malformed;
use e2llm_backend::{FinishReason, Generation, Prompt};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::Read;

/// Servers take no more stop strings; all of them are looked for again in the answer.
const MOST_STOPS: usize = 4;

/// Where a prompt's beginning of the answer goes in a chat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PrefixStyle {
    /// To the end of the question.
    User,
    /// Into an assistant's message that the server continues.
    Continue,
}

/// What a server calls the longest answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LengthField {
    /// `max_tokens`.
    Tokens,
    /// `max_completion_tokens`.
    CompletionTokens,
}

/// How this server wants its requests.
#[derive(Debug, Clone)]
pub(crate) struct Dialect {
    pub(crate) prefix: PrefixStyle,
    pub(crate) length: LengthField,
    pub(crate) stream: bool,
    /// Merged into every request; `null` takes a key away.
    pub(crate) extra: Map<String, Value>,
}

impl Dialect {
    /// The request of an answer to `text` as a message.
    pub(crate) fn chat(&self, model: &str, text: &str, prompt: &Prompt, generation: &Generation) -> Value {
        let prefix = prompt.answer_prefix.as_str();
        let mut body = Map::new();
        body.insert("model".into(), model.into());
        let messages = match self.prefix {
            _ if prefix.is_empty() => json!([{"role": "user", "content": text}]),
            PrefixStyle::User => json!([{"role": "user", "content": format!("{text}{prefix}")}]),
            PrefixStyle::Continue => {
                // vLLM's names; others see from the last message's role what is meant.
                body.insert("add_generation_prompt".into(), false.into());
                body.insert("continue_final_message".into(), true.into());
                json!([{"role": "user", "content": text}, {"role": "assistant", "content": prefix}])
            }
        };
        body.insert("messages".into(), messages);
        self.generation(body, prompt, generation)
    }

    /// The request of a continuation of `text`, to which the beginning of the answer belongs.
    pub(crate) fn completion(
        &self,
        model: &str,
        text: &str,
        prompt: &Prompt,
        generation: &Generation,
    ) -> Value {
        let mut body = Map::new();
        body.insert("model".into(), model.into());
        body.insert("prompt".into(), text.into());
        self.generation(body, prompt, generation)
    }

    /// The request of the log-probabilities of all tokens of `text`. One token is generated, because some servers take
    /// none for as many as there is room for.
    pub(crate) fn scoring(&self, model: &str, text: &str) -> Value {
        let mut body = Map::new();
        for (key, value) in [
            ("model", model.into()),
            ("prompt", text.into()),
            ("max_tokens", 1.into()),
            ("temperature", 0.into()),
            ("echo", true.into()),
            ("logprobs", 1.into()),
        ] {
            body.insert(key.into(), value);
        }
        self.merged(body)
    }

    fn generation(&self, mut body: Map<String, Value>, prompt: &Prompt, generation: &Generation) -> Value {
        let length = match self.length {
            LengthField::Tokens => "max_tokens",
            LengthField::CompletionTokens => "max_completion_tokens",
        };
        body.insert(length.into(), generation.max_new_tokens.into());
        body.insert("temperature".into(), json!(generation.temperature));
        if generation.temperature > 0.0 {
            body.insert("top_p".into(), json!(generation.top_p));
            // 31 bits: some servers' numbers are no wider.
            body.insert("seed".into(), (generation.seed & 0x7fff_ffff).into());
        }
        let stops: Vec<_> = prompt.stop.iter().filter(|s| !s.is_empty()).take(MOST_STOPS).collect();
        if !stops.is_empty() {
            body.insert("stop".into(), json!(stops));
        }
        if self.stream {
            body.insert("stream".into(), true.into());
            body.insert("stream_options".into(), json!({"include_usage": true}));
        }
        self.merged(body)
    }

    fn merged(&self, mut body: Map<String, Value>) -> Value {
        for (key, value) in &self.extra {
            match value {
                Value::Null => drop(body.remove(key)),
                value => drop(body.insert(key.clone(), value.clone())),
            }
        }
        Value::Object(body)
    }
}

/// A reply of either endpoint, or a part of one where it is streamed.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Reply {
    #[serde(default)]
    pub(crate) choices: Vec<ReplyChoice>,
    #[serde(default)]
    pub(crate) usage: Option<ReplyUsage>,
    /// Some servers send errors with status 200.
    #[serde(default)]
    pub(crate) error: Option<Value>,
}

/// One answer.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct ReplyChoice {
    /// Of `completions`.
    #[serde(default)]
    text: Option<String>,
    /// Of `chat/completions`.
    #[serde(default)]
    message: Option<Message>,
    /// The same, streamed.
    #[serde(default)]
    delta: Option<Message>,
    #[serde(default)]
    pub(crate) finish_reason: Option<String>,
    /// vLLM: the stop string that was found.
    #[serde(default)]
    pub(crate) stop_reason: Option<Value>,
    #[serde(default)]
    pub(crate) logprobs: Option<LogProbs>,
}

#[derive(Debug, Default, Deserialize)]
struct Message {
    #[serde(default)]
    content: Option<String>,
}

/// Tokens as the server counts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct ReplyUsage {
    #[serde(default)]
    pub(crate) prompt_tokens: u64,
    #[serde(default)]
    pub(crate) completion_tokens: u64,
}

/// Log-probabilities as `completions` gives them; a chat's have another form and are not these.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct LogProbs {
    #[serde(default)]
    pub(crate) token_logprobs: Vec<Option<f64>>,
    #[serde(default)]
    pub(crate) text_offset: Vec<usize>,
    #[serde(default)]
    tokens: Vec<String>,
    /// Of each position, the likeliest tokens, by text.
    #[serde(default)]
    top_logprobs: Vec<Option<BTreeMap<String, f64>>>,
}

impl LogProbs {
    /// Whether the values are those of the position after each token: a fault of llama-cpp-python with models that have
    /// no token at the beginning of a text. What is likeliest at a position then is, more often than not, the next token
    /// of the text where it should be this one.
    pub(crate) fn are_shifted(&self) -> bool {
        let likeliest = |top: &Option<BTreeMap<String, f64>>| -> Option<String> {
            let best = top.as_ref()?.iter().max_by(|a, b| a.1.total_cmp(b.1))?;
            Some(best.0.clone())
        };
        let (mut here, mut next) = (0, 0);
        for (i, top) in self.top_logprobs.iter().enumerate() {
            let Some(best) = likeliest(top) else { continue };
            here += usize::from(self.tokens.get(i) == Some(&best));
            next += usize::from(self.tokens.get(i + 1) == Some(&best));
        }
        next > here
    }
}

impl ReplyChoice {
    /// Its text; empty where the model said nothing.
    pub(crate) fn text(&self) -> &str {
        let message = self.message.as_ref().or(self.delta.as_ref()).and_then(|m| m.content.as_deref());
        self.text.as_deref().or(message).unwrap_or_default()
    }
}

/// An answer with all that is known of it.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) finish_reason: Option<String>,
    pub(crate) stop_reason: Option<Value>,
    pub(crate) usage: Option<ReplyUsage>,
    /// When the first piece of text came, where it came in pieces.
    pub(crate) first: Option<std::time::Instant>,
}

impl Answer {
    /// The text before the first stop string, and why it ended.
    pub(crate) fn finished(&self, stops: &[String]) -> (String, FinishReason) {
        let found = stops.iter().filter(|s| !s.is_empty()).filter_map(|s| self.text.find(s.as_str())).min();
        if let Some(at) = found {
            return (self.text[..at].to_owned(), FinishReason::StopString);
        }
        let finish = match self.finish_reason.as_deref() {
            Some("length" | "max_tokens") => FinishReason::Length,
            _ if self.stop_reason.as_ref().is_some_and(Value::is_string) => FinishReason::StopString,
            _ => FinishReason::Eos,
        };
        (self.text.clone(), finish)
    }
}

/// Reads a whole reply.
pub(crate) fn read_reply(reader: &mut dyn Read) -> Result<Reply, Malformed> {
    let mut body = Vec::new();
    reader.read_to_end(&mut body).map_err(|e| Malformed(format!("its body broke off: {e}")))?;
    let reply: Reply = serde_json::from_slice(&body)
        .map_err(|e| Malformed(format!("not with the JSON of a completion: {e}")))?;
    match &reply.error {
        Some(error) if !error.is_null() => Err(Malformed(format!("with an error: {error}"))),
        _ => Ok(reply),
    }
}

/// Reads a whole answer.
pub(crate) fn read_answer(reader: &mut dyn Read) -> Result<Answer, Malformed> {
    let mut reply = read_reply(reader)?;
    if reply.choices.is_empty() {
        return Err(Malformed("without an answer (`choices`)".into()));
    }
    let choice = reply.choices.swap_remove(0);
    Ok(Answer {
        text: choice.text().to_owned(),
        finish_reason: choice.finish_reason,
        stop_reason: choice.stop_reason,
        usage: reply.usage,
        first: None,
    })
}

/// What a server says of a model it has.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ModelEntry {
    pub(crate) id: String,
    /// vLLM: the window in tokens.
    #[serde(default)]
    pub(crate) max_model_len: Option<u64>,
}

/// Reads the list of models.
pub(crate) fn read_models(reader: &mut dyn Read) -> Result<Vec<ModelEntry>, Malformed> {
    #[derive(Deserialize)]
    struct Models {
        data: Vec<ModelEntry>,
    }
    let mut body = Vec::new();
    reader.read_to_end(&mut body).map_err(|e| Malformed(format!("its body broke off: {e}")))?;
    let models: Models = serde_json::from_slice(&body)
        .map_err(|e| Malformed(format!("not with the JSON of a list of models: {e}")))?;
    Ok(models.data)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialect() -> Dialect {
        Dialect { prefix: PrefixStyle::User, length: LengthField::Tokens, stream: false, extra: Map::new() }
    }

    fn prompt() -> Prompt {
        let stop = ["", "a", "b", "c", "d", "e"].map(str::to_owned).to_vec();
        Prompt { answer_prefix: " It is".into(), stop, ..Prompt::default() }
    }

    #[test]
    fn greedy_requests_say_only_what_every_server_knows() {
        let body = dialect().chat("m", "ask", &prompt(), &Generation::default());
        let expected = json!({
            "model": "m", "messages": [{"role": "user", "content": "ask It is"}],
            "max_tokens": 128, "temperature": 0.0, "stop": ["a", "b", "c", "d"],
        });
        assert_eq!(body, expected);
        let body = dialect().completion("m", "ask", &Prompt::default(), &Generation::default());
        assert_eq!(body, json!({"model": "m", "prompt": "ask", "max_tokens": 128, "temperature": 0.0}));
    }

    #[test]
    fn sampling_is_seeded_and_extras_win() {
        let mut d = dialect();
        (d.prefix, d.length, d.stream) = (PrefixStyle::Continue, LengthField::CompletionTokens, true);
        d.extra = serde_json::from_str(r#"{"temperature":null,"top_k":1}"#).unwrap();
        let sampled = Generation { temperature: 0.5, seed: u64::MAX, ..Generation::default() };
        let body = d.chat("m", "ask", &prompt(), &sampled);
        assert_eq!(body["messages"][1], json!({"role": "assistant", "content": " It is"}));
        assert_eq!((&body["seed"], &body["top_k"]), (&json!(0x7fff_ffff), &json!(1)));
        assert!(body.get("temperature").is_none() && body.get("max_tokens").is_none());
        assert_eq!(body["stream_options"]["include_usage"], true);
        assert_eq!(body["continue_final_message"], true);
    }

    #[test]
    fn values_of_the_next_position_are_told_from_those_of_this_one() {
        // what llama-cpp-python 0.3.36 answers for SmolLM2, shortened
        let shifted = r#"{"tokens":["The"," capital"," of"," France"," is"," Paris"],"token_logprobs":[null,-9.6,-10.5,-11.2,-11.8,-8.5],
            "text_offset":[0,3,11,14,21,24],"top_logprobs":[null,{" of":-0.4," capital":-9.6},{" the":-2.0," of":-10.5},
            {" is":-0.4," France":-11.2},{" Paris":-0.3," is":-11.8},{".":-0.4," Paris":-8.5}]}"#;
        let right = r#"{"tokens":["The"," capital"," of"," France"],"token_logprobs":[null,-5.0,-0.4,-4.0],"text_offset":[0,3,11,14],
            "top_logprobs":[null,{" first":-3.0," capital":-5.0},{" of":-0.4},{" the":-2.0," France":-4.0}]}"#;
        let read = |text: &str| serde_json::from_str::<LogProbs>(text).unwrap();
        assert!(read(shifted).are_shifted());
        assert!(!read(right).are_shifted() && !LogProbs::default().are_shifted());
    }

    #[test]
    fn replies_of_both_endpoints_are_read() {
        let read = |text: &str| read_answer(&mut text.as_bytes());
        let chat = read(r#"{"choices":[{"message":{"role":"assistant","content":"x END y"},"finish_reason":"stop","logprobs":null}],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}"#).unwrap();
        assert_eq!(chat.usage, Some(ReplyUsage { prompt_tokens: 3, completion_tokens: 4 }));
        assert_eq!(chat.finished(&["END".into(), String::new()]), ("x ".into(), FinishReason::StopString));
        assert_eq!(chat.finished(&[]).1, FinishReason::Eos);
        let plain = read(r#"{"choices":[{"text":"x","finish_reason":"length"}]}"#).unwrap();
        assert_eq!(plain.finished(&[]), ("x".into(), FinishReason::Length));
        let vllm = read(r#"{"choices":[{"text":"x","finish_reason":"stop","stop_reason":"\n"}]}"#).unwrap();
        assert_eq!(vllm.finished(&[]).1, FinishReason::StopString);
        assert_eq!(read(r#"{"choices":[{"message":{"content":null}}]}"#).unwrap().text, "");
        for broken in ["{", "{}", r#"{"choices":[]}"#, r#"{"error":{"message":"busy"}}"#, "<html>"] {
            assert!(read(broken).is_err(), "{broken}");
        }
    }
}
