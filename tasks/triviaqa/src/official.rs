//! The official layout: `qa/*.json` with the questions, `evidence/wikipedia` and `evidence/web` with the documents.

use std::io::Read;
use std::path::{Component, Path, PathBuf};

use e2llm_plugin::json_array::JsonArray;
use e2llm_plugin::json_lines::open_text;
use e2llm_plugin::record::{Record, context_group};
use e2llm_plugin::source::examples;
use e2llm_plugin::text::trivia_normalise;
use e2llm_plugin::{Error, Example, Examples, Result};
use serde_json::{Map, Value};

/// Where a question's documents are listed, and the folder they are in.
const EVIDENCE: [(&str, &str); 2] = [("EntityPages", "wikipedia"), ("SearchResults", "web")];

/// The questions of a file, with documents from the folder `evidence`.
pub(crate) fn open(questions: &Path, evidence: PathBuf) -> Result<Examples> {
    let mut records = JsonArray::field(questions, "Data")?.peekable();
    if records.peek().is_none() {
        return Err(Error::io(format!("{}: its list `Data` is empty", questions.display())));
    }
    Ok(examples(Box::new(records), move |record| Ok(vec![question(record, &evidence)?])))
}

fn question(record: &Record, evidence: &Path) -> Result<Example> {
    let id = record.text("QuestionId")?;
    let (context, files) = documents(record, evidence)?;
    let (references, mut meta) = answers(record)?;
    meta.insert("question_id".into(), id.into());
    meta.insert("evidence".into(), files.into());
    Ok(Example {
        id: id.to_owned(),
        instruction: record.text("Question")?.to_owned(),
        group: context_group(&context),
        context,
        references,
        meta,
    })
}

/// The answers that count: the aliases, what people answered, and those normalised aliases that are neither.
///
/// The official script compares with `NormalizedAliases` and the normalised human answers. A metric that normalises
/// in TriviaQA's way sees all of those in this list; one that normalises otherwise sees the answers as written.
fn answers(record: &Record) -> Result<(Vec<String>, Map<String, Value>)> {
    let Some(answer) = record.value.get("Answer") else {
        return Err(record
            .error("field `Answer` is missing")
            .with_help("the answers of the official test split are not public; use --split dev"));
    };
    let answer = record.part("Answer", answer);
    let value = answer.text("Value")?;
    let mut references = answer.texts("Aliases")?;
    references.sort_by_key(|alias| alias != value); // the answer itself comes first, the order is else kept
    if answer.value.get("HumanAnswers").is_some() {
        references.extend(answer.texts("HumanAnswers")?);
    }
    let normalised = answer.texts("NormalizedAliases")?;
    let known: Vec<_> = references.iter().map(|r| trivia_normalise(r)).collect();
    references.extend(normalised.iter().filter(|n| !known.contains(n)).cloned());
    references.retain(|r| !r.trim().is_empty());
    if references.is_empty() {
        return Err(answer.error("no answers: a sample without a reference cannot be scored"));
    }
    let meta = Map::from_iter([
        ("answer_value".to_owned(), value.into()),
        ("normalized_aliases".to_owned(), normalised.into()),
    ]);
    Ok((references, meta))
}

/// A question's documents, joined by empty lines, and their names.
fn documents(record: &Record, evidence: &Path) -> Result<(String, Vec<String>)> {
    let (mut texts, mut names) = (Vec::new(), Vec::new());
    for (field, folder) in EVIDENCE {
        if record.value.get(field).is_none() {
            continue; // the questions about Wikipedia have no search results
        }
        for (i, document) in record.list(field)?.iter().enumerate() {
            let document = record.part(format_args!("{field}[{i}]"), document);
            let name = document.text("Filename")?;
            // a file of questions says what to read inside the folder, nowhere else
            if !Path::new(name).components().all(|c| matches!(c, Component::Normal(_))) {
                return Err(document.error(format!("`{name}` is no name of a file in the folder")));
            }
            let path = evidence.join(folder).join(name);
            let mut text = String::new();
            open_text(&path)
                .map_err(|e| document.error(e))?
                .read_to_string(&mut text)
                .map_err(|e| document.error(format!("{}: {e}", path.display())))?;
            texts.push(text);
            names.push(format!("{folder}/{name}"));
        }
    }
    if texts.is_empty() {
        return Err(record.error("the question has no documents"));
    }
    Ok((texts.join("\n\n"), names))
}
