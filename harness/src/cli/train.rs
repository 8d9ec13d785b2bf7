//! `train`.

use super::args::TrainArgs;
use super::output;
use crate::config::ModelFlags;
use crate::failure::{Exit, Failure, Result};
use crate::run::fetcher;
use crate::training::{TrainReporter, base, failure};
use e2llm_backend::{BackendError, CancelFlag, Device};
use e2llm_lm::open_device;
use e2llm_train::config::Method;
use e2llm_train::{
    CepeTask, E2llmTask, End, LlocoTask, Outcome, RunOptions, SftTask, Sources, TrainConfig, Trainable,
    check_folder,
};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Trains a model.
///
/// # Errors
/// Settings or data that cannot be trained on; anything that stops the training, whose last checkpoint stays.
pub(super) fn train(args: &TrainArgs) -> Result<Exit> {
    let config = config(args)?;
    let cancel = super::run::cancel_on_ctrl_c()?;
    check_folder(&out_folder(args), &config, args.resume).map_err(failure)?;
    let model = open_model(&config, &args.models, args.quiet, &cancel)?;
    if !args.quiet {
        let trained: usize = model.vars().values().map(|v| v.elem_count()).sum();
        output::note(&format!("training {trained} parameters in {} tensors", model.vars().len()));
    }
    let options = RunOptions { folder: out_folder(args), resume: args.resume, cancel };
    let mut reporter = TrainReporter::new(args.quiet);
    let outcome = e2llm_train::train(model.as_ref(), &config, &options, &mut reporter);
    reporter.finish();
    let outcome = outcome.map_err(failure)?;
    show(args, &outcome)?;
    if outcome.end == End::Cancelled {
        return Err(Failure::interrupted(format!("interrupted after step {}", outcome.steps)).help(format!(
            "{} holds all of it: run the same command with --resume --out {}",
            outcome.last.display(),
            options.folder.display()
        )));
    }
    Ok(Exit::Done)
}

/// What is trained or measured, with its base models (fetched where needed) and data.
///
/// # Errors
/// Models or data that cannot be had or do not fit together.
pub(super) fn open_model(
    config: &TrainConfig,
    models: &ModelFlags,
    quiet: bool,
    cancel: &CancelFlag,
) -> Result<Box<dyn Trainable>> {
    let device: Device = config.compute.device.parse().map_err(Failure::usage)?;
    let device = open_device(device).map_err(BackendError::from)?;
    // Their layers are graphs of small operations, whose gradients candle adds up.
    let is_graph = matches!(config.model.method, Method::Cepe | Method::Longlora);
    if is_graph && device.is_cpu() && config.compute.dtype == "bf16" && !quiet {
        output::note(
            "note: on a CPU a step of this method takes longer in bf16 than in float32: dtype = \"f32\" under [compute]",
        );
    }
    let fetcher = fetcher(models.models_file.as_deref(), models.offline, quiet, cancel)?;
    let method = config.model.method;
    let encoder = method
        .encodes()
        .then(|| base(&fetcher, &config.model.encoder, "encoder", |f| f.encoder))
        .transpose()?;
    let decoder = base(&fetcher, &config.model.decoder, "decoder", |f| f.decoder)?;
    let sources = Sources { encoder, decoder };
    match method {
        Method::E2llm => opened(E2llmTask::open(&sources, config, &device), E2llmTask::warnings, quiet),
        Method::Cepe => opened(CepeTask::open(&sources, config, &device), CepeTask::warnings, quiet),
        Method::Lloco => opened(LlocoTask::open(&sources, config, &device), LlocoTask::warnings, quiet),
        Method::SftTruncate | Method::SftNoContext | Method::Longlora => {
            opened(SftTask::open(&sources, config, &device), SftTask::warnings, quiet)
        }
    }
}

/// What was opened, after saying what whoever trains it should know.
fn opened<T: Trainable + 'static>(
    task: e2llm_train::Result<T>,
    warnings: fn(&T) -> &[String],
    quiet: bool,
) -> Result<Box<dyn Trainable>> {
    let task = task.map_err(failure)?;
    for warning in warnings(&task).iter().filter(|_| !quiet) {
        output::note(&format!("note: {warning}"));
    }
    Ok(Box::new(task))
}

/// The settings in a file.
///
/// # Errors
/// A file that cannot be read or has a mistake, with its place.
pub(super) fn read_config(file: &Path) -> Result<TrainConfig> {
    let path = file.display().to_string();
    let text = std::fs::read_to_string(file)
        .map_err(|e| Failure::usage(format!("cannot read configuration {path}: {e}")))?;
    toml::from_str(&text).map_err(|e| {
        let failure = Failure::usage(format!("configuration {path}: {}", e.message()));
        match e.span() {
            Some(span) => failure.at(&path, &text, span),
            None => failure,
        }
    })
}

/// The file's settings, and the flags over them.
fn config(args: &TrainArgs) -> Result<TrainConfig> {
    let path = args.config.display().to_string();
    let mut config = read_config(&args.config)?;
    if let Some(device) = &args.device {
        config.compute.device.clone_from(device);
    }
    if let Some(data) = &args.data {
        config.data.folder.clone_from(data);
    }
    if let Some(steps) = args.steps {
        config.set_steps(steps);
    }
    config.check().map_err(|e| failure(e).within(format!("configuration {path}")))?;
    if config.data.folder.as_os_str().is_empty() {
        return Err(
            Failure::usage("no data").help("name a folder that `prepare` wrote: data.folder, or --data DIR")
        );
    }
    Ok(config)
}

fn out_folder(args: &TrainArgs) -> PathBuf {
    let name = args.config.file_stem().map_or_else(|| "run".into(), |n| n.to_owned());
    args.out.clone().unwrap_or_else(|| Path::new("train").join(name))
}

fn show(args: &TrainArgs, outcome: &Outcome) -> Result<()> {
    if args.json {
        let end = match outcome.end {
            End::Finished => "finished",
            End::Early => "early",
            End::Cancelled => "cancelled",
        };
        let best = outcome.best.map(|b| json!({"step": b.step, "loss": b.loss}));
        return output::print_json(
            &json!({"end": end, "steps": outcome.steps, "best": best, "checkpoint": outcome.last}),
        );
    }
    if !args.quiet && outcome.end != End::Cancelled {
        if outcome.end == End::Early {
            output::note("the validation got no better: ended early");
        }
        output::note(&match outcome.best {
            Some(best) => format!("best validation: {:.4} nats/token after step {}", best.loss, best.step),
            None => "nothing was validated: `best` is the last checkpoint".to_owned(),
        });
        output::note(&format!("last checkpoint: {}", outcome.last.display()));
    }
    Ok(())
}
