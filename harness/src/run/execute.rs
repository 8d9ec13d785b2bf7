//! Answering, scoring and storing the samples of a plan.

use super::plan::{self, TaskPlan};
use super::progress::Reporter;
use crate::config::RunSettings;
use crate::failure::{Failure, Result};
use crate::measure::{PeakMemory, memory_of};
use crate::store::{Outcome, RunFolder, SampleRecord, SampleWriter};
use e2llm_backend::{Backend, BackendError, CancelFlag, ErrorKind, FinishReason, Request, Response};
use e2llm_plugin::{Example, OutputKind, Prediction, Prompt};
use std::collections::BTreeMap;

/// A dialogue of more turns than this is a plugin that never ends.
const MOST_TURNS: u32 = 16;
/// Larger values of an example's meta are not kept in the store.
const LARGEST_META: usize = 8 << 10;

type Answer = std::result::Result<Response, BackendError>;

struct Run<'a> {
    settings: &'a RunSettings,
    plan: &'a TaskPlan,
    backend: &'a mut dyn Backend,
    cancel: &'a CancelFlag,
    /// Where the model is here and not on a server.
    memory: Option<Box<dyn PeakMemory>>,
    writer: SampleWriter,
    reporter: Reporter,
    /// Samples that ended in errors.
    errors: u64,
}

/// Runs what is not in the folder yet. `planned` is how many samples the backend is to have under way at once; it gets them in
/// queues as long as it likes. `batch` is how many it has in fact, which shrinks for good when memory runs out.
///
/// # Errors
/// An interrupt, a store that cannot be written, data that has changed. A sample's error is a result, not an error.
#[expect(clippy::too_many_arguments, reason = "each is another owner's")]
pub fn execute(
    settings: &RunSettings,
    plan: &TaskPlan,
    backend: &mut dyn Backend,
    folder: &RunFolder,
    planned: usize,
    batch: &mut usize,
    quiet: bool,
    cancel: &CancelFlag,
) -> Result<()> {
    // of samples that are finished: whether they failed
    let mut done: Vec<Option<bool>> = vec![None; plan.samples.len()];
    let writer = folder.append(&plan.entry.id, |sample| {
        let index = sample.index as usize;
        // of several at one place the last counts, as for results
        if let Some(planned) = plan.samples.get(index) {
            done[index] = (planned.key() == sample.key).then(|| sample.failed());
        }
    })?;
    let primary = &plan.entry.primary_metric;
    let parts = plan.task.metrics.parts(primary);
    let reporter = Reporter::new(&plan.entry.id, plan.entry.samples, primary, parts, quiet);
    let needs_model = super::backends::find(&super::backends::registry(), &settings.backend)?.needs_model;
    let memory = if needs_model { Some(memory_of(settings.device)?) } else { None };
    let mut run = Run { settings, plan, backend, cancel, memory, writer, reporter, errors: 0 };
    let mut examples = plan.examples()?;
    // Choices are scored one by one.
    let queue = if plan.task.info.output.is_choice() { planned } else { run.backend.queue(planned).max(1) };
    // a queue that was not finished is redone whole: batching then changes no result
    let kept = |start: usize, n: usize| -> Option<Vec<bool>> {
        done[start * queue..][..n].iter().copied().collect()
    };
    let queues = || plan.samples.chunks(queue).enumerate();
    let before: usize = queues().filter_map(|(i, keys)| kept(i, keys.len())).map(|done| done.len()).sum();
    run.reporter.resumed(before as u64);
    for (start, keys) in queues() {
        let mut part = Vec::with_capacity(keys.len());
        for _ in keys {
            let gone =
                || Failure::failed(format!("task `{}`: its data has changed during the run", plan.entry.id));
            part.push(examples.next().ok_or_else(gone)??);
        }
        if let Some(done) = kept(start, keys.len()) {
            run.errors += done.iter().filter(|failed| **failed).count() as u64;
            continue;
        }
        run.queue(start * queue, part, batch)?;
    }
    run.reporter.finish();
    run.writer.sync()
}

