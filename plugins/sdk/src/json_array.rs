//! A file that is one JSON array, or an object around one, streamed element by element: some benchmarks come as a
//! single array of hundreds of megabytes.

use crate::json_lines::open_text;
use crate::record::Record;
use crate::{Error, Result};
use std::io::BufRead;
use std::path::Path;

/// The elements of a JSON array. After an error the stream ends.
pub struct JsonArray {
    name: String,
    reader: Box<dyn BufRead + Send>,
    element: u64,
    state: State,
    field: Option<&'static str>,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Start,
    Inside,
    Done,
}

/// How far an element reaches: brackets open, and whether the scan is inside a string.
#[derive(Default)]
struct Scan {
    depth: usize,
    string: bool,
    escaped: bool,
}

impl JsonArray {
    /// Reads a file.
    ///
    /// # Errors
    /// A file that cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        Ok(Self { name, reader: open_text(path)?, element: 0, state: State::Start, field: None })
    }

    /// Reads the array that is a field of the file's one object.
    ///
    /// # Errors
    /// A file that cannot be opened.
    pub fn field(path: &Path, field: &'static str) -> Result<Self> {
        Ok(Self { field: Some(field), ..Self::open(path)? })
    }

    fn broken(&self, what: &str) -> Error {
        Error::io(format!("{}, element {}: {what}", self.name, self.element))
    }

    /// The next byte that is no white space, left in place; `None` at the end of the file.
    fn peek(&mut self) -> Result<Option<u8>> {
        loop {
            let (skip, found) = {
                let buffer = self.reader.fill_buf().map_err(|e| Error::io(format!("{}: {e}", self.name)))?;
                match buffer.iter().position(|b| !b.is_ascii_whitespace()) {
                    Some(i) => (i, Some(buffer[i])),
                    None if buffer.is_empty() => return Ok(None),
                    None => (buffer.len(), None),
                }
            };
            self.reader.consume(skip);
            if found.is_some() {
                return Ok(found);
            }
        }
    }

    /// The bytes up to the comma or bracket that ends the value.
    fn element(&mut self) -> Result<Vec<u8>> {
        let (mut bytes, mut scan) = (Vec::new(), Scan::default());
        loop {
            let (used, ended) = {
                let buffer = self.reader.fill_buf().map_err(|e| Error::io(format!("{}: {e}", self.name)))?;
                if buffer.is_empty() {
                    return Err(self.broken("the file ends inside it"));
                }
                let end = buffer.iter().position(|&b| scan.ends_at(b));
                let used = end.unwrap_or(buffer.len());
                bytes.extend_from_slice(&buffer[..used]);
                (used, end.is_some())
            };
            self.reader.consume(used);
            if ended {
                return Ok(bytes);
            }
        }
    }

    /// Goes to the array inside the object; what stands before it is passed over, what follows it is not read.
    fn enter(&mut self, field: &str) -> Result<()> {
        let missing = |name: &str| Error::io(format!("{name}: expected a JSON object with a list `{field}`"));
        let mut before = b'{';
        loop {
            if self.peek()? != Some(before) {
                return Err(missing(&self.name));
            }
            self.reader.consume(1);
            let mut key = Vec::new();
            if self.peek()? == Some(b'"') {
                self.reader.consume(1);
                let read = self.reader.read_until(b'"', &mut key);
                read.map_err(|e| Error::io(format!("{}: {e}", self.name)))?;
            }
            if key.pop() != Some(b'"') || self.peek()? != Some(b':') {
                return Err(missing(&self.name));
            }
            self.reader.consume(1);
            if key == field.as_bytes() {
                return Ok(());
            }
            self.element()?;
            before = b',';
        }
    }

    fn read(&mut self) -> Result<Option<Record>> {
        if self.state == State::Start {
            if let Some(field) = self.field {
                self.enter(field)?;
            }
            if self.peek()? != Some(b'[') {
                return Err(Error::io(format!("{}: expected a JSON array", self.name)));
            }
            self.reader.consume(1);
            self.state = State::Inside;
            if self.peek()? == Some(b']') {
                return Ok(None);
            }
        } else {
            match self.peek()? {
                Some(b',') => self.reader.consume(1),
                Some(b']') => return Ok(None),
                _ => return Err(self.broken("expected `,` or `]` after it")),
            }
        }
        self.element += 1;
        let bytes = self.element()?;
        let value = serde_json::from_slice(&bytes).map_err(|e| self.broken(&format!("not JSON: {e}")))?;
        Ok(Some(Record { place: format!("{}, element {}", self.name, self.element), value }))
    }
}

impl Scan {
    fn ends_at(&mut self, byte: u8) -> bool {
        if self.string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.string = false,
                _ => {}
            }
            return false;
        }
        match byte {
            b'"' => self.string = true,
            b'[' | b'{' => self.depth += 1,
            b']' | b'}' if self.depth > 0 => self.depth -= 1,
            b',' | b']' | b'}' if self.depth == 0 => return true,
            _ => {}
        }
        false
    }
}

impl Iterator for JsonArray {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.state == State::Done {
            return None;
        }
        let item = self.read().transpose();
        if !matches!(item, Some(Ok(_))) {
            self.state = State::Done;
        }
        item
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(text: &str) -> Vec<Result<Record>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.json");
        std::fs::write(&path, text).unwrap();
        JsonArray::open(&path).unwrap().collect()
    }

    #[test]
    fn elements_with_brackets_in_strings() {
        let text = " [ {\"a\":\"],}\\\"[\"}, [1,{\"b\":[2]}] ,3 ]\n";
        let got: Vec<_> = read(text).into_iter().map(|r| r.unwrap().value).collect();
        assert_eq!(serde_json::Value::Array(got), serde_json::from_str::<serde_json::Value>(text).unwrap());
        assert!(read("[]").is_empty());
    }

    #[test]
    fn an_array_inside_an_object() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.json");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            JsonArray::field(&path, "Data").unwrap().collect::<Result<Vec<_>>>()
        };
        for before in ["", "\"A\": {\"Data\": [9], \"b\": \"}\"}, \"C\" : null , "] {
            let got = read(&format!("{{{before}\"Data\": [{{\"x\": 1}}, 2], \"Z\": 1}}")).unwrap();
            assert_eq!(got.into_iter().map(|r| r.value).collect::<Vec<_>>(), [json!({"x": 1}), json!(2)]);
        }
        assert!(read("{\"Data\": []}").unwrap().is_empty());
        for broken in ["", "[]", "{}", "{\"A\": 1}", "{\"Data\": 3}", "{\"Da", "{\"A\": [1", "{\"Data\": [1"]
        {
            assert!(read(broken).unwrap_err().message.contains("data.json"), "{broken}");
        }
    }

    #[test]
    fn broken_files_name_the_element() {
        for (text, what) in [
            ("{}", "expected a JSON array"),
            ("[1,{\"a\":", "element 2"),
            ("[1 2]", "element 1"),
            ("", "array"),
        ] {
            let last = read(text).pop().unwrap().unwrap_err();
            assert!(last.message.contains(what), "{text}: {last}");
        }
    }
}
