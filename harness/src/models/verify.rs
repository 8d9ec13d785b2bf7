//! Checking files against their sha256, and remembering what was checked.

use super::catalogue::FileSpec;
use super::install::part_in;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A file that was changed less than this before it was hashed may change again without a new time stamp.
const SETTLED: Duration = Duration::from_secs(2);

/// How a file compares with the catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "state", content = "detail")]
pub enum FileState {
    /// Its sha256 is the catalogue's.
    Verified,
    /// There is no such file.
    Missing,
    /// It is there, but is something else; says what.
    Corrupt(String),
    /// The catalogue does not know the file.
    Unlisted,
}

/// A running sha256.
pub(crate) struct Sha(Sha256);

impl Sha {
    pub(crate) fn new() -> Self {
        Self(Sha256::new())
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Lower-case hexadecimal.
    pub(crate) fn finish(self) -> String {
        self.0.finalize().iter().fold(String::with_capacity(64), |mut hex, byte| {
            // Writing to a String cannot fail.
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }
}

/// The sha256 of a file's bytes.
pub(crate) fn sha256_of(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut sha = Sha::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(sha.finish()),
            n => sha.update(&buffer[..n]),
        }
    }
}

/// Whether a file holds weights, by its name.
pub(super) fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".gguf") || name == e2llm_lm::RandomWeights::FILE
}

/// One sha256 for one or several weights files; see [`Entry::weights_sha256`](super::Entry::weights_sha256).
pub(super) fn combined_sha256(mut files: Vec<(String, String)>) -> Option<String> {
    files.sort();
    match files.as_slice() {
        [] => None,
        [(_, sha256)] => Some(sha256.clone()),
        several => {
            let mut sha = Sha::new();
            for (name, sha256) in several {
                sha.update(format!("{sha256}  {name}\n").as_bytes());
            }
            Some(sha.finish())
        }
    }
}

/// What was true of a file when it was hashed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    identity: String,
    sha256: String,
}

/// Remembers verified files, so that weights are not hashed at each start.
///
/// A record counts only while size, inode, modification and change time are those of the hashed file, and is
/// made only for files that had not changed for two seconds: a changed file never passes by its record (the
/// change time cannot be set back by a program). A lost or unreadable record costs one more hashing.
#[derive(Debug, Clone)]
pub(super) struct Verifier {
    records: PathBuf,
}

impl Verifier {
    pub(super) fn new(cache: &Path) -> Self {
        Self { records: cache.join("verified.json") }
    }

    /// Compares the file at `path` with `spec`.
    ///
    /// # Errors
    /// A file that cannot be read, other than a missing one.
    pub(super) fn check(&self, path: &Path, spec: &FileSpec) -> io::Result<FileState> {
        let before = match fs::metadata(path) {
            Ok(m) => m,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(FileState::Missing);
            }
            Err(e) => return Err(e),
        };
        if !before.is_file() {
            return Ok(FileState::Corrupt("not a file".into()));
        }
        if before.len() != spec.size {
            return Ok(FileState::Corrupt(format!("has {} bytes, not {}", before.len(), spec.size)));
        }
        let key = std::path::absolute(path)?.to_string_lossy().into_owned();
        let identity = identity(&before);
        let known = self.read();
        if known.get(&key).is_some_and(|s| s.identity == identity && s.sha256 == spec.sha256) {
            return Ok(FileState::Verified);
        }
        let sha256 = sha256_of(path)?;
        if sha256 != spec.sha256 {
            return Ok(FileState::Corrupt(format!("has sha256 {sha256}, not {}", spec.sha256)));
        }
        if self::identity(&fs::metadata(path)?) != identity {
            return Ok(FileState::Corrupt("changed while it was being read".into()));
        }
        if is_settled(&before) {
            self.record(key, Stamp { identity, sha256 });
        }
        Ok(FileState::Verified)
    }

    fn read(&self) -> BTreeMap<String, Stamp> {
        let text = fs::read(&self.records).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Keeps a stamp. A cache that cannot be written is no reason to refuse good files.
    fn record(&self, key: String, stamp: Stamp) {
        let mut all = self.read();
        all.insert(key, stamp);
        let written = || -> io::Result<()> {
            let folder = self.records.parent().unwrap_or(Path::new("."));
            fs::create_dir_all(folder)?;
            let mut file = part_in(folder)?;
            file.write_all(&serde_json::to_vec_pretty(&all)?)?;
            file.persist(&self.records)?;
            Ok(())
        };
        if let Err(error) = written() {
            tracing::debug!(%error, records = %self.records.display(), "verified files are not remembered");
        }
    }
}

/// Everything by which the system shows that a file was changed or replaced.
#[cfg(unix)]
fn identity(m: &Metadata) -> String {
    use std::os::unix::fs::MetadataExt as _;
    let (mtime, ctime) = ((m.mtime(), m.mtime_nsec()), (m.ctime(), m.ctime_nsec()));
    format!("{}:{}.{:09}:{}.{:09}:{}", m.len(), mtime.0, mtime.1, ctime.0, ctime.1, m.ino())
}

#[cfg(not(unix))]
fn identity(m: &Metadata) -> String {
    let nanos = |t: io::Result<SystemTime>| {
        t.ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).map_or(0, |d| d.as_nanos())
    };
    format!("{}:{}:{}", m.len(), nanos(m.modified()), nanos(m.created()))
}

/// Whether the last change lies far enough back for its time stamp to be told from that of a next one.
fn is_settled(m: &Metadata) -> bool {
    #[cfg(unix)]
    let changed = {
        use std::os::unix::fs::MetadataExt as _;
        UNIX_EPOCH + Duration::from_secs(u64::try_from(m.ctime().max(m.mtime())).unwrap_or(0) + 1)
    };
    #[cfg(not(unix))]
    let changed = m.modified().unwrap_or(UNIX_EPOCH);
    SystemTime::now().duration_since(changed).is_ok_and(|age| age >= SETTLED)
}
