//! Writing a checkpoint.

use super::{BASE, BaseModels, CheckpointError, TRAINED, settings_file};
use crate::config::{ConfigError, E2llmConfig};
use candle_core::Tensor;
use e2llm_lm::write_safetensors;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Writes settings, trained tensors and the names of the base models to `folder`, which is made where it is missing.
/// Base models that are there already are left alone. The tensors are in one file, or in shards of `max_bytes` at most.
///
/// Each file is written under another name, synced and then renamed, so that what was there before survives a
/// full disk; the settings come last.
///
/// # Errors
/// Anything that cannot be written.
pub fn save(
    folder: &Path,
    config: &E2llmConfig,
    trained: &BTreeMap<String, Tensor>,
    base: &BaseModels,
    max_bytes: Option<usize>,
) -> Result<(), CheckpointError> {
    save_named(folder, TRAINED, config.to_json(), trained, base, max_bytes)
}

/// As [`save`], of another method: its settings go to `<method>_config.json`, its tensors to `<method>.safetensors`.
///
/// # Errors
/// Anything that cannot be written; settings that are no JSON.
pub fn save_named(
    folder: &Path,
    method: &str,
    settings: Result<String, ConfigError>,
    trained: &BTreeMap<String, Tensor>,
    base: &BaseModels,
    max_bytes: Option<usize>,
) -> Result<(), CheckpointError> {
    fs::create_dir_all(folder).map_err(CheckpointError::io(folder))?;
    write_safetensors(folder, method, trained, max_bytes)?;
    let text = |name: &str, text: Result<String, ConfigError>| -> Result<(), CheckpointError> {
        let path = folder.join(name);
        let text = text.map_err(|source| CheckpointError::Config { path: path.clone(), source })?;
        replace(&path, |path| fs::write(path, &text).map_err(CheckpointError::io(path)))
    };
    if *base != BaseModels::default() {
        text(BASE, serde_json::to_string_pretty(base).map(|t| t + "\n").map_err(ConfigError::Json))?;
    }
    text(&settings_file(method), settings)?;
    File::open(folder).and_then(|f| f.sync_all()).map_err(CheckpointError::io(folder))
}

/// Writes a file beside `path`, makes sure that it is on the disk, and puts it in its place.
fn replace(
    path: &Path,
    write: impl FnOnce(&Path) -> Result<(), CheckpointError>,
) -> Result<(), CheckpointError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    let partial = Path::new(&name);
    let finish = || -> io::Result<()> {
        File::open(partial)?.sync_all()?;
        fs::rename(partial, path)
    };
    let result = write(partial).and_then(|()| finish().map_err(CheckpointError::io(path)));
    if result.is_err() {
        // What could not be finished would only take room; the error that matters is the first one.
        drop(fs::remove_file(partial));
    }
    result
}
