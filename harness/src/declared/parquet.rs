//! Rows of a Parquet file as records: a row group after another, a few rows at a time.

use super::spec::TaskSpec;
use crate::failure::did_you_mean;
use e2llm_plugin::record::Record;
use e2llm_plugin::source::{Records, bare_name};
use e2llm_plugin::{Error, Result};
use parquet::basic::ConvertedType;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::{ReaderIter, TreeBuilder};
use parquet::record::{Field, Row};
use parquet::schema::types::{SchemaDescPtr, SchemaDescriptor, Type};
use serde_json::{Map, Value};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// Values of a column decoded at once: contexts are long.
const ROWS: usize = 16;

/// Streams the rows of a file.
///
/// # Errors
/// A file that cannot be opened or is no Parquet file; a column that the task needs and the file does not have.
pub(super) fn rows(path: &Path, spec: &TaskSpec) -> Result<Records> {
    let name = path.display().to_string();
    if path.file_name().and_then(|n| n.to_str()) != Some(bare_name(path)) {
        return Err(Error::io(format!("{name}: a Parquet file cannot be read in .zst or .gz"))
            .with_help("unpack it: its columns are compressed themselves"));
    }
    let file = File::open(path).map_err(|e| Error::io(format!("cannot open {name}: {e}")))?;
    let reader = SerializedFileReader::new(file).map_err(|e| Error::io(format!("{name}: {}", what(&e))))?;
    let schema = reader.metadata().file_metadata().schema_descr_ptr();
    check(&name, &schema, spec)?;
    Ok(Box::new(Rows { name, reader, schema, group: 0, open: None, row: 0, failed: false }))
}

/// Whether the columns of a task are there, and of types that can be read.
fn check(name: &str, schema: &SchemaDescriptor, spec: &TaskSpec) -> Result<()> {
    let columns: Vec<&str> = schema.root_schema().get_fields().iter().map(|f| f.name()).collect();
    let is_there = |path: &str| {
        let first = path.split('.').next().unwrap_or(path);
        columns.iter().any(|c| *c == path || *c == first) || (spec.source.each.is_some() && first == "item")
    };
    let fields = &spec.fields;
    let paths = [
        ("source.each", spec.source.each.as_ref()),
        ("fields.id", fields.id.as_ref()),
        ("fields.context", Some(&fields.context)),
        ("fields.options", fields.options.as_ref()),
        ("fields.group", fields.group.as_ref()),
    ];
    let references = fields.references.get_ref();
    let reference = references.first().filter(|_| !references.iter().any(|r| is_there(r)));
    let wanted = paths.into_iter().chain([("fields.references", reference)]);
    for (key, path) in wanted.filter_map(|(key, path)| Some((key, path?))) {
        if !is_there(path) {
            let help = format!("its columns are: {}", columns.join(", "));
            let near = did_you_mean(path, columns.iter().copied());
            return Err(Error::io(format!("{name} has no column `{path}` ({key})"))
                .with_help(if near.is_empty() { help } else { format!("{near} {help}") }));
        }
    }
    let odd = schema.columns().iter().find(|c| c.converted_type() == ConvertedType::INTERVAL);
    odd.map_or(Ok(()), |c| {
        Err(Error::io(format!("{name}: column `{}` holds intervals, which cannot be read", c.path())))
    })
}

struct Rows {
    name: String,
    reader: SerializedFileReader<File>,
    schema: SchemaDescPtr,
    /// The row group to open next.
    group: usize,
    open: Option<ReaderIter>,
    /// Rows read.
    row: u64,
    failed: bool,
}

impl Rows {
    fn read(&mut self) -> std::result::Result<Option<Row>, ParquetError> {
        loop {
            if let Some(row) = self.open.as_mut().and_then(Iterator::next) {
                return row.map(Some);
            }
            if self.group == self.reader.num_row_groups() {
                return Ok(None);
            }
            self.group += 1;
            self.open = Some(self.open_group(self.group - 1, &self.schema)?);
        }
    }