impl Run<'_> {
    fn queue(&mut self, first: usize, examples: Vec<Example>, batch: &mut usize) -> Result<()> {
        let prompts: Vec<Prompt> =
            examples.iter().map(|e| self.plan.task.client.prompt(e)).collect::<e2llm_plugin::Result<_>>()?;
        let stored_prompts: Vec<Option<String>> =
            prompts.iter().map(|p| self.settings.store_prompts.then(|| rendered(p))).collect();
        let answers = self.answer(&examples, prompts, batch)?;
        for (i, ((example, answer), prompt)) in
            examples.into_iter().zip(answers).zip(stored_prompts).enumerate()
        {
            let record = self.record(first + i, example, answer, prompt);
            if record.failed() {
                self.errors += 1;
                if self.errors == 1 {
                    self.reporter.warn(&format!("sample {} failed: {}", record.id, first_error(&record)));
                }
            }
            self.writer.append(&record)?;
            self.reporter.sample(&record.scores);
        }
        Ok(())
    }

    /// All turns of a queue of samples.
    fn answer(
        &mut self,
        examples: &[Example],
        prompts: Vec<Prompt>,
        batch: &mut usize,
    ) -> Result<Vec<Answer>> {
        let mut answers: Vec<Option<Answer>> = examples.iter().map(|_| None).collect();
        let mut open: Vec<(usize, Prompt)> = prompts.into_iter().enumerate().collect();
        for turn in 1..=MOST_TURNS {
            if open.is_empty() {
                break;
            }
            let responses = self.turn(examples, &open, batch)?;
            let mut next = Vec::new();
            for ((i, _), response) in open.into_iter().zip(responses) {
                let mut response = match response {
                    Ok(response) => response,
                    Err(e) => {
                        answers[i] = Some(Err(e));
                        continue;
                    }
                };
                if let Some(Ok(before)) = &answers[i] {
                    response.usage.add(&before.usage);
                }
                let next_turn = self.plan.task.client.next_turn(&examples[i], &response.text, turn);
                answers[i] = Some(match next_turn {
                    Ok(prompt) => {
                        next.extend(prompt.map(|p| (i, p)));
                        Ok(response)
                    }
                    Err(e) => Err(BackendError::new(ErrorKind::Failed, e.message)),
                });
            }
            open = next;
        }
        if !open.is_empty() {
            return Err(Failure::failed(format!(
                "task `{}`: sample {} has more than {MOST_TURNS} turns",
                self.plan.entry.id, examples[open[0].0].id
            )));
        }
        let missing = || BackendError::new(ErrorKind::Failed, "the sample was not answered");
        Ok(answers.into_iter().map(|a| a.unwrap_or_else(|| Err(missing()))).collect())
    }

    /// One turn of a queue. Where memory does not suffice, it goes on from there with fewer at once.
    fn turn(
        &mut self,
        examples: &[Example],
        open: &[(usize, Prompt)],
        batch: &mut usize,
    ) -> Result<Vec<Answer>> {
        let mut responses = Vec::with_capacity(open.len());
        while responses.len() < open.len() {
            let part = &open[responses.len()..];
            let mut answered = self.ask(examples, part, *batch);
            if answered.iter().any(|r| matches!(r, Err(e) if e.kind == ErrorKind::Cancelled))
                || self.cancel.is_cancelled()
            {
                return Err(Failure::interrupted("interrupted"));
            }
            let exhausted = |r: &Answer| matches!(r, Err(e) if e.kind == ErrorKind::OutOfMemory);
            let at_once = part.len().min(*batch);
            if at_once > 1
                && let Some(first) = answered.iter().position(exhausted)
            {
                *batch = (at_once / 2).max(1);
                self.reporter.warn(&format!("out of memory: going on with {batch} requests at once"));
                answered.truncate(first);
                responses.append(&mut answered);
                continue;
            }
            answered.truncate(part.len());
            let short = part.len() - answered.len();
            answered.extend((0..short).map(|_| Err(BackendError::unanswered())));
            responses.append(&mut answered);
        }
        Ok(responses)
    }

    /// The answers, with the peak of memory of all of them in each.
    fn ask(&mut self, examples: &[Example], part: &[(usize, Prompt)], at_once: usize) -> Vec<Answer> {
        if let Some(memory) = &mut self.memory {
            memory.reset();
        }
        let mut answers = self.answers(examples, part, at_once);
        if let Some(peak) = self.memory.as_mut().and_then(|memory| memory.peak()) {
            for answer in answers.iter_mut().flatten() {
                answer.usage.peak_memory.get_or_insert(peak);
            }
        }
        answers
    }

    fn answers(&mut self, examples: &[Example], part: &[(usize, Prompt)], at_once: usize) -> Vec<Answer> {
        let requests: Vec<Request> =
            part.iter().map(|(i, p)| plan::request(self.settings, &examples[*i], p.clone())).collect();
        let output = self.plan.task.info.output;
        if !output.is_choice() {
            return self.backend.generate_queue(&requests, at_once);
        }
        let choose = |(request, (_, prompt)): (&Request, &(usize, Prompt))| {
            let choice = self.backend.choose(request, &prompt.choices)?;
            let best = if output == OutputKind::ChooseNormalised {
                let lengths: Vec<_> = prompt.choices.iter().map(|c| c.chars().count()).collect();
                choice.best_per(&lengths)
            } else {
                choice.best()
            };
            let text = best.and_then(|b| prompt.choices.get(b)).cloned();
            let text =
                text.ok_or_else(|| BackendError::new(ErrorKind::BadRequest, "the prompt has no choices"))?;
            Ok(Response { text, finish: FinishReason::Chosen, usage: choice.usage })
        };
        requests.iter().zip(part).map(choose).collect()
    }

    fn record(&self, index: usize, example: Example, answer: Answer, prompt: Option<String>) -> SampleRecord {
        let task = &self.plan.task;
        let outcome = match answer {
            Err(e) => Outcome::Failed(e),
            Ok(Response { text, finish, usage }) => match task.client.extract(&example, &text) {
                Ok(prediction) => Outcome::Answered { response: text, prediction, finish, usage },
                Err(e) => Outcome::Failed(BackendError::new(ErrorKind::Failed, e.message)),
            },
        };
        let mut meta = example.meta;
        let slices = slices(&meta, &task.info.slices);
        meta.retain(|_, v| serde_json::to_string(v).is_ok_and(|s| s.len() <= LARGEST_META));
        let mut record = SampleRecord {
            key: self.plan.samples[index].key(),
            index: index as u64,
            id: example.id,
            group: example.group,
            slices,
            instruction: example.instruction,
            references: example.references,
            meta,
            outcome,
            scores: BTreeMap::new(),
            score_error: None,
            prompt,
        };
        task.metrics.rescore(&mut record);
        record
    }
}

/// Texts, numbers and booleans of the slice keys.
fn slices(meta: &serde_json::Map<String, serde_json::Value>, keys: &[String]) -> BTreeMap<String, String> {
    let value = |k: &String| match meta.get(k)? {
        serde_json::Value::String(s) => Some((k.clone(), s.clone())),
        v @ (serde_json::Value::Number(_) | serde_json::Value::Bool(_)) => Some((k.clone(), v.to_string())),
        _ => None,
    };
    keys.iter().filter_map(value).collect()
}

fn rendered(prompt: &Prompt) -> String {
    let prompt = prompt.clone();
    let text = e2llm_backend::Prompt {
        context: prompt.context,
        instruction: prompt.instruction,
        template: prompt.template,
        ..e2llm_backend::Prompt::default()
    };
    text.render() + &prompt.answer_prefix
}

fn first_error(record: &SampleRecord) -> String {
    match (&record.score_error, &record.outcome) {
        (Some(e), _) => e.clone(),
        (None, Outcome::Failed(e)) => e.message.clone(),
        (None, Outcome::Answered { prediction: Prediction { .. }, .. }) => String::new(),
    }
}
