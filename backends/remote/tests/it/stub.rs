//! A server that answers as it is told, and remembers what it was asked.

use e2llm_backend::{BackendError, BuildContext, CancelFlag, Generation, Options, Prompt, Request};
use e2llm_remote::openai::{OpenAi, spec};
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// What becomes of one request.
#[derive(Clone)]
pub(crate) enum Act {
    /// Status, header lines, body.
    Answer(u16, &'static str, String),
    /// The body ends before its announced length.
    Torn(String),
    /// The connection is reset before the request was read.
    Reset,
    /// Headers, and then nothing.
    Silence,
    /// Waits until so many requests are under way, then answers.
    Together(usize),
}

impl Act {
    pub(crate) fn ok(body: Value) -> Self {
        Self::Answer(200, "", body.to_string())
    }

    pub(crate) fn error(status: u16, headers: &'static str, message: &str) -> Self {
        Self::Answer(status, headers, json!({"error": {"message": message}}).to_string())
    }
}

/// A chat's answer.
pub(crate) fn chat(text: &str) -> Value {
    json!({
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 2},
    })
}

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) line: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Value,
}

#[derive(Default)]
struct State {
    script: VecDeque<Act>,
    asked: Vec<Asked>,
    under_way: usize,
    most: usize,
}

/// The server.
pub(crate) struct Stub {
    port: u16,
    state: Arc<(Mutex<State>, Condvar)>,
}

/// What `GET models` says.
const MODELS: &str = r#"{"object":"list","data":[{"id":"stub","max_model_len":4096}]}"#;
/// No test waits longer for what should come at once.
const PATIENCE: Duration = Duration::from_secs(60);

impl Stub {
    /// Starts one; requests after the script's end get the answer `ok`.
    pub(crate) fn new(script: impl IntoIterator<Item = Act>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = State { script: script.into_iter().collect(), ..State::default() };
        let state = Arc::new((Mutex::new(state), Condvar::new()));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || drop(serve(stream.unwrap(), &shared)));
            }
        });
        Self { port, state }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/v1", self.port)
    }

    /// Every request so far but those of `GET models`.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.state.0.lock().unwrap().asked.iter().filter(|a| !a.line.starts_with("GET")).cloned().collect()
    }

    /// The most requests that were ever under way at once.
    pub(crate) fn most(&self) -> usize {
        self.state.0.lock().unwrap().most
    }

    /// A backend of this server.
    pub(crate) fn backend(&self, options: &[(&str, &str)]) -> OpenAi {
        self.try_backend(options, &CancelFlag::default(), &[]).unwrap()
    }

    pub(crate) fn try_backend(
        &self,
        options: &[(&str, &str)],
        cancel: &CancelFlag,
        environment: &[(&str, &str)],
    ) -> Result<OpenAi, BackendError> {
        let url = self.url();
        let all = [&[("base_url", url.as_str())], options].concat();
        let given: BTreeMap<_, _> = all.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let options = Options::checked(spec().options, &given)?;
        let context = BuildContext { options, cancel: cancel.clone(), ..BuildContext::default() };
        let value = |name: &str| environment.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        OpenAi::with_environment(&context, &value)
    }
}

fn serve(mut stream: TcpStream, shared: &(Mutex<State>, Condvar)) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let is_models = line.starts_with("GET");
    let mut act = Act::Answer(200, "", MODELS.into());
    if !is_models {
        let mut state = shared.0.lock().unwrap();
        act = state.script.pop_front().unwrap_or_else(|| Act::ok(chat("ok")));
        if matches!(act, Act::Reset) {
            state.asked.push(Asked { line, headers: BTreeMap::new(), body: Value::Null });
            return Ok(()); // what was not read makes the kernel reset the connection
        }
    }
    let mut headers = BTreeMap::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let mut body = Vec::new();
    if let Some(n) = headers.get("content-length").and_then(|n| n.parse().ok()) {
        reader.take(n).read_to_end(&mut body)?;
    } else if headers.contains_key("transfer-encoding") {
        body = unchunked(&mut reader)?;
    }
    let body = serde_json::from_slice(&body).unwrap_or_default();
    {
        let mut state = shared.0.lock().unwrap();
        state.asked.push(Asked { line, headers, body });
        if !is_models {
            state.under_way += 1;
            state.most = state.most.max(state.under_way);
        }
        shared.1.notify_all();
    }
    answer(&mut stream, act, shared, (!is_models).then(|| UnderWay(shared)))
}

/// A request that is under way until this is dropped.
struct UnderWay<'a>(&'a (Mutex<State>, Condvar));

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.0.lock().unwrap().under_way -= 1;
    }
}

fn unchunked(reader: &mut impl BufRead) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let mut size = String::new();
        reader.read_line(&mut size)?;
        let n = u64::from_str_radix(size.trim(), 16).unwrap_or(0);
        reader.by_ref().take(n).read_to_end(&mut all)?;
        reader.read_line(&mut size)?;
        if n == 0 {
            return Ok(all);
        }
    }
}

fn answer(
    stream: &mut TcpStream,
    act: Act,
    shared: &(Mutex<State>, Condvar),
    under_way: Option<UnderWay<'_>>,
) -> std::io::Result<()> {
    let (status, headers, body) = match act {
        Act::Answer(status, headers, body) => (status, headers, body),
        Act::Torn(body) => {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len() + 100);
            return stream.write_all((head + &body).as_bytes());
        }
        Act::Silence => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")?;
            let _ = stream.read(&mut [0]); // until the client gives up
            return Ok(());
        }
        Act::Together(n) => {
            let state = shared.0.lock().unwrap();
            let (_state, timeout) = shared.1.wait_timeout_while(state, PATIENCE, |s| s.most < n).unwrap();
            assert!(!timeout.timed_out(), "{n} requests were never under way at once");
            (200, "", chat("together").to_string())
        }
        Act::Reset => return Ok(()),
    };
    // Whoever has read the answer may ask again before this thread goes on.
    drop(under_way);
    write!(
        stream,
        "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n{headers}\r\n{body}",
        body.len()
    )
}

/// A question about a text.
pub(crate) fn request(id: &str, chat: bool) -> Request {
    Request {
        id: id.into(),
        document: "d".into(),
        prompt: Prompt {
            context: "A long text about dogs.".into(),
            instruction: "Who barks?".into(),
            template: "{context}\n\n{instruction}".into(),
            chat,
            ..Prompt::default()
        },
        generation: Generation { max_new_tokens: 16, ..Generation::default() },
    }
}
