//! One record of a data file, with where it stands for messages.

use crate::json_lines::open_text;
use crate::{Error, Example, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// A JSON value and its place.
#[derive(Debug, Clone)]
pub struct Record {
    /// File and line, or file and element.
    pub place: String,
    /// The value.
    pub value: Value,
}

impl Record {
    /// Reads a file that is one JSON value.
    ///
    /// # Errors
    /// A file that cannot be read or is no JSON, naming it.
    pub fn open(path: &Path) -> Result<Self> {
        let place = path.display().to_string();
        match serde_json::from_reader(open_text(path)?) {
            Ok(value) => Ok(Self { place, value }),
            Err(e) => Err(Error::io(format!("{place}: not JSON: {e}"))),
        }
    }

    /// A part of this record as a record of its own: `what` says which part, in messages.
    pub fn part(&self, what: impl std::fmt::Display, value: &Value) -> Self {
        Self { place: format!("{}, {what}", self.place), value: value.clone() }
    }

    /// Whether it is a record of the plain format `{"id","context","prompt","answers","meta"}`.
    pub fn is_plain(&self) -> bool {
        ["id", "context", "prompt", "answers"].iter().all(|k| self.value.get(k).is_some())
    }

    /// An error at this record.
    pub fn error(&self, what: impl std::fmt::Display) -> Error {
        Error::io(format!("{}: {what}", self.place))
    }

    /// A text field.
    ///
    /// # Errors
    /// A field that is missing or no text, naming it.
    pub fn text(&self, field: &str) -> Result<&str> {
        match self.value.get(field) {
            Some(Value::String(s)) => Ok(s),
            Some(other) => Err(self.error(format!("field `{field}` is {}, expected a text", kind(other)))),
            None => Err(self.error(format!("field `{field}` is missing"))),
        }
    }

    /// A text field, or the text of a number.
    ///
    /// # Errors
    /// As [`Record::text`].
    pub fn text_or_number(&self, field: &str) -> Result<String> {
        match self.value.get(field) {
            Some(Value::Number(n)) => Ok(n.to_string()),
            _ => self.text(field).map(str::to_owned),
        }
    }

    /// A list field.
    ///
    /// # Errors
    /// A field that is missing or no list, naming it.
    pub fn list(&self, field: &str) -> Result<&[Value]> {
        match self.value.get(field) {
            Some(Value::Array(a)) => Ok(a),
            Some(other) => Err(self.error(format!("field `{field}` is {}, expected a list", kind(other)))),
            None => Err(self.error(format!("field `{field}` is missing"))),
        }
    }

    /// A list of texts; a single text counts as a list of one.
    ///
    /// # Errors
    /// As [`Record::list`], and an item that is no text.
    pub fn texts(&self, field: &str) -> Result<Vec<String>> {
        if let Some(Value::String(s)) = self.value.get(field) {
            return Ok(vec![s.clone()]);
        }
        let item = |v: &Value| {
            v.as_str()
                .map(str::to_owned)
                .ok_or_else(|| self.error(format!("field `{field}` holds {}, expected texts", kind(v))))
        };
        self.list(field)?.iter().map(item).collect()
    }

    /// An object field; empty where it is missing or null.
    pub fn object(&self, field: &str) -> Map<String, Value> {
        self.value.get(field).and_then(Value::as_object).cloned().unwrap_or_default()
    }

    /// Reads the plain format. The group is the first of `group_keys` that `meta` has, else the context itself.
    ///
    /// # Errors
    /// A missing field, or an empty list of answers.
    pub fn plain(&self, group_keys: &[&str]) -> Result<Example> {
        let meta = self.object("meta");
        let context = self.text("context")?;
        let named = group_keys.iter().find_map(|k| match meta.get(*k) {
            Some(Value::String(s)) => Some(s.clone()),
            Some(Value::Number(n)) => Some(n.to_string()),
            _ => None,
        });
        let references = self.texts("answers")?;
        if references.is_empty() {
            return Err(self.error("field `answers` is empty: a sample without a reference cannot be scored"));
        }
        Ok(Example {
            id: self.text_or_number("id")?,
            instruction: self.text("prompt")?.to_owned(),
            group: named.unwrap_or_else(|| context_group(context)),
            context: context.to_owned(),
            references,
            meta,
        })
    }
}

/// A group name made from the context: samples of one text form one group, in every run and on every machine.
pub fn context_group(context: &str) -> String {
    // FNV-1a: fixed for ever, unlike the standard library's hasher
    let hash = context
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    format!("context-{hash:016x}")
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn record(value: Value) -> Record {
        Record { place: "f.jsonl, line 3".into(), value }
    }

    #[test]
    fn plain_records() {
        let r =
            record(json!({"id": 7, "context": "c", "prompt": "p", "answers": ["a"], "meta": {"doc": "d"}}));
        assert!(r.is_plain());
        let e = r.plain(&["document_id", "doc"]).unwrap();
        assert_eq!((e.id.as_str(), e.group.as_str(), e.references.len()), ("7", "d", 1));
        let e = r.plain(&[]).unwrap();
        assert!(e.group.starts_with("context-"));
    }

    #[test]
    fn errors_name_place_and_field() {
        let r = record(json!({"id": "x", "context": 3, "prompt": "p", "answers": []}));
        assert_eq!(
            r.plain(&[]).unwrap_err().message,
            "f.jsonl, line 3: field `context` is a number, expected a text"
        );
        let r = record(json!({"id": "x", "context": "c", "prompt": "p", "answers": []}));
        assert!(r.plain(&[]).unwrap_err().message.contains("`answers` is empty"));
    }
}
