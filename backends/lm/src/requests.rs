//! Between this crate's terms and those of the `Backend` trait.

use crate::batch::same;
use crate::{
    Desk, Finish, Generated, Generation, LmError, Queued, Result, Segment, Tokenizer, generate_queue,
};
use candle_core::Device;
use e2llm_backend::{BackendError, ErrorKind, FinishReason, Request, Response, TokenCounter, Usage};
use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

impl From<LmError> for BackendError {
    fn from(error: LmError) -> Self {
        match error {
            LmError::Cancelled => Self::cancelled(),
            LmError::Setting(message) => Self::new(ErrorKind::BadRequest, message),
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

/// Requests for each place that one is answered in, in a queue: their answers' different lengths leave a few of the last ones
/// with places to themselves, so that an eighth of the work may be done at less than full speed.
const QUEUE: usize = 8;
/// The same on a CPU, where an unfinished queue is minutes of work that a stopped run does again.
const QUEUE_ON_CPU: usize = 2;

/// How many requests to ask for to keep `at_once` of them under way on a device, see
/// [`Backend::queue`](e2llm_backend::Backend::queue).
pub fn queue_of(at_once: usize, device: &Device) -> usize {
    let each = if device.is_cpu() { QUEUE_ON_CPU } else { QUEUE };
    if at_once > 1 { each * at_once } else { 1 }
}

/// Answers requests, `at_once` of them at a time, each with the prompt that `prepare` makes of it, in their order, shortly
/// before there is a place for it. Those without one fail, and alone.
pub fn answer_queue(
    desk: Desk<'_>,
    requests: &[Request],
    at_once: usize,
    prepare: &mut dyn FnMut(usize) -> std::result::Result<Prepared, BackendError>,
) -> Vec<std::result::Result<Response, BackendError>> {
    let answers = RefCell::new(vec![None; requests.len()]);
    let made = RefCell::new(vec![(Usage::default(), Duration::ZERO); requests.len()]);
    let mut numbers = 0..requests.len();
    let mut next = || {
        loop {
            let number = numbers.next()?;
            match prepare(number) {
                Ok(Prepared { segments: prompt, usage, time }) => {
                    made.borrow_mut()[number] = (usage, time);
                    return Some(Queued { number, prompt, settings: Generation::of(&requests[number]) });
                }
                Err(error) => answers.borrow_mut()[number] = Some(Err(error)),
            }
        }
    };
    let mut done = |number: usize, answer: Result<Generated>| {
        let (usage, time) = std::mem::take(&mut made.borrow_mut()[number]);
        answers.borrow_mut()[number] = Some(match answer {
            Ok(answer) => Ok(answer.into_response(usage, time)),
            Err(error) => Err(error.into()),
        });
    };
    let ended = generate_queue(desk, at_once, &mut next, &mut done);
    let unanswered = || match &ended {
        Err(error) => same(error).into(),
        Ok(()) => BackendError::unanswered(),
    };
    answers.into_inner().into_iter().map(|answer| answer.unwrap_or_else(|| Err(unanswered()))).collect()
}

/// The device a backend was asked to run on.
///
/// # Errors
/// No such device, or a build without CUDA.
pub fn open_device(device: e2llm_backend::Device) -> Result<Device> {
    let opened = match device {
        e2llm_backend::Device::Cpu => Device::Cpu,
        e2llm_backend::Device::Cuda(_) if !candle_core::utils::cuda_is_available() => {
            return Err(LmError::Setting(format!(
                "device {device}: this build has no CUDA: build with `--features e2llm-harness/cuda`"
            )));
        }
        e2llm_backend::Device::Cuda(index) => Device::new_cuda(index).map_err(|e| {
            LmError::Unsupported(format!("device {device} cannot be used on this machine: {e}"))
        })?,
    };
    e2llm_kernels::keep_freed_memory(&opened)?;
    Ok(opened)
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
