//! What a server's error means.

use e2llm_backend::{BackendError, ErrorKind};
use serde_json::Value;

/// Characters of an unknown body that are shown.
const SHOWN: usize = 300;

/// An answer that is no success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    /// The server's own words.
    pub(crate) message: String,
    /// Its machine-readable code or type, where it gives one.
    pub(crate) code: String,
}

impl Refusal {
    /// Reads the body of an error: OpenAI's `error.message`, or what vLLM, TGI and FastAPI write instead.
    pub(crate) fn read(status: u16, body: &str) -> Self {
        let value: Value = serde_json::from_str(body).unwrap_or_default();
        let text = |v: &Value| v.as_str().filter(|t| !t.is_empty()).map(str::to_owned);
        let error = &value["error"];
        let message = [&error["message"], error, &value["message"], &value["detail"]].into_iter();
        let message = message.filter_map(text).next().or_else(|| {
            let detail = Some(&value["detail"]).filter(|d| !d.is_null());
            detail.map(|d| shortened(&d.to_string()))
        });
        let code =
            [&error["code"], &error["type"], &value["error_type"], &value["type"]].into_iter().find_map(text);
        Self {
            status,
            message: message.unwrap_or_else(|| shortened(body.trim())),
            code: code.unwrap_or_default(),
        }
    }

    /// Whether the prompt is longer than the model reads.
    fn is_too_long(&self) -> bool {
        const CODES: [&str; 3] =
            ["context_length_exceeded", "exceed_context_size_error", "string_above_max_length"];
        const WORDS: [&str; 7] = [
            "maximum context length",
            "context window",
            "context size",
            "context length",
            "max_model_len",
            "maximum model length",
            "must be <=", // TGI: `inputs` tokens + `max_new_tokens` must be <= N
        ];
        let message = self.message.to_ascii_lowercase();
        CODES.contains(&self.code.as_str())
            || (matches!(self.status, 400 | 413 | 422) && WORDS.iter().any(|w| message.contains(w)))
    }

    /// Whether asking again can help; an account without money stays without it.
    pub(crate) fn is_passing(&self) -> bool {
        crate::retry::is_passing(self.status) && self.code != "insufficient_quota" && !self.is_too_long()
    }

    /// The error of a request. `url` names the endpoint, `variable` where the key is looked for, `has_key` whether it
    /// was there.
    pub(crate) fn into_error(self, url: &str, variable: &str, has_key: bool) -> BackendError {
        let Self { status, message, code } = &self;
        let code = if code.is_empty() { String::new() } else { format!(", {code}") };
        let said = format!("{url} answered {status}{code}: {message}");
        let (kind, message) = match status {
            _ if self.is_too_long() => {
                (ErrorKind::ContextTooLong, format!("the prompt is too long for the server's model; {said}"))
            }
            401 | 403 if has_key => {
                (ErrorKind::Failed, format!("the server refuses the key in ${variable}; {said}"))
            }
            401 | 403 => (
                ErrorKind::Failed,
                format!(
                    "the server wants a key: put it into ${variable}, or name another with key_env; {said}"
                ),
            ),
            404 => (
                ErrorKind::Failed,
                format!("no such endpoint or model: check base_url (most end in /v1) and model; {said}"),
            ),
            300..=399 => (ErrorKind::Failed, format!("the server is elsewhere: change base_url; {said}")),
            400 | 422 => (ErrorKind::BadRequest, said),
            _ => (ErrorKind::Failed, said),
        };
        BackendError::new(kind, message)
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(status: u16, body: &str) -> ErrorKind {
        Refusal::read(status, body).into_error("http://h/v1/x", "OPENAI_API_KEY", true).kind
    }

    #[test]
    fn a_prompt_that_is_too_long_is_known_by_every_server_s_words() {
        for (status, body) in [
            (400, r#"{"error":{"message":"too long","code":"context_length_exceeded"}}"#),
            (400, r#"{"object":"error","message":"This model's maximum context length is 4096 tokens."}"#),
            (
                400,
                r#"{"error":{"code":400,"message":"the request exceeds the available context size","type":"exceed_context_size_error"}}"#,
            ),
            (400, r#"{"error":{"message":"Requested tokens (900) exceed context window of 512"}}"#),
            (
                422,
                r#"{"error":"Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048","error_type":"validation"}"#,
            ),
        ] {
            assert_eq!(kind(status, body), ErrorKind::ContextTooLong, "{body}");
            assert!(!Refusal::read(status, body).is_passing());
        }
        assert_eq!(kind(400, r#"{"error":{"message":"unknown field `stopp`"}}"#), ErrorKind::BadRequest);
        assert_eq!(kind(500, "maximum context length"), ErrorKind::Failed);
    }

    #[test]
    fn messages_say_what_to_do() {
        let says = |status, body: &str, has_key| {
            Refusal::read(status, body).into_error("http://h/v1/x", "MY_KEY", has_key).message
        };
        assert!(says(401, r#"{"error":{"message":"bad key"}}"#, true).contains("refuses the key in $MY_KEY"));
        assert!(says(401, "{}", false).contains("put it into $MY_KEY"));
        let missing = says(404, r#"{"detail":"Not Found"}"#, true);
        assert!(missing.contains("base_url") && missing.ends_with("answered 404: Not Found"), "{missing}");
        let invalid = says(422, r#"{"detail":[{"loc":["body","seed"],"msg":"too large"}]}"#, true);
        assert!(invalid.contains("too large"), "{invalid}");
        assert!(says(502, &"<html>".repeat(500), true).len() < 400);
    }

    #[test]
    fn no_money_is_not_waited_for() {
        let quota = r#"{"error":{"message":"You exceeded your current quota","code":"insufficient_quota"}}"#;
        assert!(!Refusal::read(429, quota).is_passing());
        assert!(Refusal::read(429, "slow down").is_passing() && Refusal::read(503, "").is_passing());
        assert!(!Refusal::read(401, "").is_passing());
    }
}
