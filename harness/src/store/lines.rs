//! An append-only file of JSON lines that survives being killed.

use crate::failure::{Failure, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Seek, SeekFrom, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

/// The lines of a file, one by one. A last line that was not finished is left out; anything else that is no `T` is an
/// error. A missing file has no lines.
pub(super) struct Lines<T> {
    reader: Option<BufReader<File>>,
    path: PathBuf,
    line: Vec<u8>,
    number: u64,
    /// Length of the file up to the last whole line read.
    whole: u64,
    of: PhantomData<T>,
}

impl<T: DeserializeOwned> Lines<T> {
    /// Opens a file.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let reader = match File::open(path) {
            Ok(file) => Some(BufReader::with_capacity(1 << 20, file)),
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            Err(e) => return Err(Failure::io("read", path, &e)),
        };
        Ok(Self { reader, path: path.to_owned(), line: Vec::new(), number: 0, whole: 0, of: PhantomData })
    }

    fn read(&mut self) -> Result<Option<T>> {
        let Some(reader) = &mut self.reader else { return Ok(None) };
        self.line.clear();
        self.number += 1;
        let n = reader.read_until(b'\n', &mut self.line).map_err(|e| Failure::io("read", &self.path, &e))?;
        if n == 0 || self.line.last() != Some(&b'\n') {
            return Ok(None);
        }
        match serde_json::from_slice(&self.line) {
            Ok(value) => {
                self.whole += n as u64;
                Ok(Some(value))
            }
            // a write that a crash of the machine cut off may leave rubbish behind the last whole line
            Err(_) if reader.fill_buf().is_ok_and(<[u8]>::is_empty) => Ok(None),
            Err(e) => {
                let place = format!("{}, line {}", self.path.display(), self.number);
                Err(Failure::failed(format!("{place}: damaged: {e}"))
                    .help("remove that line; the sample is done again with --resume"))
            }
        }
    }
}

impl<T: DeserializeOwned> Iterator for Lines<T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Result<T>> {
        let read = self.read();
        if !matches!(read, Ok(Some(_))) {
            self.reader = None;
        }
        read.transpose()
    }
}

/// Appends lines, each written and flushed whole.
pub(super) struct Appender {
    file: File,
    path: PathBuf,
    buffer: Vec<u8>,
}

impl Appender {
    /// Opens a file for appending, after cutting off an unfinished last line; `known` gets the lines it has.
    ///
    /// # Errors
    /// As [`Lines`]; a file that cannot be written.
    pub(super) fn open<T: DeserializeOwned>(path: &Path, mut known: impl FnMut(T)) -> Result<Self> {
        let mut lines = Lines::open(path)?;
        for line in &mut lines {
            known(line?);
        }
        let failed = |e: std::io::Error| Failure::io("write", path, &e);
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .map_err(failed)?;
        file.set_len(lines.whole).map_err(failed)?;
        file.seek(SeekFrom::End(0)).map_err(failed)?;
        Ok(Self { file, path: path.to_owned(), buffer: Vec::new() })
    }

    /// Writes one line. It has left the process when this returns.
    ///
    /// # Errors
    /// A full disk, or any other failure to write.
    pub(super) fn append(&mut self, value: &impl Serialize) -> Result<()> {
        self.buffer.clear();
        serde_json::to_writer(&mut self.buffer, value)
            .map_err(|e| Failure::failed(format!("cannot write {}: {e}", self.path.display())))?;
        self.buffer.push(b'\n');
        self.file.write_all(&self.buffer).map_err(|e| Failure::io("write", &self.path, &e))
    }

    /// Makes sure that everything is on the disk.
    ///
    /// # Errors
    /// A failure to write.
    pub(super) fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|e| Failure::io("write", &self.path, &e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> Result<Vec<Vec<u8>>> {
        Lines::open(path)?.collect()
    }

    #[test]
    fn a_torn_tail_is_dropped_and_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        for torn in ["[1]\n[2]\n[3", "[1]\n[2]\n\0\0\0\n", "[1]\n[2]\n"] {
            std::fs::write(&path, torn).unwrap();
            assert_eq!(read(&path).unwrap(), [vec![1], vec![2]]);
            let mut lines = 0;
            let mut appender = Appender::open(&path, |_: Vec<u8>| lines += 1).unwrap();
            assert_eq!(lines, 2);
            appender.append(&[4]).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "[1]\n[2]\n[4]\n");
        }
    }

    #[test]
    fn damage_in_the_middle_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        std::fs::write(&path, "[1]\n[2\n[3]\n").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("line 2"));
        assert!(read(&dir.path().join("none")).unwrap().is_empty());
    }
}
