//! `echo`: a backend without a model, for tests of everything around a model and for measuring its overhead.
//!
//! Source: ours. Answer: the instruction, the head of the context, a fixed text, or what a file has for the sample, in
//! whitespace-separated words of which at most `max_new_tokens` are given. Cost: O(T) time for counting words, O(answer) memory.
//! The same request always gets the same answer or the same failure, in any order and after a resume.

use e2llm_backend::{
    Backend, BackendError, BackendInfo, BackendSpec, BuildContext, CancelFlag, Choice, ErrorKind,
    Fingerprint, FinishReason, OptionSpec, Request, Response, TokenCounter, Usage,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The registry entry.
pub fn spec() -> BackendSpec {
    BackendSpec {
        name: "echo",
        description: "answers from the prompt itself, without a model (for tests)",
        source: "this project",
        needs_model: false,
        options: &[
            OptionSpec {
                name: "mode",
                default: "instruction",
                help: "what to answer: instruction, context-head, fixed or replay",
            },
            OptionSpec { name: "text", default: "echo", help: "the answer of mode fixed" },
            OptionSpec {
                name: "answers",
                default: "",
                help: "the answers of mode replay: JSON Lines of {\"id\",\"response\"}, made by any program",
            },
            OptionSpec {
                name: "fail_every",
                default: "0",
                help: "about one request in N fails, always the same ones (chosen by their id); 1 fails all, 0 none",
            },
            OptionSpec { name: "delay_ms", default: "0", help: "milliseconds each answer takes" },
        ],
        build: |context| Ok(Box::new(Echo::new(context)?)),
    }
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Mode {
    Instruction,
    ContextHead,
    Fixed(String),
    /// By sample id.
    Replay(BTreeMap<String, String>),
}

/// The backend `echo`.
#[derive(Debug)]
pub struct Echo {
    info: BackendInfo,
    mode: Mode,
    fail_every: u64,
    delay: Duration,
    cancel: CancelFlag,
}

impl Echo {
    /// Builds it from its options.
    ///
    /// # Errors
    /// An unknown mode; a number that is none.
    pub fn new(context: &BuildContext) -> Result<Self, BackendError> {
        let options = &context.options;
        let mode = match options.text("mode") {
            "" | "instruction" => Mode::Instruction,
            "context-head" => Mode::ContextHead,
            "fixed" => Mode::Fixed(options.text("text").to_owned()),
            "replay" => Mode::Replay(answers(options.text("answers"))?),
            other => {
                let message = format!(
                    "backend option `mode`: unknown mode `{other}`: known are instruction, context-head, fixed, replay"
                );
                return Err(BackendError::new(ErrorKind::BadRequest, message));
            }
        };
        let mut fingerprint = Fingerprint::new("echo", env!("CARGO_PKG_VERSION"));
        for (name, value) in options.iter().filter(|(name, _)| *name != "delay_ms") {
            fingerprint.text(name, value);
        }
        if let Mode::Replay(answers) = &mode {
            for (id, response) in answers {
                fingerprint.text(id, response);
            }
        }
        let info = BackendInfo {
            name: "echo".into(),
            model: "echo".into(),
            dtype: "none".into(),
            device: "cpu".into(),
            truncation: "none".into(),
            fingerprint: fingerprint.finish(),
            warnings: vec!["`echo` has no model: its scores mean nothing".into()],
            ..BackendInfo::default()
        };
        Ok(Self {
            info,
            mode,
            fail_every: options.parse("fail_every")?.unwrap_or(0),
            delay: Duration::from_millis(options.parse("delay_ms")?.unwrap_or(0)),
            cancel: context.cancel.clone(),
        })
    }

    /// Waits, and fails where this request is one of those that must.
    fn begin(&self, request: &Request) -> Result<(), BackendError> {
        let end = Instant::now() + self.delay;
        self.cancel.check()?;
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()) {
            std::thread::sleep(left.min(Duration::from_millis(20)));
            self.cancel.check()?;
        }
        if self.fail_every > 0 && number("fail", &request.id).is_multiple_of(self.fail_every) {
            let message = format!("request {} fails because of the option `fail_every`", request.id);
            return Err(BackendError::new(ErrorKind::Failed, message));
        }
        Ok(())
    }

    fn answer(&self, request: &Request) -> Result<Response, BackendError> {
        let start = Instant::now();
        self.begin(request)?;
        let prompt = &request.prompt;
        let source = match &self.mode {
            Mode::Instruction => &prompt.instruction,
            Mode::ContextHead => &prompt.context,
            Mode::Fixed(text) => text,
            Mode::Replay(answers) => answers.get(&request.id).ok_or_else(|| {
                let message = format!("the file of answers has none for sample {}", request.id);
                BackendError::new(ErrorKind::Failed, message)
            })?,
        };
        let (mut text, mut finish) = match end_of_words(source, request.generation.max_new_tokens) {
            Some(end) => (&source[..end], FinishReason::Length),
            None => (source.as_str(), FinishReason::Eos),
        };
        let stop = prompt.stop.iter().filter(|s| !s.is_empty()).filter_map(|s| text.find(s.as_str())).min();
        if let Some(at) = stop {
            (text, finish) = (&text[..at], FinishReason::StopString);
        }
        let mut usage = usage(request);
        usage.generated_tokens = count_words(text) as u64;
        usage.time_to_first_token = start.elapsed().as_secs_f64();
        Ok(Response { text: text.to_owned(), finish, usage })
    }
}

impl Backend for Echo {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn generate(&mut self, batch: &[Request]) -> Vec<Result<Response, BackendError>> {
        batch.iter().map(|r| self.answer(r)).collect()
    }

    /// Log-likelihoods drawn from a hash of the instruction and the choice: arbitrary, but always the same.
    fn choose(&mut self, request: &Request, choices: &[String]) -> Result<Choice, BackendError> {
        self.begin(request)?;
        let likelihood =
            |c: &String| -(number(&request.prompt.instruction, c) as f64 / u64::MAX as f64) * 10.0;
        Ok(Choice {
            log_likelihoods: choices.iter().map(likelihood).collect(),
            tokens: choices.iter().map(|c| count_words(c).max(1)).collect(),
            usage: usage(request),
        })
    }

    fn token_counter(&self) -> Option<TokenCounter> {
        Some(Arc::new(count_words))
    }
}

fn usage(request: &Request) -> Usage {
    let context = count_words(&request.prompt.context) as u64;
    Usage {
        prompt_tokens: context + count_words(&request.prompt.instruction) as u64,
        context_tokens: context,
        context_seen: context,
        ..Usage::default()
    }
}

/// The answers of a file, by sample id.
fn answers(path: &str) -> Result<BTreeMap<String, String>, BackendError> {
    #[derive(serde::Deserialize)]
    struct Answer {
        id: String,
        response: String,
    }
    let wrong =
        |what: String| BackendError::new(ErrorKind::BadRequest, format!("backend option `answers`: {what}"));
    let text = std::fs::read_to_string(path).map_err(|e| wrong(format!("cannot read `{path}`: {e}")))?;
    let mut all = BTreeMap::new();
    for (n, line) in text.split('\n').enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let at = |e: &dyn std::fmt::Display| wrong(format!("{path}, line {}: {e}", n + 1));
        let answer: Answer = serde_json::from_str(line).map_err(|e| at(&e))?;
        if all.insert(answer.id.clone(), answer.response).is_some() {
            return Err(at(&format!("a second answer for sample {}", answer.id)));
        }
    }
    Ok(all)
}

