//! A hash of everything that decides a backend's answers.

use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Collects named parts; the order of the calls matters, the lengths are hashed too.
#[derive(Clone, Default)]
pub struct Fingerprint(Sha256);

impl Fingerprint {
    /// Starts with a name and a code version.
    pub fn new(name: &str, version: &str) -> Self {
        let mut f = Self::default();
        f.text("name", name).text("version", version);
        f
    }

    /// Adds a named text.
    pub fn text(&mut self, name: &str, value: &str) -> &mut Self {
        for part in [name, value] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part.as_bytes());
        }
        self
    }

    /// Adds a file by its content.
    ///
    /// # Errors
    /// Any error of reading it.
    pub fn file(&mut self, name: &str, path: &Path) -> io::Result<&mut Self> {
        let hash = sha256_file(path)?;
        Ok(self.text(name, &hash))
    }

    /// The hash so far: 64 hexadecimal digits.
    pub fn finish(&self) -> String {
        hex(&self.digest())
    }

    /// The same as bytes.
    pub fn digest(&self) -> [u8; 32] {
        self.0.clone().finalize().into()
    }
}

/// SHA-256 of a file, in hexadecimal.
///
/// # Errors
/// Any error of reading it.
pub fn sha256_file(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..n]);
    }
}

/// Lower-case hexadecimal digits of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|b| [DIGITS[(b >> 4) as usize] as char, DIGITS[(b & 15) as usize] as char])
        .collect()
}
