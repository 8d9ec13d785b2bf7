//! What a run will do, laid out before it starts: the same plan whether it is interrupted or not.

use super::tasks::OpenTask;
use super::trained_on::TrainedOn;
use crate::config::RunSettings;
use crate::data;
use crate::failure::{Failure, Result};
use crate::names::NameHash;
use crate::store::{FileUsed, TaskEntry};
use e2llm_backend::fingerprint::{hex, sha256_file};
use e2llm_backend::{CancelFlag, Fingerprint, Generation, Request};
use e2llm_plugin::{Error, ErrorCode, Example, Prompt};
use std::collections::{BTreeSet, HashSet};

/// One sample of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    key: [u8; 32],
}

impl Planned {
    /// Hash of all that decides the answer, in hexadecimal.
    pub fn key(&self) -> String {
        hex(&self.key)
    }
}

/// A task's part of the plan.
#[derive(Debug)]
pub struct TaskPlan {
    /// The task.
    pub task: OpenTask,
    /// Its samples in order.
    pub samples: Vec<Planned>,
    /// Its entry in the manifest.
    pub entry: TaskEntry,
    selection: Selection,
    /// Ids that were asked for and not found: in its data, or within its limit.
    missing: BTreeSet<String>,
}

/// Which examples of a source are run.
#[derive(Debug, Clone)]
struct Selection {
    ids: Option<BTreeSet<String>>,
    limit: Option<u64>,
}

impl Selection {
    fn new(settings: &RunSettings, task: &str) -> Self {
        let of_task = |s: &String| id_in(settings, task, s).map(str::to_owned);
        let ids = settings.samples.as_ref().map(|all| all.iter().filter_map(of_task).collect());
        Self { ids, limit: settings.limit }
    }

    fn examples<S>(self, stream: S) -> impl Iterator<Item = e2llm_plugin::Result<Example>> + use<S>
    where
        S: Iterator<Item = e2llm_plugin::Result<Example>>,
    {
        let limit = self.limit.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
        stream
            .filter(move |e| match (e, &self.ids) {
                (Ok(e), Some(ids)) => ids.contains(&e.id),
                _ => true,
            })
            .take(limit)
    }
}

/// The id that an entry of `--samples` has in a task; `None` where it names another task.
fn id_in<'a>(settings: &RunSettings, task: &str, asked: &'a str) -> Option<&'a str> {
    match asked.split_once(':') {
        Some((t, id)) if t == task => Some(id),
        Some((t, _)) if settings.tasks.iter().any(|x| x == t) => None,
        _ => Some(asked),
    }
}

/// Generation settings of a sample: the run's, with the prompt's length where the run sets none.
pub(super) fn generation(settings: &RunSettings, prompt: &Prompt, id: &str) -> Generation {
    Generation {
        max_new_tokens: settings.max_new_tokens.unwrap_or(prompt.max_new_tokens),
        temperature: settings.temperature,
        top_p: settings.top_p,
        seed: sample_seed(settings.seed, id),
    }
}

/// A seed per sample, so that neither order nor batching changes what is sampled.
fn sample_seed(seed: u64, id: &str) -> u64 {
    let hash = Fingerprint::new("sample-seed", &seed.to_string()).text("id", id).finish();
    u64::from_str_radix(&hash[..16], 16).unwrap_or(seed)
}

/// The request of an example's prompt.
pub(super) fn request(settings: &RunSettings, example: &Example, prompt: Prompt) -> Request {
    let generation = generation(settings, &prompt, &example.id);
    Request {
        id: example.id.clone(),
        document: example.group.clone(),
        prompt: e2llm_backend::Prompt {
            context: prompt.context,
            instruction: prompt.instruction,
            template: prompt.template,
            answer_prefix: prompt.answer_prefix,
            stop: prompt.stop,
            chat: prompt.chat,
        },
        generation,
    }
}

