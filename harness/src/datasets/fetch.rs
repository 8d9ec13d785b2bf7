//! Making a task's data files present, and checking them.

use super::catalogue::{DataCatalogue, DataEntry, DownloadSpec};
use super::http::{Patience, download, tag_of};
use super::lock::{Lock, Locked, read_listing, write_listing};
use super::unpack::unpack;
use crate::data::task_folder;
use crate::failure::{Failure, Result};
use crate::models::install::{Expected, Failure as Trouble, Installed, Target};
use crate::models::progress::{Meter, Progress};
use crate::models::sources::{HubFile, download_from_hub, remove_hub_folder};
use crate::models::verify::sha256_of;
use e2llm_backend::CancelFlag;
use hf_hub::{Repo, RepoType};
use serde::Serialize;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// How data is fetched.
#[derive(Debug, Clone)]
pub struct DataSettings {
    /// Downloads are kept in `<cache>/data/<task>/`.
    pub cache: PathBuf,
    /// Refuse the network.
    pub offline: bool,
    /// No progress and no notes on stderr.
    pub quiet: bool,
    /// The model hub's address; `None` for the hub client's default (`HF_ENDPOINT`).
    pub hub_endpoint: Option<String>,
    /// How stubborn plain downloads are.
    pub patience: Patience,
    /// Looked at while downloading.
    pub cancel: CancelFlag,
}

/// A file and how it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileReport {
    /// Its name in the task's folder.
    pub file: String,
    /// How it is.
    pub state: State,
    /// Its sha256, where it is there.
    pub sha256: Option<String>,
    /// Where it comes from.
    pub source: String,
    /// More, for a person.
    pub detail: String,
}

/// How a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Its sha256 is the catalogue's.
    Verified,
    /// Its sha256 is the one it had when it was fetched; the catalogue knows none.
    Unchanged,
    /// It has other bytes.
    Changed,
    /// It is not there.
    Missing,
    /// It is there, but was not fetched and the catalogue knows no sha256.
    Unknown,
}

impl State {
    /// Whether nothing is wrong.
    pub fn is_good(self) -> bool {
        matches!(self, Self::Verified | Self::Unchanged)
    }
}

/// Fetches and checks data.
#[derive(Debug)]
pub struct DataFetcher {
    catalogue: DataCatalogue,
    settings: DataSettings,
    progress: Progress,
}

impl DataFetcher {
    /// A fetcher of the catalogue's data.
    pub fn new(catalogue: DataCatalogue, settings: DataSettings) -> Self {
        let progress = Progress::new(settings.quiet);
        Self { catalogue, settings, progress }
    }

    /// Fetches what is missing of a task into `<root>/<task>/`. `accept` is asked once, with the task's entry,
    /// before the first download.
    ///
    /// # Errors
    /// A task without an entry; a licence that is not accepted; files that cannot be had, or that are there with
    /// other bytes than expected.
    pub fn fetch(
        &self,
        task: &str,
        root: &Path,
        accept: &mut dyn FnMut(&DataEntry) -> Result<()>,
    ) -> Result<(PathBuf, Vec<FileReport>)> {
        let entry = self.catalogue.get(task)?;
        let folder = task_folder(root, task).unwrap_or_else(|_| root.join(task));
        let mut lock = Lock::read(&folder)?;
        lock.task = task.to_owned();
        for spec in &entry.downloads {
            let states = reports(spec, &lock, &folder)?;
            if states.iter().all(|r| r.state.is_good()) {
                continue;
            }
            // the user's own file, or one that changed: not ours to replace
            if let Some(r) = states.iter().find(|r| !matches!(r.state, State::Missing) && !r.state.is_good())
            {
                if r.state == State::Unknown {
                    self.progress.say(&format!("{} is there already and is left as it is", r.file));
                    continue;
                }
                let path = folder.join(&r.file);
                return Err(Failure::failed(format!("{}: {}", path.display(), r.detail))
                    .help("move it away and fetch again"));
            }
            if lock.licence != entry.licence {
                accept(entry)?;
                lock.licence.clone_from(&entry.licence);
            }
            fs::create_dir_all(&folder).map_err(|e| Failure::io("create", &folder, &e))?;
            let locked = self.fetch_one(task, spec, &lock, &folder)?;
            lock.put(locked);
            lock.write(&folder)?;
        }
        Ok((folder.clone(), all_reports(entry, &lock, &folder)?))
    }

