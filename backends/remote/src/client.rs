//! Sending a request until it is answered, refused for good, or given up.

use crate::address::Address;
use crate::key::Key;
use crate::refusal::Refusal;
use crate::retry::{self, Retry};
use e2llm_backend::{BackendError, CancelFlag, ErrorKind};
use serde_json::Value;
use std::fmt::Display;
use std::io::{BufReader, Read};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use ureq::http::Response;
use ureq::{Agent, Body};

/// No reply is larger: the log-probabilities of a million tokens fit.
const LARGEST_REPLY: u64 = 512 << 20;
/// A server that is there is connected to sooner.
const CONNECT: Duration = Duration::from_secs(30);
/// How often waiting looks at the cancel flag.
const TICK: Duration = Duration::from_millis(20);

/// What became of one attempt.
enum Attempt<T> {
    Done(T),
    /// Worth another attempt, after what the server asks for.
    Passing(String, Option<Duration>),
    Final(BackendError),
}

/// A reply that cannot be used; another attempt may give a better one.
#[derive(Debug)]
pub(crate) struct Malformed(pub(crate) String);

/// Reads a reply as it comes.
pub(crate) type ReadReply<'a, T> = &'a dyn Fn(&mut BufReader<&mut dyn Read>) -> Result<T, Malformed>;

/// An HTTP client of one server.
#[derive(Debug)]
pub(crate) struct Client {
    agent: Agent,
    address: Address,
    key: Key,
    retry: Retry,
    cancel: CancelFlag,
    /// Nothing is sent before this: when the server asked one request to wait, it meant all.
    not_before: Mutex<Option<Instant>>,
}

impl Client {
    /// A client whose attempts take at most `timeout` each.
    pub(crate) fn new(
        address: Address,
        key: Key,
        retry: Retry,
        timeout: Duration,
        cancel: CancelFlag,
    ) -> Self {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(timeout))
            .timeout_connect(Some(CONNECT.min(timeout)))
            .user_agent(concat!("e2llm-bench/", env!("CARGO_PKG_VERSION")));
        if address.is_loopback() {
            config = config.proxy(None);
        }
        Self { agent: config.build().new_agent(), address, key, retry, cancel, not_before: Mutex::new(None) }
    }

    /// Posts `body` to an endpoint for the request `id` and reads the reply.
    ///
    /// # Errors
    /// The server's final refusal, or the last of all attempts; [`ErrorKind::Cancelled`].
    pub(crate) fn post<T>(
        &self,
        endpoint: &str,
        body: &Value,
        id: &str,
        read: ReadReply<'_, T>,
    ) -> Result<T, BackendError> {
        let url = self.address.url(endpoint);
        let send = || {
            let request = self.agent.post(&url);
            match self.key.authorization() {
                Some(key) => request.header("authorization", key).send_json(body),
                None => request.send_json(body),
            }
        };
        self.attempts(&url, id, &send, read)
    }

    /// Gets an endpoint.
    ///
    /// # Errors
    /// As [`Client::post`].
    pub(crate) fn get<T>(&self, endpoint: &str, read: ReadReply<'_, T>) -> Result<T, BackendError> {
        let url = self.address.url(endpoint);
        let send = || {
            let request = self.agent.get(&url);
            match self.key.authorization() {
                Some(key) => request.header("authorization", key).call(),
                None => request.call(),
            }
        };
        self.attempts(&url, endpoint, &send, read)
    }

    fn attempts<T>(
        &self,
        url: &str,
        id: &str,
        send: &dyn Fn() -> Result<Response<Body>, ureq::Error>,
        read: ReadReply<'_, T>,
    ) -> Result<T, BackendError> {
        let mut attempt = 0;
        loop {
            self.wait_for_gate()?;
            let (why, asked) = match self.attempt(url, send, read) {
                Attempt::Done(reply) => return Ok(reply),
                Attempt::Final(error) => return Err(error),
                Attempt::Passing(why, asked) => (why, asked),
            };
            self.cancel.check()?;
            if attempt == self.retry.retries {
                let message = format!("{why} (given up after {} attempts)", attempt + 1);
                return Err(self.failed(&message));
            }
            let Some(wait) = self.retry.wait(id, attempt, asked) else {
                let (asked, most) = (asked.unwrap_or_default(), self.retry.longest_asked);
                let message = format!(
                    "{why}; the server asks to wait {} s, more than the {} s of max_wait_s",
                    asked.as_secs(),
                    most.as_secs()
                );
                return Err(self.failed(&message));
            };
            tracing::info!("{}", self.key.redact(&format!("{why}; again in {wait:.1?}")));
            if asked.is_some() {
                self.close_gate(wait);
            }
            self.sleep_until(Instant::now() + wait)?;
            attempt += 1;
        }
    }

    fn attempt<T>(
        &self,
        url: &str,
        send: &dyn Fn() -> Result<Response<Body>, ureq::Error>,
        read: ReadReply<'_, T>,
    ) -> Attempt<T> {
        let mut response = match send() {
            Ok(response) => response,
            Err(error) => return self.unsent(url, &error),
        };
        let status = response.status().as_u16();
        let asked = retry::asked(response.headers(), SystemTime::now());
        let mut reader = response.body_mut().with_config().limit(LARGEST_REPLY).reader();
        if (200..300).contains(&status) {
            return match read(&mut BufReader::new(&mut reader)) {
                Ok(reply) => Attempt::Done(reply),
                Err(Malformed(what)) => {
                    Attempt::Passing(format!("{url} answered {status}, but {what}"), None)
                }
            };
        }
        let mut body = Vec::new();
        // What came of a body that broke off still says something.
        let _ = reader.take(1 << 20).read_to_end(&mut body);
        let refusal = Refusal::read(status, &self.key.redact(&String::from_utf8_lossy(&body)));
        let passing = refusal.is_passing();
        let error = refusal.into_error(url, self.key.variable(), self.key.is_some());
        if passing { Attempt::Passing(error.message, asked) } else { Attempt::Final(error) }
    }

    /// No reply at all.
    fn unsent<T>(&self, url: &str, error: &ureq::Error) -> Attempt<T> {
        use ureq::Error;
        let message = format!("{url} did not answer: {error}");
        match error {
            Error::Io(_)
            | Error::Timeout(_)
            | Error::ConnectionFailed
            | Error::HostNotFound
            | Error::Protocol(_)
            | Error::BodyStalled => Attempt::Passing(message, None),
            _ => Attempt::Final(self.failed(&message)),
        }
    }

    fn failed(&self, message: &dyn Display) -> BackendError {
        BackendError::new(ErrorKind::Failed, self.key.redact(&message.to_string()))
    }

    fn close_gate(&self, wait: Duration) {
        let until = Instant::now() + wait;
        let mut gate = self.not_before.lock().unwrap_or_else(PoisonError::into_inner);
        *gate = Some(gate.map_or(until, |g| g.max(until)));
    }

    fn wait_for_gate(&self) -> Result<(), BackendError> {
        let until = *self.not_before.lock().unwrap_or_else(PoisonError::into_inner);
        until.map_or_else(|| self.cancel.check(), |until| self.sleep_until(until))
    }

    fn sleep_until(&self, until: Instant) -> Result<(), BackendError> {
        loop {
            self.cancel.check()?;
            match until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
                Some(left) => std::thread::sleep(left.min(TICK)),
                None => return Ok(()),
            }
        }
    }
}
