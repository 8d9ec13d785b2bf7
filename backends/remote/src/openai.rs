//! `openai`: the model of a server, asked over HTTP.
//!
//! Source: OpenAI's API reference, as vLLM, llama.cpp, ollama and TGI serve it. What becomes of a long context is the
//! server's affair: an error where it does not fit, for most. With `policy` the prompt is cut here first, as `truncate`
//! does it. Cost: that of the server; here one thread per request under way, at most `concurrency`.

use crate::client::{Client, Malformed};
use crate::context::Context;
use crate::pool::{self, Job};
use crate::protocol::{Answer, Dialect, ModelEntry, Reply, read_answer, read_models, read_reply};
use crate::settings::{Endpoint, OPTIONS, Settings, bad_option};
use crate::stream::read_stream;
use e2llm_backend::{
    Backend, BackendError, BackendInfo, BackendSpec, BuildContext, CancelFlag, Choice, ErrorKind, Request,
    Response, TokenCounter, Usage,
};
use std::sync::Arc;
use std::time::Instant;

pub(crate) const NAME: &str = "openai";
/// Requests handed over at once, per thread: enough that none waits for the slowest of a batch for long.
const BATCH_PER_THREAD: usize = 4;

/// The registry entry.
pub fn spec() -> BackendSpec {
    BackendSpec {
        name: NAME,
        description: "a model behind an OpenAI-compatible server; the context goes there as it is",
        source: "OpenAI API, vLLM, llama.cpp, ollama, TGI",
        needs_model: false,
        options: OPTIONS,
        build: |context| Ok(Box::new(OpenAi::new(context)?)),
    }
}

/// The backend `openai`.
#[derive(Debug)]
pub struct OpenAi {
    info: BackendInfo,
    server: Arc<Server>,
    concurrency: usize,
    cancel: CancelFlag,
}

/// What every thread needs.
#[derive(Debug)]
struct Server {
    client: Client,
    model: String,
    endpoint: Endpoint,
    dialect: Dialect,
    context: Context,
}

impl OpenAi {
    /// Reads the options and asks the server for its models.
    ///
    /// # Errors
    /// Options that mean nothing; a server that cannot be reached or refuses the key; no model named where the server
    /// has several.
    pub fn new(context: &BuildContext) -> Result<Self, BackendError> {
        Self::with_environment(context, &|name| std::env::var(name).ok())
    }