    /// Checks a task's files against the catalogue and the lock.
    ///
    /// # Errors
    /// A task without an entry or without a folder; files that cannot be read.
    pub fn verify(&self, task: &str, root: &Path) -> Result<Vec<FileReport>> {
        let entry = self.catalogue.get(task)?;
        let folder = task_folder(root, task)?;
        all_reports(entry, &Lock::read(&folder)?, &folder)
    }

    /// Gets one download into the cache and from there into the task's folder.
    fn fetch_one(&self, task: &str, spec: &DownloadSpec, lock: &Lock, folder: &Path) -> Result<Locked> {
        let known = lock.get(&spec.name).filter(|l| l.source == spec.source());
        let expected = Expected {
            name: &spec.name,
            size: spec.size.or(known.map(|l| l.size)),
            // what came the first time must come again
            sha256: spec.sha256.as_deref().or(known.map(|l| l.sha256.as_str())),
        };
        let cache = self.settings.cache.join("data").join(task);
        let cached = Target { model: task, folder: cache.clone(), cancel: &self.settings.cancel };
        let failed = |trouble: Trouble| self.failure(task, spec, &cache, trouble);
        let got = self.cached(spec, expected, &cached).map_err(failed)?;
        let path = cache.join(&spec.name);
        let target = Target { model: task, folder: folder.to_owned(), cancel: &self.settings.cancel };
        let mut listing = None;
        if let Some(how) = &spec.unpack {
            self.progress.say(&format!("unpacking {}", spec.name));
            let files = unpack(&path, how, &target).map_err(failed)?;
            let name = format!("{}.sha256", spec.name.replace('/', "_"));
            write_listing(&folder.join(&name), &files)?;
            listing = Some(name);
        } else {
            let mut file = File::open(&path).map_err(|e| Failure::io("read", &path, &e))?;
            let right = Expected { size: Some(got.size), sha256: Some(&got.sha256), ..expected };
            target.install_expected(right, &mut file, &Meter::hidden()).map_err(failed)?;
        }
        let pinned = spec.sha256.is_some();
        if !pinned {
            self.progress.say(&format!(
                "no checksum of {} is known: it came with sha256 {}, which is kept in {}",
                spec.name,
                got.sha256,
                super::lock::LOCK
            ));
        }
        Ok(Locked {
            name: spec.name.clone(),
            source: spec.source(),
            size: got.size,
            sha256: got.sha256,
            pinned,
            listing,
        })
    }

    /// The download in the cache, fetched where it is not there.
    fn cached(
        &self,
        spec: &DownloadSpec,
        expected: Expected<'_>,
        cache: &Target<'_>,
    ) -> std::result::Result<Installed, Trouble> {
        let path = cache.folder.join(&spec.name);
        let note = cache.folder.join(format!("{}.source", spec.name));
        if path.is_file() {
            let is = installed(&path)?;
            // without a checksum, what is there must at least be of this source
            let of_source =
                || fs::read_to_string(&note).is_ok_and(|s| s == format!("{} {}", is.sha256, spec.source()));
            let right = match expected.sha256 {
                Some(sha256) => is.sha256 == sha256,
                None => of_source(),
            };
            if right {
                return Ok(is);
            }
        }
        if self.settings.offline {
            return Err(Trouble::Source("is not in the cache, and offline nothing is fetched".into()));
        }
        let parent = path.parent().unwrap_or(&cache.folder);
        let io =
            |action, path: &Path, e| crate::models::ModelError::io(action, path, spec.size.unwrap_or(0), e);
        fs::create_dir_all(parent).map_err(|e| io("create folder", parent, e))?;
        let got = match (&spec.url, &spec.hub) {
            (Some(url), _) => {
                let part = parent.join(format!(".{}.part", file_name(&path)));
                download(url, &part, expected, cache, self.settings.patience, self.progress)?;
                let mut reader = File::open(&part).map_err(|e| io("read", &part, e))?;
                let done = cache.install_expected(expected, &mut reader, &Meter::hidden());
                // right or wrong, it is of no more use
                let _ = fs::remove_file(&part);
                let _ = fs::remove_file(tag_of(&part));
                done?
            }
            (None, Some(hub)) => {
                let repo = Repo::with_revision(hub.repo.clone(), RepoType::Dataset, hub.revision.clone());
                let file = HubFile { repo, member: hub.file.clone() };
                let endpoint = self.settings.hub_endpoint.as_deref();
                let done = download_from_hub(&file, expected, cache, endpoint, self.progress)?;
                remove_hub_folder(cache);
                done
            }
            (None, None) => return Err(Trouble::Source("has no source".into())),
        };
        fs::write(&note, format!("{} {}", got.sha256, spec.source())).map_err(|e| io("write", &note, e))?;
        Ok(got)
    }

