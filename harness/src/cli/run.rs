//! `run`.

use super::output;
use crate::config::{Asked, BatchSize, RunArgs, RunSettings};
use crate::failure::{Exit, Failure, Result};
use crate::plugins::{Index, SearchPath, set_cancel_flag, set_token_counter};
use crate::run::{
    OpenTask, TaskPlan, TrainedOn, all_methods, build, check, execute, open_tasks, registry, write_results,
};
use crate::score::Results;
use crate::store::{FORMAT, Manifest, PluginUsed, RunFolder, TaskEntry};
use e2llm_backend::{Backend, CancelFlag, Generation, TokenCounter};
use e2llm_lm::TensorStore;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Evaluates a backend, or several, on tasks.
///
/// # Errors
/// Anything that stops the run; what was finished is kept.
pub(super) fn run(args: &RunArgs) -> Result<Exit> {
    let registry = registry();
    let mut asked = Asked::new(args, &all_methods(&registry))?;
    let needs_model = asked.runs.iter().map(check).collect::<Result<Vec<_>>>()?;
    let plugin_dirs = asked.runs.first().map(|r| r.plugin_dirs.clone()).unwrap_or_default();
    let mut index = Index::scan(&SearchPath::usual(&plugin_dirs))?;
    for task in asked.runs.iter_mut().flat_map(|r| &mut r.tasks) {
        *task = index.task_named(task)?;
    }
    let Some(first) = asked.runs.first() else { return Err(Failure::usage("no backend")) };
    let tasks = open_tasks(first, &index)?;
    let sample = tasks.iter().any(|t| crate::data::is_sample(&t.source));
    let about = if sample { "; sample data: the figures are no benchmark results" } else { "" };
    let names: Vec<_> = tasks.iter().map(|t| t.info.id.as_str()).collect();
    let labels: Vec<_> = asked.runs.iter().map(|r| format!("`{}`", r.label)).collect();
    if !args.quiet {
        output::note(&format!("evaluating {} on {}{about}", labels.join(", "), names.join(", ")));
    }
    if first.dry_run {
        return super::dry_run::dry_run(first, tasks, args.json);
    }
    let cancel = cancel_on_ctrl_c()?;
    set_cancel_flag(&cancel);
    let mut evaluation = Evaluation { args, index: &index, cancel, store: None, counter: None };
    if asked.is_set {
        return super::run_set::run_set(&asked.runs, &mut evaluation);
    }
    let model = first.model.as_deref().filter(|_| needs_model[0]);
    let name = match model {
        Some(model) => format!("{}-{}", first.backend, model_name(model)),
        None => first.backend.clone(),
    };
    let out = out_folder(first, &name);
    let evaluated = evaluation.evaluate(first, tasks, &out, &|_| Ok(())).map_err(|f| resumable(f, &out))?;
    show(&evaluated.results, &evaluated.folder, args.json, args.quiet)?;
    Ok(if evaluated.results.errors() > 0 { Exit::SampleErrors } else { Exit::Done })
}

/// What the runs of one command have in common.
pub(super) struct Evaluation<'a> {
    pub(super) args: &'a RunArgs,
    pub(super) index: &'a Index,
    pub(super) cancel: CancelFlag,
    /// Base weights, where several backends may have the same.
    pub(super) store: Option<TensorStore>,
    /// What measures generated texts: the first backend's counter, so that all get the same ones.
    pub(super) counter: Option<Option<TokenCounter>>,
}

/// A finished run.
pub(super) struct Evaluated {
    pub(super) folder: RunFolder,
    pub(super) results: Results,
}

