//! The options of `openai`.

use crate::address::Address;
use crate::context::{Context, Counter};
use crate::key::{DEFAULT_VARIABLE, Key};
use crate::protocol::{Dialect, LengthField, PrefixStyle};
use crate::retry::Retry;
use e2llm_backend::{BackendError, BuildContext, ErrorKind, Fingerprint, OptionSpec, Options};
use std::fmt::Display;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

/// Every option, in the order of `describe`.
pub(crate) const OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        name: "base_url",
        default: "",
        help: "the server, e.g. http://127.0.0.1:8000/v1; else the environment variable OPENAI_BASE_URL",
    },
    OptionSpec {
        name: "model",
        default: "",
        help: "its name on the server; else OPENAI_MODEL, else the only one that the server lists",
    },
    OptionSpec {
        name: "key_env",
        default: "",
        help: "environment variable with the key [default: OPENAI_API_KEY, where it is set]; the key itself is no option",
    },
    OptionSpec {
        name: "endpoint",
        default: "auto",
        help: "chat, completions, or auto: what the prompt asks for",
    },
    OptionSpec {
        name: "answer_prefix",
        default: "user",
        help: "where a prompt's beginning of the answer goes in a chat: user (end of the question) or continue (an assistant's message that the server continues: vLLM, llama.cpp)",
    },
    OptionSpec { name: "concurrency", default: "8", help: "requests under way at once" },
    OptionSpec { name: "retries", default: "5", help: "attempts after the first one" },
    OptionSpec { name: "timeout_s", default: "600", help: "seconds that one attempt may take" },
    OptionSpec {
        name: "max_wait_s",
        default: "120",
        help: "longest wait that the server may ask for with Retry-After; a longer one is an error",
    },
    OptionSpec {
        name: "stream",
        default: "false",
        help: "true: tokens as they come, so that the time to the first one is measured",
    },
    OptionSpec {
        name: "policy",
        default: "none",
        help: "what is cut of a prompt longer than `window`: none (the server decides), middle (= middle-longbench-v2), middle-longbench-v1, left, right, context-tail",
    },
    OptionSpec {
        name: "window",
        default: "",
        help: "the model's window in tokens; needed by a policy [default: what the server says]",
    },
    OptionSpec {
        name: "margin",
        default: "64",
        help: "tokens of the window that a policy leaves unused: the server's chat template takes some",
    },
    OptionSpec {
        name: "tokenizer",
        default: "",
        help: "tokenizer.json, or a folder with one, of the model: tokens are counted instead of estimated",
    },
    OptionSpec {
        name: "chars_per_token",
        default: "4",
        help: "characters of a token, where there is no tokenizer",
    },
    OptionSpec {
        name: "length_field",
        default: "max_tokens",
        help: "max_tokens, or max_completion_tokens where the server wants that",
    },
    OptionSpec {
        name: "extra_body",
        default: "",
        help: "JSON object merged into every request, e.g. {\"chat_template_kwargs\":{\"enable_thinking\":false}}; null takes a key away",
    },
];

/// Options that only decide how fast or how safely answers come: they are no part of the fingerprint.
const NOT_IN_FINGERPRINT: &[&str] = &[
    "base_url", // as the address that it stands for
    "model",    // as the name that it stands for
    "tokenizer",
    "key_env",
    "concurrency",
    "retries",
    "timeout_s",
    "max_wait_s",
    "stream",
];

/// Which endpoint a prompt goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// Chat where the prompt is a message, else completions.
    Auto,
    /// `chat/completions`.
    Chat,
    /// `completions`.
    Completions,
}

/// The options, read.
pub(crate) struct Settings {
    pub(crate) address: Address,
    /// Where named.
    pub(crate) model: Option<String>,
    pub(crate) key: Key,
    pub(crate) endpoint: Endpoint,
    pub(crate) dialect: Dialect,
    pub(crate) context: Context,
    pub(crate) concurrency: usize,
    pub(crate) retry: Retry,
    pub(crate) timeout: Duration,
    pub(crate) warnings: Vec<String>,
    hash: Fingerprint,
}

