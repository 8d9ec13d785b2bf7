//! The trait itself.

use crate::{BackendError, Choice, ErrorKind, Request, Response};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Who answers: shown in every report.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BackendInfo {
    /// Registry name, e.g. `e2llm`.
    pub name: String,
    /// Model name or path, e.g. `e2llm-135m`.
    pub model: String,
    /// All parameters.
    pub parameters: u64,
    /// Parameters trained for this method.
    pub trained_parameters: u64,
    /// Positions the decoder can read, where bounded.
    pub window: Option<u64>,
    /// Element type of the weights, e.g. `f32`.
    pub dtype: String,
    /// Where it runs, e.g. `cpu`.
    pub device: String,
    /// How a context that does not fit is shortened, e.g. `middle-longbench-v2`; `none` where it never is.
    pub truncation: String,
    /// Hash of weights, configuration and code version: part of every sample key.
    pub fingerprint: String,
    /// The chat template's hash, where the model has one.
    pub chat_template: Option<String>,
    /// What a reader of a result must know, e.g. that an adapter is untrained.
    pub warnings: Vec<String>,
}

/// Counts tokens as the backend's decoder does, without special tokens.
pub type TokenCounter = Arc<dyn Fn(&str) -> usize + Send + Sync>;

/// A long-context method.
pub trait Backend: Send {
    /// Who answers.
    fn info(&self) -> &BackendInfo;

    /// Answers each request; one result per request, in order. A failing request fails alone.
    fn generate(&mut self, batch: &[Request]) -> Vec<Result<Response, BackendError>>;

    /// As [`Backend::generate`], with `at_once` requests under way at a time, so that there may be more of them. Where
    /// answers are written together, the next request takes the place of one that has ended.
    fn generate_queue(&mut self, queue: &[Request], at_once: usize) -> Vec<Result<Response, BackendError>> {
        let mut answers = Vec::with_capacity(queue.len());
        for batch in queue.chunks(at_once.max(1)) {
            let mut of_batch = self.generate(batch);
            of_batch.resize_with(batch.len(), || Err(BackendError::unanswered()));
            answers.append(&mut of_batch);
        }
        answers
    }

    /// How many requests it likes to get in a queue to keep `at_once` of them under way. They are answered or asked again
    /// together where a run was stopped among them.
    fn queue(&self, at_once: usize) -> usize {
        at_once
    }

    /// Log-likelihood of each of `choices` as the answer.
    fn choose(&mut self, request: &Request, choices: &[String]) -> Result<Choice, BackendError> {
        let _ = choices;
        let message = format!("backend `{}` cannot score choices (request {})", self.info().name, request.id);
        Err(BackendError::new(ErrorKind::Unsupported, message))
    }

    /// How many requests it likes to get at once, where the run does not say; `None` leaves it to the device.
    fn preferred_batch(&self) -> Option<usize> {
        None
    }

    /// The decoder's token counter, where there is one.
    fn token_counter(&self) -> Option<TokenCounter> {
        None
    }
}

/// Set by Ctrl-C; backends look at it between tokens.
#[derive(Debug, Clone, Default)]
pub struct CancelFlag(Arc<AtomicBool>);

impl CancelFlag {
    /// Asks everything that holds this flag to stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether to stop.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// An error where cancelled.
    ///
    /// # Errors
    /// [`ErrorKind::Cancelled`] once [`CancelFlag::cancel`] was called.
    pub fn check(&self) -> Result<(), BackendError> {
        if self.is_cancelled() { Err(BackendError::cancelled()) } else { Ok(()) }
    }
}