    fn failure(&self, task: &str, spec: &DownloadSpec, cache: &Path, trouble: Trouble) -> Box<Failure> {
        match trouble {
            Trouble::Fatal(error) => error.into(),
            Trouble::Source(why) => {
                let again = if self.settings.offline {
                    "run without --offline"
                } else {
                    "run the same command again"
                };
                Failure::failed(format!(
                    "cannot get `{}` of task `{task}` from {}: {why}",
                    spec.name,
                    spec.source()
                ))
                .help(format!(
                    "{again}, or get the file by hand and put it into the task's data folder (an archive: \
                         unpacked); downloads are kept in {}",
                    cache.display()
                ))
            }
        }
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned())
}

fn installed(path: &Path) -> std::result::Result<Installed, Trouble> {
    let io = |e| crate::models::ModelError::io("read", path, 0, e);
    let size = fs::metadata(path).map_err(io)?.len();
    Ok(Installed { size, sha256: sha256_of(path).map_err(io)? })
}

fn all_reports(entry: &DataEntry, lock: &Lock, folder: &Path) -> Result<Vec<FileReport>> {
    let reports =
        entry.downloads.iter().map(|spec| reports(spec, lock, folder)).collect::<Result<Vec<_>>>()?;
    Ok(reports.into_iter().flatten().collect())
}

/// How the files of one download are.
fn reports(spec: &DownloadSpec, lock: &Lock, folder: &Path) -> Result<Vec<FileReport>> {
    let locked = lock.get(&spec.name);
    if spec.unpack.is_none() {
        let right = match (&spec.sha256, locked) {
            (Some(sha256), _) => Some((sha256.as_str(), State::Verified)),
            (None, Some(locked)) => Some((locked.sha256.as_str(), State::Unchanged)),
            (None, None) => None,
        };
        return Ok(vec![report(folder, &spec.name, right, spec)?]);
    }
    let Some(listing) = locked.and_then(|l| l.listing.as_ref()) else {
        return Ok(vec![FileReport {
            file: spec.name.clone(),
            state: State::Missing,
            sha256: None,
            source: spec.source(),
            detail: "was not fetched".into(),
        }]);
    };
    let good = if spec.sha256.is_some() { State::Verified } else { State::Unchanged };
    let files = read_listing(&folder.join(listing))?;
    files.iter().map(|(name, sha256)| report(folder, name, Some((sha256, good)), spec)).collect()
}

fn report(
    folder: &Path,
    name: &str,
    right: Option<(&str, State)>,
    spec: &DownloadSpec,
) -> Result<FileReport> {
    let path = folder.join(name);
    let sha256 = match path.is_file() {
        true => Some(sha256_of(&path).map_err(|e| Failure::io("read", &path, &e))?),
        false => None,
    };
    let (state, detail) = match (&sha256, right) {
        (None, _) => (State::Missing, "is not there".to_owned()),
        (Some(_), None) => (State::Unknown, "was not fetched, and no checksum of it is known".to_owned()),
        (Some(is), Some((right, good))) if is == right => (good, String::new()),
        (Some(is), Some((right, _))) => (State::Changed, format!("has sha256 {is}, not {right}")),
    };
    Ok(FileReport { file: name.to_owned(), state, sha256, source: spec.source(), detail })
}
