//! Base models by name, and errors of a training as a user sees them.

use crate::failure::{Failure, Result};
use crate::models::{Fetcher, weights_sha256};
use e2llm_backend::ModelFiles;
use e2llm_lm::TunedDecoder;
use e2llm_train::{BaseSource, TrainError};
use std::path::PathBuf;

/// A base model, fetched where needed. `part` says which of a model's files is meant.
///
/// # Errors
/// An unknown name; files that cannot be had; a model without that part.
pub fn base(
    fetcher: &Fetcher,
    name: &str,
    what: &str,
    part: fn(ModelFiles) -> Option<PathBuf>,
) -> Result<BaseSource> {
    let files = fetcher.resolve(name)?;
    if files.checkpoint.as_deref().is_some_and(TunedDecoder::is_at) {
        return Err(Failure::usage(format!("`{name}` was trained and is no base model"))
            .help("name its base model as model.decoder, and the folder as model.start"));
    }
    let path = part(files).ok_or_else(|| Failure::usage(format!("`{name}` is no {what}")))?;
    let sha256 = weights_sha256(&path).map_err(|e| Failure::io("read", &path, &e))?.unwrap_or_default();
    let known = fetcher.catalogue().get(name).is_ok();
    // A checkpoint is looked at from elsewhere: a relative path would lead nowhere.
    let name = if known {
        name.to_owned()
    } else {
        let absolute = std::path::absolute(&path).map_err(|e| Failure::io("find", &path, &e))?;
        absolute.display().to_string()
    };
    Ok(BaseSource { name, path, sha256 })
}

/// An error of `e2llm-train` with what to do about it.
pub fn failure(error: TrainError) -> Box<Failure> {
    let message = error.to_string();
    if error.is_out_of_memory() {
        return Failure::failed(format!("out of memory ({message})")).help(
            "lower compute.micro_positions or set compute.checkpointing = true, and go on from the last checkpoint with \
             --resume; or start anew with compute.dtype = \"bf16\"",
        );
    }
    match error {
        TrainError::Io { path, source } => Failure::io("use", &path, &source),
        TrainError::Config(_) => Failure::usage(message),
        TrainError::Changed { differences, .. } => Failure::usage(message).help(format!(
            "{}\nresume with the same settings, or choose another folder with --out",
            differences.join("\n")
        )),
        TrainError::NotFinite { .. } => Failure::failed(message).help(
            "lower optimizer.lr or max_grad_norm, look at the records of this batch, or compute in f32",
        ),
        _ => Failure::failed(message),
    }
}