impl TaskPlan {
    /// Reads a task's source from end to end: every record, every prompt. `trained_on` is what the model was trained on,
    /// where that is known. `cancel` is looked at before every record.
    ///
    /// # Errors
    /// Data that is missing or broken; sample ids that do not exist or occur twice; an interrupt.
    pub fn new(
        task: OpenTask,
        settings: &RunSettings,
        backend_fingerprint: &str,
        trained_on: Option<&TrainedOn>,
        cancel: &CancelFlag,
    ) -> Result<Self> {
        let selection = Selection::new(settings, &task.info.id);
        let within =
            |e: e2llm_plugin::Error| Box::<Failure>::from(e).within(format!("task `{}`", task.info.id));
        let stream = task.client.open(&task.source).map_err(within)?;
        let files = stream
            .files
            .iter()
            .filter(|p| p.is_file())
            .map(|p| {
                let sha256 = sha256_file(p).map_err(|e| Failure::io("read", p, &e))?;
                Ok(FileUsed { path: p.display().to_string(), sha256 })
            })
            .collect::<Result<Vec<_>>>()?;
        let (mut samples, mut ids, mut wordings) = (Vec::new(), HashSet::new(), BTreeSet::new());
        let mut style = String::new();
        let mut seen_in_training = trained_on.map(|_| 0);
        let mut questions = Fingerprint::new("questions", "1");
        let stream = stream.map(|example| match cancel.is_cancelled() {
            true => Err(Error::new(ErrorCode::Cancelled, "interrupted while its samples were planned")),
            false => example,
        });
        for example in selection.clone().examples(stream) {
            let example = example.map_err(within)?;
            let prompt = task.client.prompt(&example).map_err(within)?;
            if !ids.insert(NameHash::of(&example.id)) {
                return Err(Failure::failed(format!(
                    "task `{}`: sample id `{}` occurs twice in its data",
                    task.info.id, example.id
                )));
            }
            if let (Some(n), Some(list)) = (&mut seen_in_training, trained_on) {
                *n += u64::from(list.has(&example.context) || list.has(&prompt.context));
            }
            let generation = generation(settings, &prompt, &example.id);
            let mut key = Fingerprint::new("sample", &format!("{}@{}", task.info.id, task.info.version));
            let (asked, references) = (json(&prompt)?, json(&example.references)?);
            questions.text("id", &example.id).text("prompt", &asked).text("references", &references);
            key.text("id", &example.id)
                .text("prompt", &asked)
                .text("references", &references)
                .text("backend", backend_fingerprint)
                .text("generation", &json(&generation)?)
                .text("plugin", &task.plugin_sha256);
            samples.push(Planned { key: key.digest() });
            // an official template is known by its own hash, which others can check; the beginning of an answer may
            // name what is asked, and a wording must not depend on which samples are run
            wordings.insert(if prompt.template_sha256.is_empty() {
                let begun = !prompt.answer_prefix.is_empty();
                json(&(&prompt.style, &prompt.template, &prompt.stop, begun))?
            } else {
                prompt.template_sha256
            });
            style = prompt.style;
        }
        let asked = selection.ids.iter().flatten();
        let missing = asked.filter(|id| !ids.contains(&NameHash::of(id))).cloned().collect();
        let mut plan = Fingerprint::new("plan", "1");
        for sample in &samples {
            plan.text("key", &sample.key());
        }
        let entry = TaskEntry {
            id: task.info.id.clone(),
            version: task.info.version.clone(),
            split: task.source.split.clone(),
            sample_data: data::is_sample(&task.source),
            prompt_style: style,
            prompt_hash: prompt_hash(&wordings),
            metrics: task.metrics.wanted.clone(),
            primary_metric: task.primary_metric.clone(),
            samples: samples.len() as u64,
            plan: plan.finish(),
            questions: questions.finish(),
            trained_on: seen_in_training,
            files,
        };
        Ok(Self { task, samples, entry, selection, missing })
    }

    /// The examples of the plan, in its order.
    ///
    /// # Errors
    /// Data that has gone since the plan was made.
    pub fn examples(&self) -> Result<impl Iterator<Item = e2llm_plugin::Result<Example>> + use<>> {
        Ok(self.selection.clone().examples(self.task.client.open(&self.task.source)?))
    }

    /// Whether the plan has the sample that an entry of `--samples` names.
    pub fn has(&self, settings: &RunSettings, asked: &str) -> bool {
        id_in(settings, &self.task.info.id, asked).is_some_and(|id| !self.missing.contains(id))
    }
}

/// The hash of a task's wordings; that of the template itself where there is one official template.
fn prompt_hash(wordings: &BTreeSet<String>) -> String {
    let is_hash = |w: &&String| w.len() == 64 && w.bytes().all(|b| b.is_ascii_hexdigit());
    if let Some(template) = wordings.first().filter(|w| wordings.len() == 1 && is_hash(w)) {
        return template[..16].to_owned();
    }
    let mut hash = Fingerprint::new("prompt", "1");
    for wording in wordings {
        hash.text("wording", wording);
    }
    hash.finish()[..16].to_owned()
}

fn json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Failure::failed(format!("cannot be written as JSON: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Asked, RunArgs};
    use crate::failure::Exit;
    use crate::run::scoring::MetricSet;
    use e2llm_plugin::client::TaskClient;
    use e2llm_plugin::{Examples, Prediction, Source, Task, TaskInfo};
    use std::sync::Arc;

    /// Has samples without end, and is interrupted before the third.
    struct Endless(CancelFlag);

    impl Task for Endless {
        fn info(&self) -> TaskInfo {
            TaskInfo { id: "endless".into(), ..TaskInfo::default() }
        }

        fn open(&self, _: &Source) -> e2llm_plugin::Result<Examples> {
            let cancel = self.0.clone();
            Ok(Box::new((0..).map(move |i| {
                if i == 2 {
                    cancel.cancel();
                }
                assert!(i < 1000, "nobody asks whether to stop");
                Ok(Example { id: i.to_string(), ..Example::default() })
            })))
        }

        fn prompt(&self, example: &Example) -> e2llm_plugin::Result<Prompt> {
            Ok(Prompt::new(example, "{context}", 1))
        }

        fn extract(&self, _: &Example, _: &str) -> Prediction {
            Prediction::default()
        }
    }

    #[test]
    fn an_interrupt_ends_the_planning() {
        let args = || RunArgs {
            tasks: Some(vec!["endless".into()]),
            backend: Some(vec!["echo".into()]),
            ..RunArgs::default()
        };
        // samples that are passed over are planned as well
        for samples in [None, Some(vec!["none".to_owned()])] {
            let asked = Asked::new(&RunArgs { samples, ..args() }, &[]).unwrap();
            let cancel = CancelFlag::default();
            let client = TaskClient::host(Arc::new(Endless(cancel.clone())));
            let task = OpenTask {
                info: client.info().unwrap(),
                client,
                source: Source::sample(),
                metrics: MetricSet::default(),
                primary_metric: String::new(),
                plugin_version: String::new(),
                plugin_sha256: String::new(),
            };
            let failure = TaskPlan::new(task, &asked.runs[0], "f", None, &cancel).unwrap_err();
            assert_eq!(failure.exit(), Exit::Interrupted, "{failure}");
        }
    }
}
