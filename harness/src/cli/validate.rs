//! `validate`.

use super::args::ValidateArgs;
use super::output;
use super::train::{open_model, read_config};
use crate::failure::{Exit, Failure, Result};
use crate::score::{Clusters, DEFAULT_RESAMPLES, Statistic, interval_seed};
use crate::training::failure;
use e2llm_train::config::Method;
use e2llm_train::{ItemLoss, Objective, Part, Split, TrainConfig, Trainable, item_losses};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

/// Measures what a model makes of prepared validation data.
///
/// # Errors
/// Settings, models or data that cannot be used.
pub(super) fn validate(args: &ValidateArgs) -> Result<Exit> {
    let mut config = read_config(&args.config)?;
    config.data.folder.clone_from(&args.data);
    if let Some(start) = &args.start {
        config.model.start = Some(start.clone());
    }
    if let Some(method) = &args.method {
        let named = toml::Value::String(method.clone());
        config.model.method = named.try_into().map_err(|_| {
            let known = Method::ALL.map(Method::name).join(", ");
            Failure::usage(format!("no method `{method}`: {known}"))
        })?;
    }
    if let Some(device) = &args.device {
        config.compute.device.clone_from(device);
    }
    let cancel = super::run::cancel_on_ctrl_c()?;
    let model = open_model(&config, &args.models, args.quiet, &cancel)?;
    let mut rows = vec![
        ["objective", "nats/token", "95 % interval", "items", "documents", "tokens"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let mut measured = false;
    for objective in Objective::ALL {
        let part = Part { split: Split::Validation, objective, window: args.window };
        let bar = if args.quiet { ProgressBar::hidden() } else { ProgressBar::new(0) };
        let style = ProgressStyle::with_template("{msg} {pos}/{len} {elapsed_precise} (ETA {eta})");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(objective.name());
        let losses = item_losses(model.as_ref(), part, args.items, &cancel, &mut |done, all| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        });
        bar.finish_and_clear();
        let Some(losses) = losses.map_err(failure)? else {
            return Err(Failure::interrupted("interrupted: nothing was kept"));
        };
        if losses.is_empty() {
            continue;
        }
        measured = true;
        let row = Measured::new(model.as_ref(), part, &losses, &config);
        if args.json {
            output::print_json(&row.json(objective))?;
        } else {
            rows.push(row.cells(objective));
        }
    }
    if !measured {
        let message = format!("nothing to validate on in {}", args.data.display());
        return Err(Failure::usage(message).help("prepare it with more documents, or a larger --validation"));
    }
    if !args.json {
        output::print(&output::table(&rows))?;
    }
    Ok(Exit::Done)
}

/// A mean loss with its interval.
struct Measured {
    value: f64,
    stderr: Option<f64>,
    interval: Option<(f64, f64)>,
    items: usize,
    documents: usize,
    tokens: u64,
}

impl Measured {
    fn new(model: &dyn Trainable, part: Part, losses: &[ItemLoss], config: &TrainConfig) -> Self {
        let documents: Vec<String> = losses.iter().map(|l| model.document(part, l.item)).collect();
        let clusters = Clusters::new(documents.iter().map(String::as_str));
        let nats = losses.iter().map(|l| l.nats).collect();
        let tokens = losses.iter().map(|l| f64::from(l.tokens)).collect();
        let ratio = Statistic::Ratio([nats, tokens]);
        let seed = interval_seed(config.seed, "validate", part.objective.name(), "all");
        Self {
            value: ratio.value(),
            stderr: ratio.standard_error(&clusters),
            interval: ratio.interval(&clusters, seed, DEFAULT_RESAMPLES),
            items: losses.len(),
            documents: clusters.len(),
            tokens: losses.iter().map(|l| u64::from(l.tokens)).sum(),
        }
    }

    fn json(&self, objective: Objective) -> serde_json::Value {
        json!({
            "objective": objective.name(), "nats_per_token": self.value, "stderr": self.stderr,
            "ci_low": self.interval.map(|i| i.0), "ci_high": self.interval.map(|i| i.1),
            "items": self.items, "documents": self.documents, "tokens": self.tokens,
        })
    }

    fn cells(&self, objective: Objective) -> Vec<String> {
        let interval = self.interval.map_or_else(String::new, |(a, b)| format!("{a:.4} to {b:.4}"));
        let value = format!("{:.4}", self.value);
        let counts = [self.items.to_string(), self.documents.to_string(), self.tokens.to_string()];
        [objective.name().to_owned(), value, interval].into_iter().chain(counts).collect()
    }
}
