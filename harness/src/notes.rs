//! What is told on stderr.

use std::io::Write;

/// Prints a line to stderr; a stderr that is gone is nobody's loss, and no reason to stop.
pub(crate) fn note(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
