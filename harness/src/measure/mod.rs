//! A backend's time and memory as functions of the context's length.
//!
//! ```text
//! lengths --filler--> contexts --Backend--> Usage + resident memory --> Point* --> CSV, SVG
//! ```
//!
//! The whole backend is measured, as a run uses it: tokenising, retrieval, encoding, generation. Contexts are random
//! sentences, another one for every repeat, so that nothing is answered out of a cache.

mod filler;
mod memory;
mod report;

pub use filler::filler;
pub use memory::{DeviceMemory, PeakMemory, ResidentMemory, memory_of};
pub use report::{points_csv, points_svg};

use crate::failure::{Failure, Result};
use e2llm_backend::{Backend, BackendError, ErrorKind, Generation, Prompt, Request, Response};
use serde::Serialize;

/// What is measured.
#[derive(Debug, Clone)]
pub struct MeasureSettings {
    /// Lengths of contexts in the backend's tokens, in the order of measuring.
    pub lengths: Vec<usize>,
    /// Tokens of an answer, at most.
    pub new_tokens: usize,
    /// Contexts of each length, at least 1; the median counts.
    pub repeats: usize,
    /// Seed of the contexts.
    pub seed: u64,
}

/// What a context of some length took.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Point {
    /// Tokens asked for.
    pub length: usize,
    /// Tokens of the context, as the backend counted them; absent, as all other figures, where there is an error.
    pub context_tokens: Option<u64>,
    /// Positions that the decoder read before its first own token.
    pub prompt_tokens: Option<u64>,
    /// Seconds to the first token.
    pub time_to_first_token: Option<f64>,
    /// Seconds per token after the first; absent where there is none.
    pub seconds_per_token: Option<f64>,
    /// Most memory in bytes while it was answered: the backend's figure, else the process's resident memory.
    pub peak_memory: Option<u64>,
    /// Why there are no figures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Measures a backend at each length. A length that fails has an error instead of figures, and where memory ran out or
/// the window is too short, longer ones are not tried.
///
/// # Errors
/// A backend that cannot count tokens; an interrupt.
pub fn measure(
    backend: &mut dyn Backend,
    settings: &MeasureSettings,
    memory: &mut dyn PeakMemory,
    mut done: impl FnMut(&Point),
) -> Result<Vec<Point>> {
    let Some(counter) = backend.token_counter() else {
        let name = &backend.info().name;
        return Err(Failure::usage(format!(
            "backend `{name}` cannot count tokens, so no lengths can be set"
        )));
    };
    let mut points: Vec<Point> = Vec::new();
    let mut warm = false;
    for &length in &settings.lengths {
        let hopeless = points.iter().find(|p| p.length <= length && p.error.is_some());
        if let Some(error) = hopeless.and_then(|p| p.error.clone()) {
            let point = Point { length, error: Some(format!("not tried: {error}")), ..Point::default() };
            done(&point);
            points.push(point);
            continue;
        }
        let mut runs = Vec::new();
        // the very first answer also reads weights from the disk and compiles kernels
        for repeat in 0..settings.repeats + usize::from(!warm) {
            let context = filler(&counter, length, settings.seed.wrapping_add(repeat as u64));
            memory.reset();
            let answered = backend.generate(&[request(context, settings, length, repeat)]).pop();
            let missing = || Err(BackendError::new(ErrorKind::Failed, "the backend gave no answer"));
            runs.push((answered.unwrap_or_else(missing), memory.peak()));
            if !warm {
                warm = true;
                runs.clear();
            }
        }
        let point = point(length, runs)?;
        done(&point);
        points.push(point);
    }
    Ok(points)
}

fn request(context: String, settings: &MeasureSettings, length: usize, repeat: usize) -> Request {
    Request {
        id: format!("{length}-{repeat}"),
        document: format!("{length}-{repeat}"),
        prompt: Prompt {
            context,
            instruction: "What happens in this text? Tell it at length.".into(),
            template: "{context}\n\n{instruction}".into(),
            chat: true,
            ..Prompt::default()
        },
        generation: Generation { max_new_tokens: settings.new_tokens, ..Generation::default() },
    }
}

type Run = (std::result::Result<Response, BackendError>, Option<u64>);

