//! Records of a declared task's files, and values in them.

use super::parquet;
use super::spec::{Format, SourceSpec, TaskSpec};
use csv::StringRecord;
use e2llm_plugin::json_array::JsonArray;
use e2llm_plugin::json_lines::{JsonLines, open_text};
use e2llm_plugin::record::Record;
use e2llm_plugin::source::{Records, bare_name};
use e2llm_plugin::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// Streams the records of a file.
///
/// # Errors
/// A file that cannot be opened, or that is empty. A broken record is an error item.
pub(super) fn read(path: &Path, task: &TaskSpec) -> Result<Records> {
    let spec = &task.source;
    let records: Records = match spec.format.unwrap_or_else(|| by_name(path)) {
        Format::Jsonl => Box::new(JsonLines::open(path)?),
        Format::Json => Box::new(JsonArray::open(path)?),
        Format::Csv => columns(path, spec)?,
        Format::Parquet => parquet::rows(path, task)?,
    };
    let mut records = records.peekable();
    if records.peek().is_none() {
        return Err(Error::io(format!("{} is empty", path.display())));
    }
    Ok(Box::new(records))
}

fn by_name(path: &Path) -> Format {
    let name = bare_name(path);
    if name.ends_with(".csv") || name.ends_with(".tsv") {
        Format::Csv
    } else if name.ends_with(".json") {
        Format::Json
    } else if name.ends_with(".parquet") {
        Format::Parquet
    } else {
        Format::Jsonl
    }
}

/// The rows of a CSV file as objects of texts.
fn columns(path: &Path, spec: &SourceSpec) -> Result<Records> {
    let name = path.display().to_string();
    let tabs = if bare_name(path).ends_with(".tsv") { b'\t' } else { b',' };
    let delimiter = spec.delimiter.as_ref().and_then(|d| d.get_ref().bytes().next()).unwrap_or(tabs);
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(open_text(path)?);
    let heading = reader.headers().map_err(|e| Error::io(format!("{name}: {e}")))?.clone();
    // a byte order mark is no part of the first name
    let heading: StringRecord = heading.iter().map(|h| h.trim_start_matches('\u{feff}')).collect();
    Ok(Box::new(reader.into_records().map(move |row| {
        let row = row.map_err(|e| Error::io(format!("{name}: {e}")))?;
        let line = row.position().map_or(0, csv::Position::line);
        let fields = heading.iter().zip(&row).map(|(key, value)| (key.to_owned(), Value::from(value)));
        let value = Value::Object(fields.collect::<Map<_, _>>());
        Ok(Record { place: format!("{name}, line {line}"), value })
    })))
}

/// The samples of a record: itself, or one for each item of a list in it, called `item`.
///
/// # Errors
/// A record without that list.
pub(super) fn samples(record: Record, each: Option<&str>) -> Result<Vec<Record>> {
    let Some(each) = each else { return Ok(vec![record]) };
    let Some(Value::Array(items)) = at(&record.value, each) else {
        return Err(record.error(format!("`{each}` (source.each) is no list")));
    };
    let items = items.clone();
    let sample = |(i, item): (usize, Value)| {
        let mut value = record.value.clone();
        if let Value::Object(fields) = &mut value {
            fields.insert("item".into(), item);
        }
        Record { place: format!("{}, item {}", record.place, i + 1), value }
    };
    Ok(items.into_iter().enumerate().map(sample).collect())
}

/// The value at a path such as `meta.level` or `answers.0`. A key that has dots itself is found as it is.
pub(super) fn at<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    if let Some(found) = value.get(path) {
        return Some(found);
    }
    let (first, rest) = path.split_once('.').map_or((path, None), |(f, r)| (f, Some(r)));
    let found = match value {
        Value::Array(items) => items.get(first.parse::<usize>().ok()?)?,
        value => value.get(first)?,
    };
    rest.map_or(Some(found), |rest| at(found, rest))
}

/// A text, number or boolean as text.
pub(super) fn text(record: &Record, what: &str, path: &str) -> Result<String> {
    let found = at(&record.value, path);
    found
        .and_then(as_text)
        .ok_or_else(|| record.error(format!("field `{path}` (fields.{what}) {}", is(found))))
}

/// A text or a list of texts.
pub(super) fn texts(record: &Record, what: &str, path: &str) -> Result<Vec<String>> {
    let found = at(&record.value, path);
    let all = match found {
        Some(Value::Array(items)) => items.iter().map(as_text).collect::<Option<_>>(),
        other => other.and_then(as_text).map(|one| vec![one]),
    };
    all.ok_or_else(|| record.error(format!("field `{path}` (fields.{what}) {}", is(found))))
}

fn as_text(value: &Value) -> Option<String> {
    match value {
        Value::String(s) => Some(s.clone()),
        Value::Number(n) => Some(n.to_string()),
        Value::Bool(b) => Some(b.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

fn is(found: Option<&Value>) -> &'static str {
    match found {
        None => "is missing",
        Some(Value::Null) => "is null, expected a text",
        Some(_) => "is no text, and no list of texts where one may be",
    }
}
