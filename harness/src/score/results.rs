//! `results.json`: who was evaluated, and every score with its interval.

use crate::failure::{Failure, Result};
use e2llm_backend::{BackendInfo, Fingerprint};
use serde::{Deserialize, Serialize};

/// Layout of `results.json`; grows with every change that an older reader would misread.
pub const FORMAT: u32 = 1;

/// Everything in `results.json`. No times, no dates, no paths: equal samples give equal bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// [`FORMAT`].
    pub format: u32,
    /// Who was evaluated, and how.
    pub run: RunIdentity,
    /// One per task, in the run's order.
    pub tasks: Vec<TaskResults>,
    /// Its tasks of which no sample is finished.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_begun: Vec<NotBegun>,
}

/// A task of a run without a finished sample.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotBegun {
    /// Its id.
    pub task: String,
    /// Samples planned.
    pub planned: u64,
}

/// What decides a run's results, besides its tasks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RunIdentity {
    /// Version of this program.
    pub version: String,
    /// Registry name of the backend, e.g. `e2llm`.
    pub backend: String,
    /// Model name or path.
    pub model: String,
    /// All parameters of the model.
    pub parameters: u64,
    /// Parameters trained for the method.
    pub trained_parameters: u64,
    /// Positions the decoder can read, where bounded.
    pub window: Option<u64>,
    /// Element type of the weights.
    pub dtype: String,
    /// Hash of weights, configuration and code of the backend.
    pub fingerprint: String,
    /// Hash of the model's chat template, where it has one.
    pub chat_template: Option<String>,
    /// What a reader of a result must know, e.g. that an adapter is untrained.
    pub warnings: Vec<String>,
    /// Seed of the run: of sampling, and of the intervals here.
    pub seed: u64,
    /// Resamples of the intervals.
    pub resamples: usize,
}

impl RunIdentity {
    /// The identity of a run of `backend`. The device is left out: it is the manifest's, and moves no score.
    pub fn new(backend: &BackendInfo, seed: u64, resamples: usize) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            backend: backend.name.clone(),
            model: backend.model.clone(),
            parameters: backend.parameters,
            trained_parameters: backend.trained_parameters,
            window: backend.window,
            dtype: backend.dtype.clone(),
            fingerprint: backend.fingerprint.clone(),
            chat_template: backend.chat_template.clone(),
            warnings: backend.warnings.clone(),
            seed,
            resamples,
        }
    }
}

/// What the manifest knows of a task of a run: a number is comparable only with numbers that agree in all of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskMeta {
    /// The task's id.
    pub task: String,
    /// Its version.
    pub version: String,
    /// The split evaluated.
    pub split: String,
    /// The prompt's wording, e.g. `e2llm` or `official`.
    pub prompt_style: String,
    /// Hash of the prompt's template.
    pub prompt_hash: String,
    /// Policy by which a context that does not fit is shortened, e.g. `middle-longbench-v2`, or `none`.
    pub truncation: String,
    /// The value to rank by, e.g. `rouge_gmean`.
    pub primary_metric: String,
    /// Whether the records are the sample that ships with the task: such a result is no benchmark result.
    pub sample_data: bool,
    /// Samples about texts that the model was trained on; absent where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained_on: Option<u64>,
}

/// All of one task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskResults {
    /// What was evaluated.
    pub meta: TaskMeta,
    /// Samples planned, where not all of them are finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub planned: Option<u64>,
    /// The first sample that ended in an error, if any did.
    pub first_error: Option<FirstError>,
    /// `all`, then e.g. `difficulty=hard`.
    pub slices: Vec<SliceResults>,
}

/// A sample that ended in an error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FirstError {
    /// The sample's id.
    pub sample: String,
    /// What happened.
    pub message: String,
}

/// A task's samples, or some of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SliceResults {
    /// `all`, or the key and value that its samples share.
    pub slice: String,
    /// Samples, errors included: the denominator of every mean.
    pub n: usize,
    /// Documents they are about.
    pub groups: usize,
    /// Samples that ended in an error; each counts as 0.
    pub n_error: usize,
    /// Answered samples in which the task found no answer.
    pub n_null: usize,
    /// Answered samples whose context was cut.
    pub n_truncated: usize,
    /// Means over answered samples; absent where none was answered.
    pub tokens: Option<TokenMeans>,
    /// Values in the order of showing.
    pub metrics: Vec<MetricResult>,
}

/// Mean tokens per answered sample, in the decoder's tokens.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TokenMeans {
    /// Positions the decoder read before its first own token, soft tokens included.
    pub prompt: f64,
    /// The whole context.
    pub context: f64,
    /// Context read as it is.
    pub seen: f64,
    /// Context that nothing read.
    pub dropped: f64,
    /// Context compressed into soft tokens.
    pub compressed: f64,
    /// The soft tokens.
    pub soft: f64,
    /// Generated.
    pub generated: f64,
}

