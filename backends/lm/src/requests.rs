//! Between this crate's terms and those of the `Backend` trait.

use crate::{Ask, Finish, Generated, Generation, Llama, LmError, Result, Segment, Tokenizer, generate_batch};
use candle_core::Device;
use e2llm_backend::{BackendError, ErrorKind, FinishReason, Request, Response, TokenCounter, Usage};
use std::sync::Arc;
use std::time::Duration;

impl From<LmError> for BackendError {
    fn from(error: LmError) -> Self {
        match error {
            LmError::Cancelled => Self::cancelled(),
            LmError::TooLong { .. } => Self::new(ErrorKind::ContextTooLong, error.to_string()),
            other => Self::failed(&other),
        }
    }
}

impl From<Finish> for FinishReason {
    fn from(finish: Finish) -> Self {
        match finish {
            Finish::Eos => Self::Eos,
            Finish::Stop => Self::StopString,
            Finish::Length => Self::Length,
        }
    }
}

impl Generation {
    /// How the answer to `request` is to be generated.
    pub fn of(request: &Request) -> Self {
        let g = &request.generation;
        Self {
            max_new_tokens: g.max_new_tokens,
            temperature: g.temperature,
            top_p: g.top_p,
            seed: g.seed,
            stop: request.prompt.stop.iter().filter(|s| !s.is_empty()).cloned().collect(),
        }
    }
}

impl Generated {
    /// The answer as a response: `usage` says what became of the prompt, `before` how long it took to make it.
    pub fn into_response(self, usage: Usage, before: Duration) -> Response {
        let usage = Usage {
            generated_tokens: self.ids.len() as u64,
            time_to_first_token: (before + self.time_to_first_token).as_secs_f64(),
            decode_time: self.decode_time.as_secs_f64(),
            ..usage
        };
        Response { text: self.text, finish: self.finish.into(), usage }
    }
}

/// A request's prompt as the decoder reads it.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The prompt.
    pub segments: Vec<Segment>,
    /// What became of the request's context.
    pub usage: Usage,
    /// How long that took.
    pub time: Duration,
}

/// Answers requests side by side, each with the prompt that was made of it. Those without one have failed already, and
/// alone.
pub fn answer_batch(
    llama: &Llama,
    tokenizer: &Tokenizer,
    eos_ids: &[u32],
    requests: &[Request],
    prompts: Vec<std::result::Result<Prepared, BackendError>>,
    cancelled: &dyn Fn() -> bool,
) -> Vec<std::result::Result<Response, BackendError>> {
    let settings: Vec<_> = requests.iter().map(Generation::of).collect();
    let ready = prompts
        .iter()
        .zip(&settings)
        .filter_map(|(prompt, settings)| prompt.as_ref().ok().map(|p| Ask { prompt: &p.segments, settings }));
    let asks: Vec<_> = ready.collect();
    let mut answers = generate_batch(llama, Some(tokenizer), eos_ids, &asks, cancelled).into_iter();
    let unanswered = || LmError::Input("a prompt was left unanswered".to_owned());
    let answer = |prompt: std::result::Result<Prepared, BackendError>| {
        let Prepared { usage, time, .. } = prompt?;
        let answer = answers.next().unwrap_or_else(|| Err(unanswered()))?;
        Ok(answer.into_response(usage, time))
    };
    prompts.into_iter().map(answer).collect()
}

/// The device a backend was asked to run on.
///
/// # Errors
/// No such device, or a build without CUDA.
pub fn open_device(device: e2llm_backend::Device) -> Result<Device> {
    match device {
        e2llm_backend::Device::Cpu => Ok(Device::Cpu),
        e2llm_backend::Device::Cuda(index) => {
            let opened = Device::new_cuda(index).map_err(|e| {
                LmError::Unsupported(format!("device {device} cannot be used by this build or machine: {e}"))
            })?;
            e2llm_kernels::keep_freed_memory(&opened)?;
            Ok(opened)
        }
    }
}

/// Counts tokens without special ones. Text the tokenizer refuses is counted by its bytes: no token is shorter.
pub fn token_counter(tokenizer: &Arc<Tokenizer>) -> TokenCounter {
    let tokenizer = Arc::clone(tokenizer);
    Arc::new(move |text| tokenizer.encode(text, false).map_or(text.len(), |ids| ids.len()))
}

/// Ids of the continuations of a prompt, for [`score_continuations`](crate::score_continuations).
///
/// # Errors
/// A continuation that has no token.
pub fn continuation_ids(
    tokenizer: &Tokenizer,
    choices: &[String],
) -> std::result::Result<Vec<Vec<u32>>, BackendError> {
    let ids = |choice: &String| {
        let ids = tokenizer.encode(choice, false)?;
        if ids.is_empty() {
            return Err(BackendError::new(
                ErrorKind::BadRequest,
                format!("the choice {choice:?} has no token"),
            ));
        }
        Ok(ids)
    };
    choices.iter().map(ids).collect()
}
