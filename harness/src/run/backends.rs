//! From a backend's name to a backend.

use crate::config::RunSettings;
use crate::failure::{Failure, Result, did_you_mean};
use crate::models::{Catalogue, FetchSettings, Fetcher, ModelError, other_method};
use e2llm_backend::{Backend, BackendSpec, BuildContext, CancelFlag, ModelFiles, Options, Registry};
use e2llm_lm::TensorStore;
use std::path::Path;

/// All backends of this program.
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.register(e2llm::backend::spec());
    e2llm_baselines::register(&mut registry);
    e2llm_remote::register(&mut registry);
    registry
}

/// A backend's entry.
///
/// # Errors
/// An unknown name, with the nearest one.
pub fn find<'a>(registry: &'a Registry, name: &str) -> Result<&'a BackendSpec> {
    registry.get(name).ok_or_else(|| {
        let near = did_you_mean(name, registry.iter().map(|b| b.name));
        let all: Vec<_> = registry.iter().map(|b| b.name).collect();
        let help = if near.is_empty() { format!("there are: {}", all.join(", ")) } else { near };
        Failure::usage(format!("unknown backend `{name}`")).help(help)
    })
}

/// The catalogue and where its files are kept.
///
/// # Errors
/// A catalogue file with mistakes; no cache folder.
pub fn fetcher(
    models_file: Option<&Path>,
    offline: bool,
    quiet: bool,
    cancel: &CancelFlag,
) -> Result<Fetcher> {
    let catalogue = Catalogue::load(models_file)?;
    let settings = FetchSettings { offline, quiet, cancel: cancel.clone(), ..FetchSettings::from_env()? };
    Ok(Fetcher::new(catalogue, settings))
}

/// Checks a backend's name and options, without any weights, and says whether it needs a model.
///
/// # Errors
/// An unknown backend or option.
pub fn check(settings: &RunSettings) -> Result<bool> {
    let registry = registry();
    let spec = find(&registry, &settings.backend)?;
    options(spec, settings)?;
    Ok(spec.needs_model)
}

/// The backend's options with its defaults; of an unknown one the nearest is named.
fn options(spec: &BackendSpec, settings: &RunSettings) -> Result<Options> {
    let known = || spec.options.iter().map(|o| o.name);
    let unknown = settings.backend_options.keys().find(|key| !known().any(|name| name == *key));
    let help = unknown.map_or_else(String::new, |key| did_you_mean(key, known()));
    Options::checked(spec.options, &settings.backend_options).map_err(|e| Box::<Failure>::from(e).help(help))
}

/// What `--backend all` means: every method that can be had with any model here; neither `echo`, nor a server's model, nor
/// one that needs a model of its own training.
pub fn all_methods(registry: &Registry) -> Vec<&'static str> {
    let any_model = |b: &&BackendSpec| b.needs_model && !e2llm_baselines::TRAINED.contains(&b.name);
    registry.iter().filter(any_model).map(|b| b.name).collect()
}

/// Fetches the model's files and builds the backend. Base weights are shared through `store`, which keeps those of this
/// model only.
///
/// # Errors
/// An unknown backend, option or model; files that cannot be had; a model that cannot be loaded.
pub fn build(
    settings: &RunSettings,
    quiet: bool,
    cancel: &CancelFlag,
    store: Option<&TensorStore>,
) -> Result<Box<dyn Backend>> {
    let registry = registry();
    let spec = find(&registry, &settings.backend)?;
    let options = options(spec, settings)?;
    let model = if spec.needs_model {
        let missing = || Failure::usage(format!("backend `{}` needs a model: --model NAME|PATH", spec.name));
        let name = settings.model.as_deref().ok_or_else(missing)?;
        let files =
            fetcher(settings.models_file.as_deref(), settings.offline, quiet, cancel)?.resolve(name)?;
        if let Some(method) = files.checkpoint.as_deref().and_then(|c| other_method(c, spec.name)) {
            let message = format!(
                "model `{name}` is a checkpoint of `{method}`, in which `{}` finds nothing",
                spec.name
            );
            let help = format!("give --model a checkpoint that was trained with method `{}`", spec.name);
            return Err(Failure::usage(message).help(help));
        }
        files
    } else {
        ModelFiles::default()
    };
    let context = BuildContext {
        model,
        options,
        device: settings.device,
        dtype: settings.dtype.clone(),
        seed: settings.seed,
        cancel: cancel.clone(),
    };
    let build = || (spec.build)(&context);
    let built = match store {
        Some(store) => {
            let parts = [&context.model.decoder, &context.model.encoder].into_iter().flatten();
            let parts: Vec<_> = parts.map(std::path::PathBuf::as_path).collect();
            if spec.needs_model {
                store.keep_only(&parts);
            }
            store.share(build)
        }
        None => build(),
    };
    built.map_err(|e| Box::<Failure>::from(e).within(format!("backend `{}`", spec.name)))
}

impl From<ModelError> for Box<Failure> {
    fn from(e: ModelError) -> Self {
        let help = e.help().unwrap_or_default();
        let message = e.to_string();
        let failure = match e {
            ModelError::Unknown { .. } | ModelError::Catalogue { .. } => Failure::usage(message),
            ModelError::Interrupted { .. } => Failure::interrupted(message),
            _ => Failure::failed(message),
        };
        failure.help(help)
    }
}