impl Settings {
    /// Reads the options; `environment` gives the value of a variable.
    ///
    /// # Errors
    /// A missing base URL; a value that means nothing; a key among the options, which are written to the manifest.
    pub(crate) fn new(
        build: &BuildContext,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, BackendError> {
        let options = &build.options;
        let given = |option: &str, variable: &str| {
            let text = options.text(option);
            let text = if text.is_empty() { environment(variable).unwrap_or_default() } else { text.into() };
            Some(text.trim().to_owned()).filter(|t| !t.is_empty())
        };
        let mut key = Key::read(options.text("key_env"), environment)?;
        if let Some((name, _)) = options.iter().find(|(_, value)| key.is_in(value)) {
            let what = format!(
                "it contains the key of `{}`; options are written to the run's manifest, the key must not be",
                key.variable()
            );
            return Err(bad_option(name, &what));
        }
        let address = given("base_url", "OPENAI_BASE_URL").ok_or_else(|| {
            bad_option(
                "base_url",
                "no server is named: set it, or OPENAI_BASE_URL (OpenAI's own is https://api.openai.com/v1)",
            )
        })?;
        let address = Address::parse(&address)?;
        let mut warnings = vec![
            "a remote model: what its server does to prompts and weights cannot be checked from here"
                .to_owned(),
        ];
        if key.is_some() && address.is_open() && options.text("key_env").is_empty() {
            warnings.push(format!(
                "the key in {DEFAULT_VARIABLE} is not sent, because the connection is not encrypted; key_env={DEFAULT_VARIABLE} sends it"
            ));
            key = Key::none();
        }
        let concurrency = number(options, "concurrency", 8usize)?;
        if concurrency == 0 {
            return Err(bad_option("concurrency", "0: it must be at least 1"));
        }
        let (context, mut hash) = context(options)?;
        warnings.extend(context.warning());
        hash.text("address", &address.url(""));
        Ok(Self {
            model: given("model", "OPENAI_MODEL"),
            key,
            endpoint: named(
                options,
                "endpoint",
                &[("auto", Endpoint::Auto), ("chat", Endpoint::Chat), ("completions", Endpoint::Completions)],
            )?,
            dialect: dialect(options)?,
            context,
            concurrency,
            retry: Retry {
                retries: number(options, "retries", 5)?,
                longest_asked: seconds(options, "max_wait_s", 120.0)?,
                seed: build.seed,
            },
            timeout: seconds(options, "timeout_s", 600.0)?,
            address,
            warnings,
            hash,
        })
    }

    /// Hash of everything here that decides an answer, with the model's name on the server.
    pub(crate) fn fingerprint(&self, model: &str) -> String {
        self.hash.clone().text("model", model).finish()
    }
}

fn context(options: &Options) -> Result<(Context, Fingerprint), BackendError> {
    let mut hash = Fingerprint::new(crate::openai::NAME, env!("CARGO_PKG_VERSION"));
    for (name, value) in options.iter().filter(|(name, _)| !NOT_IN_FINGERPRINT.contains(name)) {
        hash.text(name, value);
    }
    let path = options.text("tokenizer");
    let counter = if path.is_empty() {
        Counter::characters(number(options, "chars_per_token", 4)?)?
    } else {
        let path = Path::new(path);
        let file = if path.is_dir() { path.join("tokenizer.json") } else { path.to_owned() };
        hash.file("tokenizer", &file)
            .map_err(|e| bad_option("tokenizer", &format!("cannot read {}: {e}", file.display())))?;
        Counter::tokenizer(&file)?
    };
    let policy = match options.text("policy") {
        "" | "none" => None,
        name => Some(name.parse().map_err(|e: String| bad_option("policy", &e))?),
    };
    let window = options.parse("window")?;
    Ok((Context { counter, policy, window, margin: number(options, "margin", 64)? }, hash))
}

fn dialect(options: &Options) -> Result<Dialect, BackendError> {
    let text = options.text("extra_body");
    let extra = match text.is_empty() {
        true => serde_json::Map::new(),
        false => serde_json::from_str(text)
            .map_err(|e| bad_option("extra_body", &format!("`{text}` is no JSON object: {e}")))?,
    };
    Ok(Dialect {
        prefix: named(
            options,
            "answer_prefix",
            &[("user", PrefixStyle::User), ("continue", PrefixStyle::Continue)],
        )?,
        length: named(
            options,
            "length_field",
            &[("max_tokens", LengthField::Tokens), ("max_completion_tokens", LengthField::CompletionTokens)],
        )?,
        stream: options.parse("stream")?.unwrap_or(false),
        extra,
    })
}

/// An option that is wrong.
pub(crate) fn bad_option(name: &str, what: &str) -> BackendError {
    BackendError::new(ErrorKind::BadRequest, format!("backend option `{name}`: {what}"))
}

fn number<T: FromStr>(options: &Options, name: &str, default: T) -> Result<T, BackendError> {
    Ok(options.parse(name)?.unwrap_or(default))
}

fn seconds(options: &Options, name: &str, default: f64) -> Result<Duration, BackendError> {
    let seconds = number(options, name, default)?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err(bad_option(name, &format!("`{seconds}` is no number of seconds above 0"))),
    }
}

/// One of a few words; the first where nothing is given.
fn named<T: Copy>(options: &Options, name: &str, known: &[(&str, T)]) -> Result<T, BackendError> {
    let text = options.text(name);
    let found = if text.is_empty() { known.first() } else { known.iter().find(|(word, _)| *word == text) };
    found.map(|(_, value)| *value).ok_or_else(|| {
        let words: Vec<&dyn Display> = known.iter().map(|(word, _)| word as &dyn Display).collect();
        let words: Vec<_> = words.iter().map(ToString::to_string).collect();
        bad_option(name, &format!("`{text}` is not known: {}", words.join(", ")))
    })
}