fn count_words(text: &str) -> usize {
    text.split_whitespace().count()
}

/// Where the first `words` words end, if more follow.
fn end_of_words(text: &str, words: usize) -> Option<usize> {
    let (mut seen, mut end, mut inside) = (0, 0, false);
    for (at, c) in text.char_indices() {
        if !c.is_whitespace() && !inside {
            if seen == words {
                return Some(end);
            }
            seen += 1;
        }
        inside = !c.is_whitespace();
        if inside {
            end = at + c.len_utf8();
        }
    }
    None
}

/// A number that depends on both texts only.
fn number(a: &str, b: &str) -> u64 {
    let mut fingerprint = Fingerprint::new("echo", "");
    let digits = fingerprint.text(a, b).finish();
    u64::from_str_radix(&digits[..16], 16).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use e2llm_backend::{Options, Prompt};

    fn echo(options: &[(&str, &str)]) -> Echo {
        let given: BTreeMap<_, _> = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let options = Options::checked(spec().options, &given).unwrap();
        Echo::new(&BuildContext { options, ..BuildContext::default() }).unwrap()
    }

    fn request(id: &str) -> Request {
        Request {
            id: id.into(),
            document: "d".into(),
            prompt: Prompt {
                context: " one two\n three four".into(),
                instruction: "what comes after two?".into(),
                ..Prompt::default()
            },
            generation: Default::default(),
        }
    }

    fn answer(echo: &mut Echo, request: &Request) -> Response {
        echo.generate(std::slice::from_ref(request)).remove(0).unwrap()
    }

    #[test]
    fn modes() {
        let r = request("a");
        assert_eq!(answer(&mut echo(&[]), &r).text, "what comes after two?");
        assert_eq!(answer(&mut echo(&[("mode", "context-head")]), &r).text, " one two\n three four");
        assert_eq!(answer(&mut echo(&[("mode", "fixed"), ("text", "x y")]), &r).text, "x y");
        let context = |mode: &str| {
            let given = BTreeMap::from([("mode".to_owned(), mode.to_owned())]);
            BuildContext { options: Options::checked(spec().options, &given).unwrap(), ..Default::default() }
        };
        let error = Echo::new(&context("loud")).unwrap_err();
        assert!(error.message.contains("`loud`"), "{error}");
    }

    #[test]
    fn answers_of_a_file_are_given_by_sample() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("answers.jsonl");
        let path = path.to_str().unwrap();
        std::fs::write(path, "{\"id\":\"a\",\"response\":\"(B)\\nno\"}\n").unwrap();
        let mut replay = echo(&[("mode", "replay"), ("answers", path)]);
        assert_eq!(answer(&mut replay, &request("a")).text, "(B)\nno");
        let missing = replay.generate(&[request("b")]).remove(0).unwrap_err();
        assert!(missing.message.contains("none for sample b"), "{missing}");
        let first = replay.info.fingerprint;
        std::fs::write(path, "{\"id\":\"a\",\"response\":\"(C)\"}\n").unwrap();
        assert_ne!(first, echo(&[("mode", "replay"), ("answers", path)]).info.fingerprint);
        std::fs::write(path, "{\"id\":\"a\"}").unwrap();
        assert!(answers(path).unwrap_err().message.contains("line 1: missing field"));
        assert!(answers("").unwrap_err().message.contains("cannot read ``"));
    }

    #[test]
    fn length_and_stop_strings_end_an_answer() {
        let mut r = request("a");
        r.generation.max_new_tokens = 2;
        let response = answer(&mut echo(&[("mode", "context-head")]), &r);
        assert_eq!((response.text.as_str(), response.finish), (" one two", FinishReason::Length));
        assert_eq!(response.usage.generated_tokens, 2);
        assert_eq!(response.usage.context_tokens, 4);
        r.generation.max_new_tokens = 4;
        r.prompt.stop = vec!["".into(), "two".into(), "after".into()];
        let response = answer(&mut echo(&[]), &r);
        assert_eq!((response.text.as_str(), response.finish), ("what comes ", FinishReason::StopString));
    }

    #[test]
    fn the_same_requests_fail_in_any_order() {
        let mut failing = echo(&[("fail_every", "3")]);
        let requests: Vec<_> = (0..60).map(|i| request(&format!("r{i}"))).collect();
        let failed = |results: Vec<Result<Response, BackendError>>| -> Vec<bool> {
            results.iter().map(Result::is_err).collect()
        };
        let all = failed(failing.generate(&requests));
        assert_eq!(all[20..], failed(failing.generate(&requests[20..])));
        assert!((5..40).contains(&all.iter().filter(|f| **f).count()));
        assert!(failed(echo(&[("fail_every", "1")]).generate(&requests)).iter().all(|f| *f));
        assert!(!failed(echo(&[]).generate(&requests)).contains(&true));
    }

    #[test]
    fn choices_are_deterministic_and_cancelling_ends_a_delay() {
        let choices = ["A".to_owned(), "B".to_owned()];
        let first = echo(&[]).choose(&request("a"), &choices).unwrap();
        assert_eq!(first, echo(&[]).choose(&request("b"), &choices).unwrap());
        assert!(first.log_likelihoods.iter().all(|l| *l <= 0.0));
        let mut slow = echo(&[("delay_ms", "60000")]);
        slow.cancel.cancel();
        let error = slow.generate(&[request("a")]).remove(0).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Cancelled);
    }

    #[test]
    fn the_fingerprint_tells_options_apart_but_not_the_delay() {
        let plain = echo(&[]).info.fingerprint;
        assert_eq!(plain, echo(&[("delay_ms", "5")]).info.fingerprint);
        assert_ne!(plain, echo(&[("mode", "fixed")]).info.fingerprint);
    }
}
