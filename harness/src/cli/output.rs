//! What the program prints: data on stdout, everything else on stderr.

use crate::failure::{Failure, Result};
pub(super) use crate::notes::note;
use serde_json::Value;
use std::io::{ErrorKind, Write};

/// Prints data to stdout. A closed pipe (`| head`) is the end of the program, not an error.
///
/// # Errors
/// Any other failure of stdout.
pub(super) fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        Err(e) => Err(Failure::failed(format!("cannot write to stdout: {e}"))),
    }
}

/// Prints a value as one line of JSON.
///
/// # Errors
/// As [`print`].
pub(super) fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text =
        serde_json::to_string(value).map_err(|e| Failure::failed(format!("cannot write JSON: {e}")))?;
    print(&(text + "\n"))
}

/// Prints objects of texts as lines of JSON or as a table.
pub(super) fn print_rows(rows: &[Value], json: bool) -> Result<()> {
    if json {
        return rows.iter().try_for_each(print_json);
    }
    let cells = |row: &Value| {
        let object = row.as_object().into_iter().flatten();
        object.map(|(_, v)| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect()
    };
    print(&table(&rows.iter().map(cells).collect::<Vec<_>>()))
}

/// Columns aligned by their widest cell; the last one is left as it is.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (c, cell) in row.iter().enumerate() {
            line.push_str(cell);
            if c + 1 < row.len() {
                line.extend(std::iter::repeat_n(' ', widths[c] + 2 - cell.chars().count()));
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}