/// The median run of a length; the highest peak of all.
fn point(length: usize, runs: Vec<Run>) -> Result<Point> {
    let mut answered = Vec::new();
    let mut highest = None;
    for (result, peak) in runs {
        match result {
            Ok(response) => {
                highest = highest.max(response.usage.peak_memory.or(peak));
                answered.push(response.usage);
            }
            Err(e) if e.kind == ErrorKind::Cancelled => return Err(e.into()),
            Err(e) => return Ok(Point { length, error: Some(e.message), ..Point::default() }),
        }
    }
    answered.sort_by(|a, b| a.time_to_first_token.total_cmp(&b.time_to_first_token));
    let median = answered.len() / 2;
    let Some(usage) = answered.into_iter().nth(median) else {
        return Err(Failure::failed("nothing was measured"));
    };
    let later = usage.generated_tokens.saturating_sub(1);
    let timed = later > 0 && usage.decode_time > 0.0;
    Ok(Point {
        length,
        context_tokens: Some(usage.context_tokens),
        prompt_tokens: Some(usage.prompt_tokens),
        time_to_first_token: Some(usage.time_to_first_token),
        seconds_per_token: timed.then(|| usage.decode_time / later as f64),
        peak_memory: highest,
        error: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use e2llm_backend::{BackendInfo, FinishReason, TokenCounter, Usage};
    use std::sync::Arc;

    /// Takes a millisecond per token to read and two to write, in no time at all; has a window of 1000.
    #[derive(Default)]
    struct Modelled {
        info: BackendInfo,
        contexts: Vec<String>,
    }

    impl Backend for Modelled {
        fn info(&self) -> &BackendInfo {
            &self.info
        }

        fn generate(&mut self, batch: &[Request]) -> Vec<std::result::Result<Response, BackendError>> {
            let answer = |r: &Request| {
                let n = r.prompt.context.split_whitespace().count() as u64;
                if n > 1000 {
                    return Err(BackendError::new(ErrorKind::ContextTooLong, "window 1000"));
                }
                let usage = Usage {
                    context_tokens: n,
                    prompt_tokens: n + 9,
                    generated_tokens: r.generation.max_new_tokens as u64,
                    time_to_first_token: n as f64 / 1000.0,
                    decode_time: 0.002 * (r.generation.max_new_tokens - 1) as f64,
                    ..Usage::default()
                };
                Ok(Response { text: String::new(), finish: FinishReason::Length, usage })
            };
            self.contexts.extend(batch.iter().map(|r| r.prompt.context.clone()));
            batch.iter().map(answer).collect()
        }

        fn token_counter(&self) -> Option<TokenCounter> {
            Some(Arc::new(|text| text.split_whitespace().count()))
        }
    }

    struct Fixed;

    impl PeakMemory for Fixed {
        fn reset(&mut self) {}

        fn peak(&mut self) -> Option<u64> {
            Some(1 << 20)
        }
    }

    #[test]
    fn each_length_has_its_figures_or_its_error() {
        let mut backend = Modelled::default();
        let settings =
            MeasureSettings { lengths: vec![100, 800, 2000, 4000], new_tokens: 5, repeats: 3, seed: 1 };
        let mut told = 0;
        let points = measure(&mut backend, &settings, &mut Fixed, |_| told += 1).unwrap();
        assert_eq!((points.len(), told), (4, 4));
        for (point, length) in points[..2].iter().zip([100, 800]) {
            let tokens = point.context_tokens.unwrap();
            assert!(tokens.abs_diff(length) < 20, "{point:?}");
            assert_eq!(point.time_to_first_token, Some(tokens as f64 / 1000.0));
            assert!((point.seconds_per_token.unwrap() - 0.002).abs() < 1e-12);
            assert_eq!(point.peak_memory, Some(1 << 20));
        }
        assert_eq!(points[2].error.as_deref(), Some("window 1000"));
        assert_eq!((points[2].context_tokens, points[2].time_to_first_token), (None, None));
        assert_eq!(points[3].error.as_deref(), Some("not tried: window 1000"));
        // one unmeasured answer first; no context is asked about twice in a row
        assert_eq!(backend.contexts.len(), 4 + 3 + 3);
        assert!(backend.contexts.windows(2).all(|w| w[0] != w[1]));
    }

    #[test]
    fn a_backend_that_cannot_count_is_refused_and_an_interrupt_ends_it() {
        struct Silent(BackendInfo);
        impl Backend for Silent {
            fn info(&self) -> &BackendInfo {
                &self.0
            }

            fn generate(&mut self, _: &[Request]) -> Vec<std::result::Result<Response, BackendError>> {
                Vec::new()
            }
        }
        let settings = MeasureSettings { lengths: vec![10], new_tokens: 2, repeats: 1, seed: 1 };
        assert!(measure(&mut Silent(BackendInfo::default()), &settings, &mut Fixed, |_| ()).is_err());
        assert!(point(10, vec![(Err(BackendError::cancelled()), None)]).is_err());
    }
}
