//! The folder of a training: its settings and checkpoints.

use crate::config::TrainConfig;
use crate::data::{TRAINED_ON, trained_on};
use crate::{Optimizer, Result, TrainError, Trainable};
use candle_core::{DType, Device};
use e2llm_lm::{Weights, write_safetensors};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

const CONFIG: &str = "config.toml";
const STATE: &str = "state.json";
/// What the files of weights and moments are called, before `.safetensors`.
const TENSORS: &str = "state";
const FORMAT: u32 = 1;

/// The best validation of a phase.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Steps made by then.
    pub step: usize,
    /// Phase.
    pub phase: usize,
    /// The loss that decides, nats per token.
    pub loss: f64,
}

/// Where a training is, beside weights and moments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct State {
    format: u32,
    /// Steps made.
    pub(super) step: usize,
    /// The best validation of the last validated phase.
    pub(super) best: Option<Best>,
    /// Validations since then.
    pub(super) stale: usize,
    /// Of data and frozen weights.
    fingerprint: String,
}

impl State {
    pub(super) fn new(fingerprint: String) -> Self {
        Self { format: FORMAT, step: 0, best: None, stale: 0, fingerprint }
    }
}

/// The folder.
pub(super) struct RunFolder {
    path: PathBuf,
    /// Held against other processes.
    _lock: Option<File>,
}

/// Whether a training with these settings can start in `folder`, or go on there where it is to be resumed.
///
/// # Errors
/// A training that is there and is not to be resumed, or was started with other settings.
pub fn check_folder(folder: &Path, config: &TrainConfig, resume: bool) -> Result<()> {
    let file = folder.join(CONFIG);
    if !file.exists() {
        return Ok(());
    }
    if !resume {
        let at = folder.display();
        return Err(TrainError::Config(format!(
            "there is a training in {at} already: go on with it (--resume), or choose another folder (--out)"
        )));
    }
    let text = fs::read_to_string(&file).map_err(TrainError::io(&file))?;
    let old: TrainConfig = toml::from_str(&text).map_err(|e| TrainError::file(&file, e))?;
    let differences = config.differences(&old)?;
    if differences.is_empty() {
        return Ok(());
    }
    Err(TrainError::Changed { folder: folder.to_owned(), differences })
}

impl RunFolder {
    /// Starts a training in `path`, or goes on with the one that is there.
    pub(super) fn open(path: &Path, config: &TrainConfig, resume: bool) -> Result<Self> {
        fs::create_dir_all(path.join("checkpoints")).map_err(TrainError::io(path))?;
        let folder = Self { path: path.to_owned(), _lock: claim(path)? };
        check_folder(path, config, resume)?;
        let file = path.join(CONFIG);
        folder.remove_partial()?;
        let text = config_text(config)?;
        let partial = path.join("config.toml.partial");
        fs::write(&partial, text).map_err(TrainError::io(&partial))?;
        fs::rename(&partial, &file).map_err(TrainError::io(&file))?;
        Ok(folder)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn checkpoint(&self, step: usize) -> PathBuf {
        self.path.join("checkpoints").join(format!("step-{step:08}"))
    }

    /// Steps of all checkpoints, in order.
    fn steps(&self) -> Result<Vec<usize>> {
        let folder = self.path.join("checkpoints");
        let mut steps = Vec::new();
        for entry in fs::read_dir(&folder).map_err(TrainError::io(&folder))? {
            let name = entry.map_err(TrainError::io(&folder))?.file_name();
            let number = name.to_str().and_then(|n| n.strip_prefix("step-"));
            steps.extend(number.and_then(|n| n.parse::<usize>().ok()));
        }
        steps.sort_unstable();
        Ok(steps)
    }

    /// Removes what an interrupted process left unfinished.
    fn remove_partial(&self) -> Result<()> {
        let folder = self.path.join("checkpoints");
        for entry in fs::read_dir(&folder).map_err(TrainError::io(&folder))? {
            let path = entry.map_err(TrainError::io(&folder))?.path();
            if path.extension().is_some_and(|e| e == "partial") {
                fs::remove_dir_all(&path).map_err(TrainError::io(&path))?;
            }
        }
        Ok(())
    }

    /// Goes back to the last checkpoint, if there is one.
    pub(super) fn restore(&self, fingerprint: &str, optimizer: &mut Optimizer) -> Result<Option<State>> {
        let Some(step) = self.steps()?.pop() else { return Ok(None) };
        let folder = self.checkpoint(step);
        let path = folder.join(STATE);
        let text = fs::read_to_string(&path).map_err(TrainError::io(&path))?;
        let state: State = serde_json::from_str(&text).map_err(|e| TrainError::file(&path, e))?;
        if state.format != FORMAT {
            return Err(TrainError::file(&path, format!("format {}, expected {FORMAT}", state.format)));
        }
        if state.fingerprint != fingerprint {
            let differences =
                vec!["the data or the base models are not those it was started with".to_owned()];
            return Err(TrainError::Changed { folder: self.path.clone(), differences });
        }
        let file = Weights::open_named(&folder, TENSORS)?;
        let load = |name: &String| Ok((name.clone(), file.load(name, DType::F32, &Device::Cpu)?));
        let tensors = file.tensors().keys().map(load).collect::<Result<_>>()?;
        optimizer.restore(&tensors, state.step)?;
        Ok(Some(state))
    }

    /// Writes a checkpoint under another name, makes sure that it is on the disk, and only then gives it its own: a
    /// full disk or a killed process leaves those before it as they are.
    pub(super) fn save(
        &self,
        model: &dyn Trainable,
        optimizer: &Optimizer,
        config: &TrainConfig,
        state: &State,
    ) -> Result<PathBuf> {
        let folder = self.checkpoint(state.step);
        if folder.exists() {
            return Ok(folder);
        }
        let partial = folder.with_extension("partial");
        let written = self.write(&partial, model, optimizer, config, state);
        let renamed = written.and_then(|()| fs::rename(&partial, &folder).map_err(TrainError::io(&folder)));
        if renamed.is_err() {
            // What could not be finished only takes room; the error that matters is the first one.
            drop(fs::remove_dir_all(&partial));
        }
        renamed?;
        sync(&self.path.join("checkpoints"))?;
        Ok(folder)
    }

    fn write(
        &self,
        folder: &Path,
        model: &dyn Trainable,
        optimizer: &Optimizer,
        config: &TrainConfig,
        state: &State,
    ) -> Result<()> {
        fs::create_dir_all(folder).map_err(TrainError::io(folder))?;
        model.save(folder)?;
        write_safetensors(folder, TENSORS, &optimizer.tensors(), None)?;
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            fs::write(&path, text).map_err(TrainError::io(&path))
        };
        write(CONFIG, config_text(config)?)?;
        // Something of a caller's own may be trained on no prepared data.
        if !config.data.folder.as_os_str().is_empty() {
            write(TRAINED_ON, trained_on(&config.data.folder, config.model.start.as_deref())?)?;
        }
        let json = serde_json::to_string_pretty(state).map_err(|e| TrainError::file(folder, e))?;
        write(STATE, json + "\n")?;
        sync_all(folder)
    }

