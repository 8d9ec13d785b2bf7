//! The folder of a trained method.
//!
//! ```text
//! encoder/, decoder/       the base models, or `source.toml` with their names and hashes; the encoder where there is one
//! base.json                names and hashes of the base models
//! <method>_config.json     all that inference needs to know
//! <method>.safetensors     all that is trained
//! ```

use candle_core::{DType, Device, Tensor};
use e2llm::checkpoint::{CheckpointError, Problems, settings_file, weights_hash};
use e2llm::{ConfigError, E2llmConfig};
use e2llm_backend::{BackendError, BuildContext, Fingerprint};
use e2llm_lm::{LmError, Params, Precision, TensorSpec, Weights, open_device, uniform};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// A method's settings in a checkpoint; `None` where the folder has none.
///
/// # Errors
/// A file that cannot be read or is damaged.
pub fn settings_of<C: DeserializeOwned>(folder: &Path, method: &str) -> Result<Option<C>, CheckpointError> {
    let path = folder.join(settings_file(method));
    match std::fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text)
            .map(Some)
            .map_err(|e| CheckpointError::Config { path, source: ConfigError::Json(e) }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CheckpointError::Io { path, source }),
    }
}

/// A method's trained tensors in a checkpoint, in float32 on the CPU.
///
/// # Errors
/// Files that are missing or damaged; every tensor that is missing, unexpected or of another shape.
pub fn tensors_of(
    folder: &Path,
    method: &str,
    specs: &[TensorSpec],
) -> Result<BTreeMap<String, Tensor>, CheckpointError> {
    let file = Weights::open_named(folder, method)?;
    file.check(specs, |_| false).map_err(|e| CheckpointError::Parts(Problems(vec![e])))?;
    let load = |s: &TensorSpec| Ok((s.name.clone(), file.load(&s.name, DType::F32, &Device::Cpu)?));
    specs.iter().map(load).collect()
}

/// How a context stands in the prompts that are trained on: before the instruction, with an empty line between.
pub fn plain_style() -> E2llmConfig {
    E2llmConfig { context_prefix: String::new(), instruction_prefix: "\n\n".into(), ..E2llmConfig::default() }
}

/// A matrix's start values: torch's for a linear layer, or zeros.
pub(crate) fn start(spec: &TensorSpec, seed: u64, zero: bool) -> candle_core::Result<Tensor> {
    let inputs = spec.shape.last().copied().unwrap_or(1).max(1);
    let bound = if zero { 0.0 } else { 1.0 / (inputs as f64).sqrt() };
    Tensor::from_vec(uniform(seed, &spec.name, spec.len(), bound), spec.shape.clone(), &Device::Cpu)
}

/// Where trained tensors are handed out: as variables they are float32 beside any activations.
pub(crate) fn params(
    tensors: BTreeMap<String, Tensor>,
    device: &Device,
    precision: Precision,
    trainable: bool,
) -> Params {
    let activations = precision.activations();
    let dtype = if trainable && activations != DType::F64 { DType::F32 } else { activations };
    Params::new(tensors, device, dtype, trainable)
}

/// The device and how weights are held there, as a run asks for it.
pub(crate) fn placement(context: &BuildContext) -> Result<(Device, Precision), BackendError> {
    let device = open_device(context.device)?;
    let precision = match context.dtype.as_str() {
        "" if device.is_cpu() => Precision::F32,
        "" => Precision::BF16,
        name => name.parse()?,
    };
    Ok((device, precision))
}

/// A method as a run opens it: its settings, its tensors and what identifies both.
pub(crate) struct Opened<C> {
    pub(crate) settings: C,
    /// Whether the settings are of a checkpoint, whose folder then has the tensors.
    pub(crate) trained: bool,
}

/// The settings of the model's checkpoint, or the default ones where it has none of this method.
pub(crate) fn open<C: DeserializeOwned + Default>(
    context: &BuildContext,
    method: &str,
) -> Result<Opened<C>, BackendError> {
    let folder = context.model.checkpoint.as_deref();
    let known = folder.map(|f| settings_of(f, method)).transpose()?.flatten();
    Ok(Opened { trained: known.is_some(), settings: known.unwrap_or_default() })
}

/// Adds what decides an answer beside the base models: trained tensors, or the seed that start values are made of.
pub(crate) fn hash(
    hash: &mut Fingerprint,
    context: &BuildContext,
    method: &str,
    trained: bool,
) -> Result<(), BackendError> {
    match context.model.checkpoint.as_deref().filter(|_| trained) {
        Some(folder) => {
            let files = Weights::open_named(folder, method)?.files();
            hash.text("trained", &weights_hash(&files)?);
            let name = settings_file(method);
            hash.file(&name, &folder.join(&name)).map_err(|e| BackendError::failed(&e))?;
        }
        None => {
            hash.text("seed", &context.seed.to_string());
        }
    }
    Ok(())
}

/// What every result of start values has to say.
pub(crate) fn untrained(method: &str, what: &str) -> String {
    format!("{method} is UNTRAINED (start values): {what}; train it, and give the checkpoint with --model")
}

/// The error of a model without a part.
pub(crate) fn no_part(method: &str, part: &str) -> BackendError {
    BackendError::failed(&LmError::Input(format!("backend `{method}` needs {part}, and the model has none")))
}
