//! An append-only file of JSON lines that survives being killed.

use crate::failure::{Failure, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Reads all lines. A last line that was not finished is left out; anything else that is no `T` is an error.
///
/// # Errors
/// A file that cannot be read or is damaged before its end. A missing file has no lines.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    Ok(scan(path)?.0)
}

/// The lines, and the length of the file up to the last whole one.
fn scan<T: DeserializeOwned>(path: &Path) -> Result<(Vec<T>, u64)> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        Err(e) => return Err(Failure::io("read", path, &e)),
    };
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let (mut all, mut whole, mut line, mut number) = (Vec::new(), 0, Vec::new(), 0u64);
    loop {
        line.clear();
        number += 1;
        let n = reader.read_until(b'\n', &mut line).map_err(|e| Failure::io("read", path, &e))?;
        if n == 0 || line.last() != Some(&b'\n') {
            return Ok((all, whole));
        }
        match serde_json::from_slice(&line) {
            Ok(value) => all.push(value),
            // a write that a crash of the machine cut off may leave rubbish behind the last whole line
            Err(_) if reader.fill_buf().is_ok_and(<[u8]>::is_empty) => return Ok((all, whole)),
            Err(e) => {
                return Err(Failure::failed(format!("{}, line {number}: damaged: {e}", path.display()))
                    .help("remove that line; the sample is done again with --resume"));
            }
        }
        whole += n as u64;
    }
}

/// Appends lines, each written and flushed whole.
pub(super) struct Appender {
    file: File,
    path: PathBuf,
    buffer: Vec<u8>,
}

impl Appender {
    /// Opens a file for appending, after cutting off an unfinished last line, and gives the lines it has.
    ///
    /// # Errors
    /// As [`read`]; a file that cannot be written.
    pub(super) fn open<T: DeserializeOwned>(path: &Path) -> Result<(Self, Vec<T>)> {
        let (lines, whole) = scan(path)?;
        let failed = |e: std::io::Error| Failure::io("write", path, &e);
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .map_err(failed)?;
        file.set_len(whole).map_err(failed)?;
        file.seek(SeekFrom::End(0)).map_err(failed)?;
        Ok((Self { file, path: path.to_owned(), buffer: Vec::new() }, lines))
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

    #[test]
    fn a_torn_tail_is_dropped_and_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        for torn in ["[1]\n[2]\n[3", "[1]\n[2]\n\0\0\0\n", "[1]\n[2]\n"] {
            std::fs::write(&path, torn).unwrap();
            assert_eq!(read::<Vec<u8>>(&path).unwrap(), [vec![1], vec![2]]);
            let (mut appender, lines) = Appender::open::<Vec<u8>>(&path).unwrap();
            assert_eq!(lines.len(), 2);
            appender.append(&[4]).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "[1]\n[2]\n[4]\n");
        }
    }

    #[test]
    fn damage_in_the_middle_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        std::fs::write(&path, "[1]\n[2\n[3]\n").unwrap();
        assert!(read::<Vec<u8>>(&path).unwrap_err().to_string().contains("line 2"));
        assert!(read::<Vec<u8>>(&dir.path().join("none")).unwrap().is_empty());
    }
}