    /// Keeps the best checkpoint and the last `keep` ones, and links `best` and `last`, which are one where nothing was validated.
    pub(super) fn tidy(&self, best: Option<Best>, keep: usize) -> Result<()> {
        let steps = self.steps()?;
        let best = best.map(|b| b.step);
        for step in &steps[..steps.len().saturating_sub(keep)] {
            if Some(*step) != best {
                let folder = self.checkpoint(*step);
                fs::remove_dir_all(&folder).map_err(TrainError::io(&folder))?;
            }
        }
        let last = steps.last().copied();
        for (name, step) in [("best", best.or(last)), ("last", last)] {
            if let Some(step) = step.filter(|s| steps.contains(s)) {
                link(&self.path.join(name), &Path::new("checkpoints").join(format!("step-{step:08}")))?;
            }
        }
        Ok(())
    }
}

/// Locks a folder against other processes for as long as the file is held.
fn claim(folder: &Path) -> Result<Option<File>> {
    let path = folder.join(".lock");
    let file = File::create(&path).map_err(TrainError::io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => {
            let message = "another process is training in this folder";
            Err(TrainError::file(folder, message))
        }
        // A file system without locks: two trainings in one folder are the user's to avoid.
        Err(TryLockError::Error(_)) => Ok(None),
    }
}

fn config_text(config: &TrainConfig) -> Result<String> {
    toml::to_string_pretty(config).map_err(|e| TrainError::Config(e.to_string()))
}

/// Makes sure that a folder's files, and those of the folders in it, are on the disk.
fn sync_all(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(TrainError::io(folder))? {
        let path = entry.map_err(TrainError::io(folder))?.path();
        if path.is_dir() && !path.is_symlink() { sync_all(&path)? } else { sync(&path)? }
    }
    sync(folder)
}

fn sync(path: &Path) -> Result<()> {
    match File::open(path).and_then(|f| f.sync_all()) {
        // Folders cannot be synced everywhere; their files were.
        Err(e) if path.is_dir() && e.kind() != io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(TrainError::io(path)),
    }
}

/// Makes `name` a link to `target`, replacing an old one at once. Convenience only: nothing here reads it.
#[cfg(unix)]
fn link(name: &Path, target: &Path) -> Result<()> {
    let partial = name.with_extension("partial");
    drop(fs::remove_file(&partial));
    std::os::unix::fs::symlink(target, &partial).map_err(TrainError::io(&partial))?;
    fs::rename(&partial, name).map_err(TrainError::io(name))
}

/// Links to folders need rights elsewhere.
#[cfg(not(unix))]
fn link(_: &Path, _: &Path) -> Result<()> {
    Ok(())
}
