//! Records of JSON Lines files, as they are prepared.

use super::splits::Input;
use crate::failure::{Failure, Result};
use e2llm_plugin::json_lines::open_text;
use e2llm_train::Split;
use e2llm_train::data::{Assign, Incoming, Record};
use serde_json::Value;
use std::io::BufRead;

/// The lines of several files, one after the other. Only LF ends a line: texts contain other separators.
///
/// A line is `{"context", "prompt" or "instruction", "answer" or "answers"}`, of several answers the first. Its document is
/// `meta.document_id`, where it has that.
pub struct Records {
    inputs: std::vec::IntoIter<Input>,
    open: Option<(Input, Box<dyn BufRead + Send>, u64)>,
    failure: Option<Box<Failure>>,
}

impl Records {
    /// The records of `inputs`.
    pub fn new(inputs: Vec<Input>) -> Self {
        Self { inputs: inputs.into_iter(), open: None, failure: None }
    }

    /// What ended the reading before its end: a file that cannot be read, unlike a line that cannot be used.
    ///
    /// # Errors
    /// That failure.
    pub fn finish(self) -> Result<()> {
        self.failure.map_or(Ok(()), Err)
    }

    fn line(&mut self) -> Result<Option<Incoming>> {
        let mut line = Vec::new();
        loop {
            let Some((input, reader, number)) = &mut self.open else {
                let Some(input) = self.inputs.next() else { return Ok(None) };
                let reader = open_text(&input.path)?;
                self.open = Some((input, reader, 0));
                continue;
            };
            line.clear();
            let n = reader.read_until(b'\n', &mut line).map_err(|e| Failure::io("read", &input.path, &e))?;
            if n == 0 {
                self.open = None;
                continue;
            }
            *number += 1;
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let record = record(&line);
            let held = record
                .as_ref()
                .ok()
                .and_then(|r| r.document.as_ref())
                .is_some_and(|d| input.except.contains(d));
            let assign = if held { Assign::To(Split::Validation) } else { input.assign };
            let place = format!("{}, line {number}", input.path.display());
            return Ok(Some(Incoming { place, assign, record }));
        }
    }
}

impl Iterator for &mut Records {
    type Item = Incoming;

    fn next(&mut self) -> Option<Incoming> {
        if self.failure.is_some() {
            return None;
        }
        match self.line() {
            Ok(incoming) => incoming,
            Err(failure) => {
                self.failure = Some(failure);
                None
            }
        }
    }
}

fn record(line: &[u8]) -> std::result::Result<Record, String> {
    let text = std::str::from_utf8(line).map_err(|e| format!("not UTF-8 at byte {}", e.valid_up_to()))?;
    let value: Value = serde_json::from_str(text).map_err(|e| format!("not JSON: {e}"))?;
    let field = |names: &[&str]| {
        let found = names.iter().find_map(|n| value.get(n));
        let found = found.ok_or_else(|| format!("no field `{}`", names.join("` or `")))?;
        let one = found.as_array().and_then(|a| a.first()).unwrap_or(found);
        one.as_str().map(str::to_owned).ok_or_else(|| format!("field `{}` is no text", names.join("` or `")))
    };
    Ok(Record {
        document: value.pointer("/meta/document_id").and_then(Value::as_str).map(str::to_owned),
        context: field(&["context"])?,
        instruction: field(&["prompt", "instruction"])?,
        answer: field(&["answer", "answers"])?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn lines_become_records_or_say_why_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let text = "{\"context\":\"a\\u2028b\",\"prompt\":\"p\",\"answers\":[\"x\",\"y\"],\"meta\":{\"document_id\":\"d1\"}}\n\n\
                    {\"context\":\"c\",\"instruction\":\"i\",\"answer\":\"z\"}\nno\n{\"context\":\"c\",\"prompt\":\"p\",\"answers\":[]}\n\
                    {\"context\":1,\"prompt\":\"p\",\"answer\":\"a\"}\n{\"prompt\":\"p\",\"answer\":\"a\"}";
        std::fs::write(&path, text).unwrap();
        let except = BTreeSet::from(["d1".to_owned()]);
        let mut records = Records::new(vec![Input { path, assign: Assign::BySeed, except }]);
        let all: Vec<_> = (&mut records).collect();
        records.finish().unwrap();
        assert_eq!(all.len(), 6);
        let first = all[0].record.as_ref().unwrap();
        assert_eq!((first.context.as_str(), first.answer.as_str()), ("a\u{2028}b", "x"));
        assert_eq!((all[0].assign, all[1].assign), (Assign::To(Split::Validation), Assign::BySeed));
        assert_eq!(all[1].record.as_ref().unwrap().instruction, "i");
        for (i, what) in [
            (2, "not JSON"),
            (3, "`answer` or `answers` is no text"),
            (4, "`context`"),
            (5, "no field `context`"),
        ] {
            let error = all[i].record.as_ref().unwrap_err();
            assert!(error.contains(what), "{i}: {error}");
        }
        assert!(all[2].place.ends_with("a.jsonl, line 4"), "{}", all[2].place);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_a_failure() {
        let input = Input { path: "missing.jsonl".into(), assign: Assign::BySeed, except: BTreeSet::new() };
        let mut records = Records::new(vec![input]);
        assert_eq!((&mut records).count(), 0);
        assert!(records.finish().is_err());
    }
}
