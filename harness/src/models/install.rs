//! Writing a file so that it appears under its final name only whole and checked.

use super::catalogue::FileSpec;
use super::error::ModelError;
use super::progress::Meter;
use super::verify::Sha;
use e2llm_backend::CancelFlag;
use std::fs;
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};

/// Ends the name of a file that is being written; it begins with a dot (the hub client's own do not).
pub(crate) const PART: &str = ".part";

/// Why a source did not give a file.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The source's fault: the next one may do better.
    Source(String),
    /// Ours (disk full, no permission, interrupted): no other source would help.
    Fatal(ModelError),
}

impl From<ModelError> for Failure {
    fn from(error: ModelError) -> Self {
        Self::Fatal(error)
    }
}

/// What is known of a file before it is there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected<'a> {
    /// Its name in its folder; may contain `/`.
    pub(crate) name: &'a str,
    /// Bytes.
    pub(crate) size: Option<u64>,
    /// Lower-case hexadecimal.
    pub(crate) sha256: Option<&'a str>,
}

impl<'a> From<&'a FileSpec> for Expected<'a> {
    fn from(spec: &'a FileSpec) -> Self {
        Self { name: &spec.name, size: Some(spec.size), sha256: Some(&spec.sha256) }
    }
}

/// What an installed file turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Installed {
    pub(crate) size: u64,
    pub(crate) sha256: String,
}

/// A folder that files of a model or a task are written to.
#[derive(Debug, Clone)]
pub(crate) struct Target<'a> {
    pub(crate) model: &'a str,
    pub(crate) folder: PathBuf,
    pub(crate) cancel: &'a CancelFlag,
}

impl Target<'_> {
    /// Copies `reader` to the file, checking size and sha256 on the way; nothing is left where it fails.
    pub(super) fn install(
        &self,
        spec: &FileSpec,
        reader: &mut dyn Read,
        meter: &Meter,
    ) -> Result<(), Failure> {
        self.install_expected(spec.into(), reader, meter).map(|_| ())
    }

    /// The same of a file of which less may be known; says what it turned out to be.
    pub(crate) fn install_expected(
        &self,
        expected: Expected<'_>,
        reader: &mut dyn Read,
        meter: &Meter,
    ) -> Result<Installed, Failure> {
        let path = self.folder.join(expected.name);
        let parent = path.parent().unwrap_or(&self.folder);
        let needed = expected.size.unwrap_or(0);
        let io = |action, error| ModelError::io(action, &path, needed, error);
        fs::create_dir_all(parent).map_err(|e| ModelError::io("create folder", parent, needed, e))?;
        let mut part = part_in(parent).map_err(|e| io("create", e))?;
        let mut sha = Sha::new();
        let mut buffer = vec![0; 1 << 20];
        let mut written = 0;
        loop {
            self.check_cancelled()?;
            let n = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) => return Err(Failure::Source(format!("reading failed: {e}"))),
            };
            written += n as u64;
            if let Some(size) = expected.size.filter(|size| written > *size) {
                return Err(Failure::Source(format!("has more than {size} bytes")));
            }
            sha.update(&buffer[..n]);
            part.write_all(&buffer[..n]).map_err(|e| io("write", e))?;
            meter.set(written);
        }
        if let Some(size) = expected.size.filter(|size| written != *size) {
            return Err(Failure::Source(format!("has {written} bytes, not {size}")));
        }
        let sha256 = sha.finish();
        if let Some(right) = expected.sha256.filter(|right| sha256 != *right) {
            return Err(Failure::Source(format!("has sha256 {sha256}, not {right}")));
        }
        part.as_file().sync_all().map_err(|e| io("write", e))?;
        part.persist(&path).map_err(|e| io("rename to", e.error))?;
        Ok(Installed { size: written, sha256 })
    }

    pub(crate) fn check_cancelled(&self) -> Result<(), ModelError> {
        if self.cancel.is_cancelled() {
            return Err(ModelError::Interrupted { model: self.model.to_owned() });
        }
        Ok(())
    }

    /// Removes what a killed process left. Only for the holder of the model's lock.
    pub(super) fn remove_leftovers(&self) {
        remove_leftovers(&self.folder);
    }
}

fn remove_leftovers(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_folder = entry.file_type().is_ok_and(|t| t.is_dir());
        let removed = if name.starts_with('.') && name.ends_with(PART) {
            if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }
        } else {
            if is_folder {
                remove_leftovers(&path);
            }
            Ok(())
        };
        if let Err(error) = removed {
            tracing::debug!(%error, path = %path.display(), "leftover stays");
        }
    }
}

/// A file with a name of its own, so that no two writers share one even where locks do not work.
pub(crate) fn part_in(folder: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".").suffix(PART);
    // Not only for their owner: a cache may be shared. The umask still applies.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder)
}