impl Evaluation<'_> {
    /// Evaluates one backend into a folder, where `accept` agrees with what it is going to do.
    ///
    /// # Errors
    /// Anything that stops the run; what was finished is kept.
    pub(super) fn evaluate(
        &mut self,
        settings: &RunSettings,
        tasks: Vec<OpenTask>,
        out: &Path,
        accept: &dyn Fn(&Manifest) -> Result<()>,
    ) -> Result<Evaluated> {
        let quiet = self.args.quiet;
        // the folder first: hours are not to be lost for one that cannot be written
        let folder = RunFolder::create(out, settings.resume)?;
        let mut backend = build(settings, quiet, &self.cancel, self.store.as_ref())?;
        if !quiet {
            backend.info().warnings.iter().for_each(|w| output::note(&format!("note: {w}")));
        }
        set_token_counter(self.counter.get_or_insert_with(|| backend.token_counter()).clone());
        let fingerprint = backend.info().fingerprint.clone();
        let trained_on = TrainedOn::of(settings, backend.info(), quiet, &self.cancel)?;
        let mut plans = tasks
            .into_iter()
            .map(|task| TaskPlan::new(task, settings, &fingerprint, trained_on.as_ref(), &self.cancel))
            .collect::<Result<Vec<_>>>()?;
        check_plans(settings, &plans)?;
        let manifest = manifest(settings, &plans, backend.as_ref())?;
        if let Some(old) = folder.manifest()? {
            check_same(&folder, &old, &manifest)?;
        }
        accept(&manifest)?;
        folder.write("manifest.toml", &manifest.to_text()?)?;
        run_plans(settings, &mut plans, backend.as_mut(), &folder, quiet, &self.cancel)?;
        let metrics = |entry: &TaskEntry| {
            let plan = plans.iter().find(|p| p.entry.id == entry.id);
            plan.map(|p| p.task.metrics.clone()).ok_or_else(|| Failure::failed("a task without a plan"))
        };
        let results = write_results(&folder, &manifest, metrics, false)?;
        Ok(Evaluated { folder, results })
    }
}

/// Fails where a run is to be gone on with as another one, or would lose answers.
fn check_same(folder: &RunFolder, old: &Manifest, new: &Manifest) -> Result<()> {
    let mut differences = old.differences(new);
    for task in old.left_out(new) {
        if folder.has_samples(task)? {
            differences.push(format!("task {}: was run and has answers, now left out", task.id));
        }
    }
    if differences.is_empty() {
        return Ok(());
    }
    let message = format!("{} was made with other settings", folder.path().display());
    Err(Failure::usage(message).help(format!(
        "{}\nrun with the same settings, or name another folder with --out",
        differences.join("\n")
    )))
}

/// Requests that a batch has.
fn batch_size(settings: &RunSettings, backend: &dyn Backend) -> usize {
    match (settings.batch_size, backend.preferred_batch()) {
        (BatchSize::Auto, Some(n)) => n.max(1),
        (asked, _) => asked.on(settings.device),
    }
}

fn run_plans(
    settings: &RunSettings,
    plans: &mut [TaskPlan],
    backend: &mut dyn Backend,
    folder: &RunFolder,
    quiet: bool,
    cancel: &CancelFlag,
) -> Result<()> {
    let planned = batch_size(settings, backend);
    let mut batch = planned;
    for plan in plans {
        execute(settings, plan, backend, folder, planned, &mut batch, quiet, cancel)?;
        // they are written: results need the memory for themselves
        plan.samples = Vec::new();
    }
    Ok(())
}

/// Says how to go on.
pub(super) fn resumable(failure: Box<Failure>, folder: &Path) -> Box<Failure> {
    if failure.exit() == Exit::Interrupted {
        let help = format!(
            "finished samples are kept: run the same command with --resume --out {}",
            folder.display()
        );
        return failure.help(help);
    }
    failure
}

/// Prints the table or the JSON of a run's results.
pub(super) fn show(results: &Results, folder: &RunFolder, json: bool, quiet: bool) -> Result<()> {
    if json {
        return output::print_json(results);
    }
    if quiet {
        return Ok(());
    }
    let number = |v: Option<f64>| v.map_or_else(String::new, |v| format!("{v:.2}"));
    let mut rows =
        vec![["task", "metric", "value", "95 % interval", "n", "errors"].map(str::to_owned).to_vec()];
    for task in &results.tasks {
        let Some(all) = task.slices.first() else { continue };
        for m in &all.metrics {
            let interval = match (m.ci_low, m.ci_high) {
                (Some(low), Some(high)) => format!("{low:.2} to {high:.2}"),
                _ => String::new(),
            };
            let mark = if m.id == task.meta.primary_metric { "*" } else { "" };
            rows.push(vec![
                task.meta.task.clone(),
                format!("{}{mark}", m.id),
                number(Some(m.value)),
                interval,
                task.planned.map_or_else(|| m.n.to_string(), |planned| format!("{} of {planned}", m.n)),
                all.n_error.to_string(),
            ]);
        }
    }
    output::print(&output::table(&rows))?;
    for task in &results.tasks {
        if let Some(e) = &task.first_error {
            output::note(&format!("{}: first error, sample {}: {}", task.meta.task, e.sample, e.message));
        }
    }
    let unfinished = results.unfinished();
    unfinished.iter().for_each(|text| output::note(text));
    if !unfinished.is_empty() {
        output::note("the run is not finished: the command it was started with goes on with --resume");
    }
    output::note(&format!(
        "* the task's primary metric; written to {}",
        folder.path().join("leaderboard.csv").display()
    ));
    Ok(())
}