    fn open_group(
        &self,
        group: usize,
        schema: &SchemaDescPtr,
    ) -> std::result::Result<ReaderIter, ParquetError> {
        let group = self.reader.get_row_group(group)?;
        TreeBuilder::new().with_batch_size(ROWS).as_iter(Arc::clone(schema), &*group)
    }

    /// The first column that cannot be read from the row group that is open.
    fn broken_column(&self) -> Option<String> {
        let root = self.schema.root_schema();
        let group = self.group.checked_sub(1)?;
        let is_broken = |field: &&Arc<Type>| {
            let alone = Type::group_type_builder(root.name()).with_fields(vec![Arc::clone(field)]).build();
            let rows = alone
                .and_then(|alone| self.open_group(group, &Arc::new(SchemaDescriptor::new(Arc::new(alone)))));
            rows.map_or(true, |mut rows| rows.any(|row| row.is_err()))
        };
        root.get_fields().iter().find(is_broken).map(|f| f.name().to_owned())
    }
}

impl Iterator for Rows {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        self.row += 1;
        let place = format!("{}, row {}", self.name, self.row);
        let item = match self.read() {
            Ok(None) => return None,
            Ok(Some(row)) => object(&row).map_err(|(column, e)| format!("column `{column}`: {e}")),
            Err(e) => Err(match self.broken_column() {
                Some(column) => format!("column `{column}`: {}", what(&e)),
                None => what(&e),
            }),
        };
        self.failed = item.is_err();
        Some(match item {
            Ok(value) => Ok(Record { place, value }),
            Err(e) => Err(Error::io(format!("{place}: {e}"))),
        })
    }
}

/// The row's columns by their names; else the column that has no such form, and why.
fn object(row: &Row) -> std::result::Result<Value, (String, String)> {
    let field = |(name, field): (&String, &Field)| match json(field) {
        Ok(value) => Ok((name.clone(), value)),
        Err(e) => Err((name.clone(), e)),
    };
    row.get_column_iter().map(field).collect::<std::result::Result<Map<_, _>, _>>().map(Value::Object)
}

fn json(field: &Field) -> std::result::Result<Value, String> {
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(b) => (*b).into(),
        Field::Byte(n) => (*n).into(),
        Field::Short(n) => (*n).into(),
        Field::Int(n) => (*n).into(),
        Field::Long(n) => (*n).into(),
        Field::UByte(n) => (*n).into(),
        Field::UShort(n) => (*n).into(),
        Field::UInt(n) => (*n).into(),
        Field::ULong(n) => (*n).into(),
        Field::Double(x) => (*x).into(),
        Field::Str(text) => text.as_str().into(),
        // as it is written, not with the digits that a wider type adds
        Field::Float(x) => x.to_string().parse::<f64>().map_or(Value::Null, Value::from),
        Field::Float16(x) => x.to_string().parse::<f64>().map_or(Value::Null, Value::from),
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => text.into(),
            Err(_) => return Err(format!("{} bytes that are no text", bytes.len())),
        },
        Field::Group(row) => object(row).map_err(|(name, e)| format!("`{name}`: {e}"))?,
        Field::ListInternal(list) => {
            Value::Array(list.elements().iter().map(json).collect::<std::result::Result<_, _>>()?)
        }
        Field::MapInternal(map) => {
            let key = |key: &Field| match key {
                Field::Str(text) => text.clone(),
                other => other.to_string(),
            };
            let entry = |(k, v): &(Field, Field)| json(v).map(|v| (key(k), v));
            Value::Object(map.entries().iter().map(entry).collect::<std::result::Result<_, _>>()?)
        }
        Field::Decimal(_)
        | Field::Date(_)
        | Field::TimeMillis(_)
        | Field::TimeMicros(_)
        | Field::TimestampMillis(_)
        | Field::TimestampMicros(_) => field.to_string().into(),
    })
}

/// The crate's messages begin with their kind, which says nothing to a user.
fn what(error: &ParquetError) -> String {
    let text = error.to_string();
    text.strip_prefix("Parquet error: ").unwrap_or(&text).to_owned()
}
