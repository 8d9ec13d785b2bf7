//! The official files: a meeting as one JSON object, in a line of a JSON Lines file or in a file of its own.

use std::path::{Path, PathBuf};

use e2llm_plugin::record::Record;
use e2llm_plugin::source::{Records, examples};
use e2llm_plugin::{Error, Example, Examples, Result, Source};
use serde_json::{Map, Value};

/// The lists of queries of a meeting: field, kind, and the letter of the kind in ids.
const QUERIES: [(&str, &str, char); 2] =
    [("general_query_list", "general", 'g'), ("specific_query_list", "specific", 's')];

/// Whether a record is a meeting in the official format.
pub(crate) fn is_meeting(record: &Record) -> bool {
    record.value.get("meeting_transcripts").is_some()
}

/// The queries of a meeting; `name` names it.
pub(crate) fn meeting(record: &Record, name: &str) -> Result<Vec<Example>> {
    let context = transcript(record)?;
    let mut found = Vec::new();
    for (field, kind, letter) in QUERIES {
        for (i, query) in record.list(field)?.iter().enumerate() {
            let query = record.part(format_args!("{field}[{i}]"), query);
            let mut meta = Map::new();
            meta.insert("meeting".into(), name.into());
            meta.insert("query_type".into(), kind.into());
            for (key, from) in [("relevant_text_span", &query), ("topic_list", record)] {
                meta.insert(key.into(), from.value.get(key).cloned().unwrap_or(Value::Null));
            }
            found.push(Example {
                id: format!("{name}-{letter}{i}"),
                context: context.clone(),
                instruction: query.text("query")?.to_owned(),
                references: vec![query.text("answer")?.to_owned()],
                group: name.to_owned(),
                meta,
            });
        }
    }
    Ok(found)
}

/// The turns of a meeting, each a line `speaker: content`.
fn transcript(record: &Record) -> Result<String> {
    let mut text = String::new();
    for (i, turn) in record.list("meeting_transcripts")?.iter().enumerate() {
        let turn = record.part(format_args!("meeting_transcripts[{i}]"), turn);
        if i > 0 {
            text.push('\n');
        }
        text.extend([turn.text("speaker")?, ": ", turn.text("content")?]);
    }
    if text.is_empty() {
        return Err(record.error("field `meeting_transcripts` is empty"));
    }
    Ok(text)
}

/// The meetings of a folder, in the order of their files' names, which are the meetings' names.
pub(crate) fn folder(source: &Source, folder: &Path) -> Result<Examples> {
    let failed = |e: std::io::Error| Error::io(format!("cannot list {}: {e}", folder.display()));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|e| e == "json") {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(Error::io(format!("{} has no .json file", folder.display())));
    }
    files.sort();
    for file in &files {
        source.note(file);
    }
    let mut names = files.clone().into_iter().map(|f| name(&f));
    let records: Records = Box::new(files.into_iter().map(|f| Record::open(&f)));
    Ok(examples(records, move |record| meeting(record, &names.next().unwrap_or_default())))
}

fn name(file: &PathBuf) -> String {
    Path::new(file).file_stem().unwrap_or_default().to_string_lossy().into_owned()
}