/// The folder asked for, or the first free `runs/<name>[-N]`; when resuming, the last one there is.
pub(super) fn out_folder(settings: &RunSettings, name: &str) -> PathBuf {
    if let Some(out) = &settings.out {
        return out.clone();
    }
    let numbered =
        |n: usize| PathBuf::from("runs").join(if n == 1 { name.to_owned() } else { format!("{name}-{n}") });
    let free = (1..).map(numbered).find(|p| !p.exists()).unwrap_or_else(|| numbered(1));
    let last = (1..).map(numbered).take_while(|p| p.exists()).last();
    match last {
        Some(last) if settings.resume => last,
        _ => free,
    }
}

/// A catalogue name as it is, a path by its last part without `.gguf`.
fn model_name(model: &str) -> String {
    let last = Path::new(model).file_name().map_or_else(|| model.into(), |n| n.to_string_lossy());
    last.strip_suffix(".gguf").unwrap_or(&last).to_owned()
}

/// Nothing planned, or sample ids that no task has, are errors before the run and not after it.
fn check_plans(settings: &RunSettings, plans: &[TaskPlan]) -> Result<()> {
    if let Some(samples) = &settings.samples {
        let missing: Vec<_> = samples
            .iter()
            .filter(|s| !plans.iter().any(|p| p.has(settings, s)))
            .map(|s| format!("`{s}`"))
            .collect();
        // a limit may end before samples that exist
        let limited = settings.limit.is_some() && plans.iter().any(|p| p.entry.samples > 0);
        if missing.is_empty() || limited {
            return Ok(());
        }
        let tasks: Vec<_> = plans.iter().map(|p| format!("`{}`", p.entry.id)).collect();
        let message = format!("--samples: {} not in {}", missing.join(", "), tasks.join(", "));
        return Err(
            Failure::usage(message).help("`e2llm-bench run --dry-run --json` shows the ids of each task")
        );
    }
    match plans.iter().find(|p| p.samples.is_empty()) {
        Some(p) => Err(Failure::failed(format!("task `{}` has no samples", p.entry.id))),
        None => Ok(()),
    }
}

fn manifest(settings: &RunSettings, plans: &[TaskPlan], backend: &dyn Backend) -> Result<Manifest> {
    let mut plugins = BTreeMap::new();
    for plan in plans {
        let used =
            PluginUsed { version: plan.task.plugin_version.clone(), sha256: plan.task.plugin_sha256.clone() };
        plugins.insert(format!("task/{}", plan.entry.id), used);
        plugins.extend(plan.task.metrics.used()?);
    }
    let text = |v: &serde_json::Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let task_options = settings
        .task_options
        .iter()
        .map(|(task, options)| (task.clone(), options.iter().map(|(k, v)| (k.clone(), text(v))).collect()))
        .collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(Manifest {
        format: FORMAT,
        program: env!("CARGO_PKG_VERSION").into(),
        seed: settings.seed,
        bootstrap: settings.bootstrap,
        limit: settings.limit,
        selected: settings.samples.clone().unwrap_or_default(),
        batch_size: batch_size(settings, backend),
        generation: Generation {
            max_new_tokens: settings.max_new_tokens.unwrap_or(0),
            temperature: settings.temperature,
            top_p: settings.top_p,
            seed: settings.seed,
        },
        backend: backend.info().clone(),
        backend_options: settings.backend_options.clone(),
        task_options,
        plugins,
        hardware: format!("{} {}, {threads} threads", std::env::consts::OS, std::env::consts::ARCH),
        tasks: plans.iter().map(|p| p.entry.clone()).collect(),
    })
}

/// A flag that the first Ctrl-C sets; the second ends the program at once.
pub(super) fn cancel_on_ctrl_c() -> Result<CancelFlag> {
    let cancel = CancelFlag::default();
    let flag = cancel.clone();
    ctrlc::set_handler(move || {
        if flag.is_cancelled() {
            std::process::exit(Exit::Interrupted as i32);
        }
        flag.cancel();
        output::note("interrupted: stopping; once more to end at once");
    })
    .map_err(|e| Failure::failed(format!("cannot handle Ctrl-C: {e}")))?;
    Ok(cancel)
}