/// One value of one metric. Proportions (`unit` = `%`) are multiplied by 100, everything else is as it is; figures
/// have 10 decimals.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricResult {
    /// The value's id, e.g. `rougeL+stem`.
    pub id: String,
    /// The metric family and its version, e.g. `rouge@1`.
    pub metric: String,
    /// `%`, `count`, or empty.
    pub unit: String,
    /// Whether more is better.
    pub higher_is_better: bool,
    /// The value over all samples; errors count as 0.
    pub value: f64,
    /// The same over answered samples only; absent where none was answered.
    pub value_completed: Option<f64>,
    /// Standard error of `value`, clustered by document; absent with fewer than two documents.
    pub stderr: Option<f64>,
    /// Lower end of the 95 % bootstrap interval of `value`, documents resampled; absent as `stderr`.
    pub ci_low: Option<f64>,
    /// Its upper end.
    pub ci_high: Option<f64>,
    /// Samples in the denominator.
    pub n: usize,
    /// Answered samples that the metric gave no value; each counts as 0.
    pub n_missing: usize,
    /// What a reader should know, e.g. why there is no interval; usually empty.
    pub note: String,
}

impl TaskResults {
    /// Finished samples.
    fn finished(&self) -> u64 {
        self.slices.first().map_or(0, |s| s.n as u64)
    }

    /// Says how many of the planned samples there are, where some are not finished.
    pub fn unfinished(&self) -> Option<String> {
        self.planned.map(|planned| unfinished(self.finished(), planned))
    }
}

fn unfinished(n: u64, planned: u64) -> String {
    format!("{n} of {planned} samples finished")
}

impl Results {
    /// Results of a finished run; see [`Results::note_unfinished`].
    pub fn new(run: RunIdentity, tasks: Vec<TaskResults>) -> Self {
        Self { format: FORMAT, run, tasks, not_begun: Vec::new() }
    }

    /// Notes what of the run is not finished, given each task's id and planned samples.
    pub fn note_unfinished<'a>(&mut self, planned: impl IntoIterator<Item = (&'a str, u64)>) {
        self.not_begun.clear();
        for (id, planned) in planned {
            match self.tasks.iter_mut().find(|t| t.meta.task == id) {
                Some(task) => task.planned = (task.finished() < planned).then_some(planned),
                None if planned > 0 => self.not_begun.push(NotBegun { task: id.to_owned(), planned }),
                None => {}
            }
        }
    }

    /// How far tasks are that are not finished; empty for a finished run.
    pub fn unfinished(&self) -> Vec<String> {
        let begun = self.tasks.iter().filter_map(|t| Some((&t.meta.task, t.unfinished()?)));
        let not_begun = self.not_begun.iter().map(|t| (&t.task, unfinished(0, t.planned)));
        begun.chain(not_begun).map(|(task, how_far)| format!("{task}: {how_far}")).collect()
    }

    /// Samples that ended in errors, of all tasks.
    pub fn errors(&self) -> usize {
        self.tasks.iter().filter_map(|t| t.slices.first()).map(|s| s.n_error).sum()
    }

    /// A short name made from what was evaluated (12 hexadecimal digits): equal for equal runs, wherever their
    /// folders are. It names the run in its own `leaderboard.csv`, which must not depend on the folder.
    pub fn run_id(&self) -> String {
        let mut id = Fingerprint::new("run", &self.run.version);
        let run = &self.run;
        id.text("backend", &run.backend).text("model", &run.model).text("fingerprint", &run.fingerprint);
        id.text("seed", &run.seed.to_string());
        for task in &self.tasks {
            let m = &task.meta;
            for part in [&m.task, &m.version, &m.split, &m.prompt_style, &m.prompt_hash, &m.truncation] {
                id.text("task", part);
            }
            id.text("sample_data", &m.sample_data.to_string());
            id.text("n", &task.slices.first().map_or(0, |s| s.n).to_string());
        }
        let mut id = id.finish();
        id.truncate(12);
        id
    }

    /// The text of `results.json`: pretty, keys in the order of declaration, with a final newline.
    ///
    /// # Errors
    /// None in practice: everything here can be written.
    pub fn to_json(&self) -> Result<String> {
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|e| Failure::failed(format!("results cannot be written as JSON: {e}")))?;
        text.push('\n');
        Ok(text)
    }

    /// Reads the text of a `results.json`; `name` is its path, for messages.
    ///
    /// # Errors
    /// Text that is no `results.json` of this [`FORMAT`].
    pub fn from_json(name: &str, text: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Header {
            format: u32,
        }
        let help = "make it anew from the samples with `e2llm-bench score RUN`";
        let broken = |e: serde_json::Error| Failure::failed(format!("{name} cannot be read: {e}")).help(help);
        let header: Header = serde_json::from_str(text).map_err(broken)?;
        if header.format != FORMAT {
            let message = format!("{name} has format {}, this version reads {FORMAT}", header.format);
            return Err(Failure::failed(message).help(help));
        }
        serde_json::from_str(text).map_err(broken)
    }
}
