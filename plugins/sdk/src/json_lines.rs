//! JSON Lines, also compressed: one value a line, streamed.
//!
//! Only LF ends a line: contexts contain U+2028, U+0085 and form feeds, which other readers split at.

use crate::record::Record;
use crate::{Error, Result};
use std::fs::File;
use std::io::{BufRead, BufReader, Cursor};
use std::path::Path;

/// Opens a text file; `.zst` and `.gz` are decompressed on the fly.
///
/// # Errors
/// A file that cannot be opened, naming it.
pub fn open_text(path: &Path) -> Result<Box<dyn BufRead + Send>> {
    let failed = |e: std::io::Error| Error::io(format!("cannot open {}: {e}", path.display()));
    let file = File::open(path).map_err(failed)?;
    Ok(match path.extension().and_then(|e| e.to_str()) {
        Some("zst") => {
            let mut decoder = zstd::Decoder::new(file).map_err(failed)?;
            // files compressed with --long=31 are legal and need a window above the default limit
            decoder.window_log_max(31).map_err(failed)?;
            Box::new(BufReader::with_capacity(1 << 20, decoder))
        }
        Some("gz") => Box::new(BufReader::with_capacity(1 << 20, flate2::read::MultiGzDecoder::new(file))),
        _ => Box::new(BufReader::with_capacity(1 << 20, file)),
    })
}

/// The values of a JSON Lines text. Blank lines are passed over; after an error the stream ends.
pub struct JsonLines {
    name: String,
    reader: Box<dyn BufRead + Send>,
    line: u64,
    buffer: Vec<u8>,
    done: bool,
}

impl JsonLines {
    /// Reads a file.
    ///
    /// # Errors
    /// A file that cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self::from_reader(&path.display().to_string(), open_text(path)?))
    }

    /// Reads a text that is part of the program; `name` stands in messages.
    pub fn embedded(name: &str, text: &'static str) -> Self {
        Self::from_reader(name, Box::new(Cursor::new(text.as_bytes())))
    }

    /// Reads from anything; `name` stands in messages.
    pub fn from_reader(name: &str, reader: Box<dyn BufRead + Send>) -> Self {
        Self { name: name.to_owned(), reader, line: 0, buffer: Vec::new(), done: false }
    }

    fn read(&mut self) -> Result<Option<Record>> {
        loop {
            self.buffer.clear();
            self.line += 1;
            let place = || format!("{}, line {}", self.name, self.line);
            let n = self
                .reader
                .read_until(b'\n', &mut self.buffer)
                .map_err(|e| Error::io(format!("{}: cannot be read: {e}", place())))?;
            if n == 0 {
                return Ok(None);
            }
            if self.buffer.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let text = std::str::from_utf8(&self.buffer)
                .map_err(|e| Error::io(format!("{}: not UTF-8 at byte {}", place(), e.valid_up_to())))?;
            let value = serde_json::from_str(text).map_err(|e| {
                Error::io(format!("{}: not JSON: {}", place(), json_problem(&e)))
                    .with_help("mend or remove that line; every line must be one JSON object")
            })?;
            return Ok(Some(Record { place: place(), value }));
        }
    }
}

impl Iterator for JsonLines {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let item = self.read().transpose();
        self.done = !matches!(item, Some(Ok(_)));
        item
    }
}

/// What is wrong with the text of one line, whose number is told elsewhere.
pub fn json_problem(error: &serde_json::Error) -> String {
    let (all, column) = (error.to_string(), error.column());
    match all.strip_suffix(&format!(" at line {} column {column}", error.line())) {
        Some(what) => format!("{what} at column {column}"),
        None => all,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn only_line_feeds_end_lines() {
        let text = "{\"a\":\"x\u{2028}y\u{85}z\"}\r\n\n{\"a\":2}";
        let got: Vec<_> = JsonLines::embedded("t", text).map(|r| r.unwrap().value).collect();
        assert_eq!(got.len(), 2);
        assert_eq!(got[0]["a"], "x\u{2028}y\u{85}z");
    }

    #[test]
    fn a_broken_line_is_named_and_ends_the_stream() {
        let got: Vec<_> = JsonLines::embedded("f.jsonl", "{}\n{}\n{\"a\":\n{}\n").collect();
        assert_eq!(got.len(), 3);
        let error = got[2].as_ref().unwrap_err();
        assert!(error.message.starts_with("f.jsonl, line 3: not JSON"), "{error}");
        assert!(error.message.contains("at column") && !error.message.contains("line 1"), "{error}");
    }

    #[test]
    fn compressed_files_read_alike() {
        let dir = tempfile::tempdir().unwrap();
        let text = b"{\"a\":1}\n{\"a\":2}\n";
        std::fs::write(dir.path().join("x.jsonl"), text).unwrap();
        std::fs::write(dir.path().join("x.jsonl.zst"), zstd::encode_all(&text[..], 3).unwrap()).unwrap();
        let gz = File::create(dir.path().join("x.jsonl.gz")).unwrap();
        let mut gz = flate2::write::GzEncoder::new(gz, flate2::Compression::fast());
        gz.write_all(text).unwrap();
        gz.finish().unwrap();
        for name in ["x.jsonl", "x.jsonl.zst", "x.jsonl.gz"] {
            let values: Vec<_> =
                JsonLines::open(&dir.path().join(name)).unwrap().map(|r| r.unwrap().value).collect();
            assert_eq!(values, [serde_json::json!({"a": 1}), serde_json::json!({"a": 2})], "{name}");
        }
    }

    #[test]
    fn a_truncated_archive_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let long: String = (0..2000).map(|i| format!("{{\"a\":{i}}}\n")).collect();
        let packed = zstd::encode_all(long.as_bytes(), 3).unwrap();
        let path = dir.path().join("x.jsonl.zst");
        std::fs::write(&path, &packed[..packed.len() / 2]).unwrap();
        let last = JsonLines::open(&path).unwrap().last().unwrap();
        assert!(last.unwrap_err().message.contains("x.jsonl.zst"));
    }
}