    /// The same with other environment variables.
    ///
    /// # Errors
    /// As [`OpenAi::new`].
    pub fn with_environment(
        context: &BuildContext,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, BackendError> {
        let mut settings = Settings::new(context, environment)?;
        let client = Client::new(
            settings.address.clone(),
            settings.key.clone(),
            settings.retry.clone(),
            settings.timeout,
            context.cancel.clone(),
        );
        let listed = models(&client)?;
        let model = model(settings.model.as_deref(), listed.as_deref(), &mut settings.warnings)?;
        let of_server = listed.iter().flatten().find(|m| m.id == model).and_then(|m| m.max_model_len);
        settings.context.window = settings.context.window.or(of_server.and_then(|n| usize::try_from(n).ok()));
        if settings.context.policy.is_some() && settings.context.window.is_none() {
            return Err(bad_option("window", "a policy needs it, and the server does not say its model's"));
        }
        let info = BackendInfo {
            name: NAME.into(),
            fingerprint: settings.fingerprint(&model),
            model: model.clone(),
            window: settings.context.window.map(|w| w as u64),
            dtype: "the server's".into(),
            device: format!("server {}", settings.address.authority()),
            truncation: settings.context.truncation().into(),
            warnings: settings.warnings,
            ..BackendInfo::default()
        };
        let Settings { endpoint, dialect, context: cutting, concurrency, .. } = settings;
        let server = Server { client, model, endpoint, dialect, context: cutting };
        Ok(Self { info, server: Arc::new(server), concurrency, cancel: context.cancel.clone() })
    }
}

/// The server's models; `None` where it does not list them.
fn models(client: &Client) -> Result<Option<Vec<ModelEntry>>, BackendError> {
    match client.get("models", &|reader| read_models(reader)) {
        Ok(models) => Ok(Some(models)),
        Err(e)
            if [" answered 404", " answered 405", " answered 501"].iter().any(|s| e.message.contains(s)) =>
        {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// The model asked for, or the server's only one.
fn model(
    named: Option<&str>,
    listed: Option<&[ModelEntry]>,
    warnings: &mut Vec<String>,
) -> Result<String, BackendError> {
    const SHOWN: usize = 20;
    let ids: Vec<_> = listed.unwrap_or_default().iter().map(|m| m.id.as_str()).collect();
    match (named, ids.as_slice()) {
        (Some(name), _) => {
            if listed.is_some() && !ids.contains(&name) {
                warnings.push(format!("the server does not list a model `{name}`"));
            }
            Ok(name.to_owned())
        }
        (None, [only]) => Ok((*only).to_owned()),
        (None, []) => Err(bad_option("model", "it must be named: the server lists none")),
        (None, several) => {
            let shown = several[..several.len().min(SHOWN)].join(", ");
            Err(bad_option("model", &format!("the server has several: {shown}")))
        }
    }
}

impl Server {
    fn endpoint(&self, request: &Request) -> Endpoint {
        match self.endpoint {
            Endpoint::Auto if request.prompt.chat => Endpoint::Chat,
            Endpoint::Auto => Endpoint::Completions,
            fixed => fixed,
        }
    }

    fn answer(&self, request: &Request) -> Result<Response, BackendError> {
        let start = Instant::now();
        let Request { prompt, generation, .. } = request;
        let (mut text, mut usage) = self.context.prepare(prompt, generation.max_new_tokens)?;
        let (path, body) = match self.endpoint(request) {
            Endpoint::Chat => ("chat/completions", self.dialect.chat(&self.model, &text, prompt, generation)),
            Endpoint::Completions | Endpoint::Auto => {
                text.push_str(&prompt.answer_prefix);
                ("completions", self.dialect.completion(&self.model, &text, prompt, generation))
            }
        };
        let stream = self.dialect.stream;
        let read = |reader: &mut std::io::BufReader<&mut dyn std::io::Read>| -> Result<Answer, Malformed> {
            if stream { read_stream(reader) } else { read_answer(reader) }
        };
        let answer = self.client.post(path, &body, &request.id, &read)?;
        let end = Instant::now();
        let first = answer.first.unwrap_or(end);
        let (answered, finish) = answer.finished(&prompt.stop);
        let counted = answer.usage.unwrap_or_default();
        let or = |server: u64, text: &str| match server {
            0 => self.context.counter.count(text) as u64,
            n => n,
        };
        usage.prompt_tokens = or(counted.prompt_tokens, &text);
        usage.generated_tokens = or(counted.completion_tokens, &answer.text);
        usage.time_to_first_token = (first - start).as_secs_f64();
        usage.decode_time = (end - first).as_secs_f64();
        if counted.prompt_tokens > 0 {
            self.context.note_silent_cut(&mut usage, &text);
        }
        Ok(Response { text: answered, finish, usage })
    }

    /// The log-likelihood and the tokens of one choice behind a prompt, and the tokens of both.
    fn score(&self, text: &str, choice: &str, id: &str) -> Result<(f64, usize, u64), BackendError> {
        let body = self.dialect.scoring(&self.model, &format!("{text}{choice}"));
        let reply = self.client.post("completions", &body, id, &|reader| read_reply(reader));
        let reply = reply.map_err(|e| match e.kind {
            // Servers that cannot do it say so in words of their own.
            ErrorKind::BadRequest | ErrorKind::Failed if names_logprobs(&e.message) => {
                let message = format!("the server gives no log-probabilities of a prompt: {}", e.message);
                BackendError::new(ErrorKind::Unsupported, message)
            }
            _ => e,
        })?;
        let prompt_tokens = reply.usage.map_or(0, |u| u.prompt_tokens);
        let (sum, tokens) = log_likelihood(&reply, text.chars().count(), choice.chars().count())?;
        Ok((sum, tokens, prompt_tokens))
    }
}

fn names_logprobs(message: &str) -> bool {
    ["logprob", "logits_all", "echo"].iter().any(|word| message.contains(word))
}

/// Sum of the log-probabilities of the tokens between the characters `prompt` and `prompt + choice` of an echoed text,
/// and how many they are.
fn log_likelihood(reply: &Reply, prompt: usize, choice: usize) -> Result<(f64, usize), BackendError> {
    let unsupported = |what: &str| Err(BackendError::new(ErrorKind::Unsupported, what));
    let logprobs = reply.choices.first().and_then(|c| c.logprobs.as_ref());
    let Some(logprobs) = logprobs.filter(|l| !l.text_offset.is_empty()) else {
        return unsupported("the server answered without log-probabilities, although asked for them");
    };
    let (offsets, values) = (&logprobs.text_offset, &logprobs.token_logprobs);
    if offsets.len() != values.len() || offsets[0] >= prompt.max(1) {
        return unsupported(
            "the server gave log-probabilities of its own answer only, not of the prompt (echo)",
        );
    }
    if logprobs.are_shifted() {
        return unsupported(
            "the server's log-probabilities are those of the position after each token (as llama-cpp-python's are for \
             models without a token at the beginning of a text), so no likelihood can be made of them",
        );
    }
    if prompt > 0 && !offsets.contains(&prompt) {
        return unsupported(
            "a token of the server's tokenizer spans the end of the prompt and the beginning of a choice, so the choice has \
             no log-likelihood of its own",
        );
    }
    let inside = offsets.iter().zip(values).filter(|(at, _)| (prompt..prompt + choice).contains(at));
    let (mut sum, mut tokens) = (0.0, 0);
    for (_, value) in inside {
        let Some(value) = value else {
            return unsupported("the server gave a token of a choice no log-probability");
        };
        sum += value;
        tokens += 1;
    }
    Ok((sum, tokens))
}

impl Backend for OpenAi {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn generate(&mut self, batch: &[Request]) -> Vec<Result<Response, BackendError>> {
        let job = |request: &Request| -> Job<Response> {
            let (server, request) = (Arc::clone(&self.server), request.clone());
            Box::new(move || server.answer(&request))
        };
        pool::run(batch.iter().map(job).collect(), self.concurrency, &self.cancel)
    }

    fn choose(&mut self, request: &Request, choices: &[String]) -> Result<Choice, BackendError> {
        let start = Instant::now();
        self.cancel.check()?;
        if self.server.endpoint(request) == Endpoint::Chat {
            let message = "a chat has no log-likelihood of a given answer; endpoint=completions asks without the \
                           server's chat template";
            return Err(BackendError::new(ErrorKind::Unsupported, message));
        }
        if let Some(empty) = choices.iter().find(|c| c.is_empty()) {
            return Err(BackendError::new(
                ErrorKind::BadRequest,
                format!("the choice {empty:?} has no token"),
            ));
        }
        let counter = &self.server.context.counter;
        let room = choices.iter().map(|c| counter.count(c)).max().unwrap_or(0).max(1);
        let (mut text, mut usage) = self.server.context.prepare(&request.prompt, room)?;
        text.push_str(&request.prompt.answer_prefix);
        let text: Arc<str> = text.into();
        let job = |choice: &String| -> Job<(f64, usize, u64)> {
            let (server, text, choice, id) =
                (Arc::clone(&self.server), Arc::clone(&text), choice.clone(), request.id.clone());
            Box::new(move || server.score(&text, &choice, &id))
        };
        let scored = pool::run(choices.iter().map(job).collect(), self.concurrency, &self.cancel);
        let scored = scored.into_iter().collect::<Result<Vec<_>, _>>()?;
        usage.prompt_tokens = scored.first().map_or(0, |(_, own, all)| all.saturating_sub(*own as u64));
        let usage = Usage { time_to_first_token: start.elapsed().as_secs_f64(), ..usage };
        let (log_likelihoods, tokens) = scored.iter().map(|(sum, own, _)| (*sum, *own)).unzip();
        Ok(Choice { log_likelihoods, tokens, usage })
    }

    fn preferred_batch(&self) -> Option<usize> {
        Some(self.concurrency * BATCH_PER_THREAD)
    }

    fn token_counter(&self) -> Option<TokenCounter> {
        let counter = self.server.context.counter.clone();
        Some(Arc::new(move |text| counter.count(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scored(offsets: &str, values: &str) -> Result<(f64, usize), BackendError> {
        let json = format!(
            r#"{{"choices":[{{"text":"","logprobs":{{"text_offset":{offsets},"token_logprobs":{values}}}}}]}}"#
        );
        log_likelihood(&read_reply(&mut json.as_bytes()).unwrap(), 5, 3)
    }

    #[test]
    fn the_log_likelihood_is_that_of_the_choice_s_tokens() {
        // "abcde" + "fgh" + one generated token at 8
        assert_eq!(scored("[0,2,5,6,8]", "[null,-9.0,-0.5,-0.25,-7.0]").unwrap(), (-0.75, 2));
        for (offsets, values, why) in [
            ("[]", "[]", "without log-probabilities"),
            ("[8]", "[-7.0]", "of its own answer only"),
            ("[0,4,6,8]", "[null,-1.0,-1.0,-1.0]", "spans the end"),
            ("[0,5,8]", "[null,null,-1.0]", "no log-probability"),
        ] {
            let error = scored(offsets, values).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Unsupported);
            assert!(error.message.contains(why), "{error}");
        }
    }

    #[test]
    fn the_only_model_need_not_be_named() {
        let entry = |id: &str| ModelEntry { id: id.into(), max_model_len: None };
        let mut warnings = Vec::new();
        assert_eq!(model(None, Some(&[entry("a")]), &mut warnings).unwrap(), "a");
        assert_eq!(model(Some("b"), None, &mut warnings).unwrap(), "b");
        assert!(warnings.is_empty());
        assert_eq!(model(Some("b"), Some(&[entry("a")]), &mut warnings).unwrap(), "b");
        assert!(warnings[0].contains("does not list"));
        let several = model(None, Some(&[entry("a"), entry("c")]), &mut warnings).unwrap_err();
        assert!(several.message.contains("a, c"), "{several}");
        assert!(model(None, None, &mut warnings).is_err());
    }
}
