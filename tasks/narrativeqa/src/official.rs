//! The official layout: one CSV file of questions for all splits, one that describes the documents, one with their
//! summaries, and the stories as files named after the documents.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use e2llm_plugin::json_lines::open_text;
use e2llm_plugin::{Error, Example, Examples, Result, Source};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Map;

/// The file of questions.
pub(crate) const QUESTIONS: &str = "qaps.csv";

/// The file of summaries.
pub(crate) const SUMMARIES: &str = "third_party/wikipedia/summaries.csv";

const DOCUMENTS: &str = "documents.csv";

/// Where stories are looked for: the official script downloads to `tmp`; other copies of the data keep them in a
/// folder named after the archive, or beside the CSV files.
const STORIES: [&str; 5] = ["tmp/", "stories/", "narrativeqa_full_text/", "narrativeqa_full_text.zip/", ""];

/// What the questions are asked of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Setting {
    /// The document's summary on Wikipedia.
    #[default]
    Summary,
    /// The whole file of the story. `story_start` and `story_end` of `documents.csv` serve the official scripts to
    /// check a download, not to cut it.
    Story,
}

#[derive(Deserialize)]
struct Question {
    document_id: String,
    set: String,
    question: String,
    answer1: String,
    answer2: String,
}

#[derive(Deserialize)]
struct Document {
    document_id: String,
    kind: String,
    wiki_title: String,
}

#[derive(Deserialize)]
struct Summary {
    document_id: String,
    summary: String,
}

/// The questions of a split.
pub(crate) fn open(source: &Source, questions: &Path, setting: Setting) -> Result<Examples> {
    let (mut found, mut sets) = (Vec::new(), BTreeSet::new());
    for row in rows::<Question>(questions)? {
        let (line, question) = row?;
        if source.is_split(&question.set) {
            found.push((line, question));
        } else {
            sets.insert(question.set);
        }
    }
    let place = questions.display().to_string();
    if found.is_empty() && sets.is_empty() {
        return Err(Error::io(format!("{place} has no questions")));
    } else if found.is_empty() {
        let sets: Vec<_> = sets.into_iter().collect();
        let message = format!("{place} has no split `{}`; splits found: {}", source.split, sets.join(", "));
        return Err(Error::io(message));
    }
    let about = source.locate(&[DOCUMENTS])?;
    let mut documents = BTreeMap::new();
    for row in rows::<Document>(&about)? {
        let document = row?.1;
        documents.insert(document.document_id.clone(), document);
    }
    let ids: BTreeSet<_> = found.iter().map(|(_, q)| q.document_id.as_str()).collect();
    let mut texts = match setting {
        Setting::Summary => Texts::summaries(source, &ids)?,
        Setting::Story => Texts::stories(source, &ids)?,
    };
    let mut asked = BTreeMap::<String, usize>::new();
    Ok(Box::new(found.into_iter().map(move |(line, question)| {
        let id = &question.document_id;
        let failed = |e: Error| e.at(format_args!("{place}, line {line}"));
        let document = documents
            .get(id)
            .ok_or_else(|| failed(Error::io(format!("document `{id}` is not in {}", about.display()))))?;
        let context = texts.get(id).map_err(failed)?;
        let n = asked.entry(id.clone()).or_default();
        *n += 1;
        example(&question, *n, document, setting, context).map_err(failed)
    })))
}

/// The `n`-th question about a document.
fn example(
    question: &Question,
    n: usize,
    document: &Document,
    setting: Setting,
    context: String,
) -> Result<Example> {
    let answers = [&question.answer1, &question.answer2];
    let references: Vec<_> =
        answers.into_iter().map(|a| a.trim().to_owned()).filter(|a| !a.is_empty()).collect();
    if references.is_empty() {
        return Err(Error::io("columns `answer1` and `answer2` are empty"));
    }
    let setting = match setting {
        Setting::Summary => "summary",
        Setting::Story => "story",
    };
    let meta = [
        ("document_id", document.document_id.as_str()),
        ("kind", &document.kind),
        ("wiki_title", &document.wiki_title),
        ("setting", setting),
    ];
    Ok(Example {
        id: format!("{}-{n}", document.document_id),
        context,
        instruction: question.question.trim().to_owned(),
        references,
        group: document.document_id.clone(),
        meta: Map::from_iter(meta.map(|(key, value)| (key.to_owned(), value.into()))),
    })
}

/// The texts of documents.
enum Texts {
    Summaries(BTreeMap<String, String>),
    /// Files, of which the last one read is kept: the questions about a document stand together.
    Stories {
        files: BTreeMap<String, PathBuf>,
        last: (String, String),
    },
}

impl Texts {
    fn summaries(source: &Source, ids: &BTreeSet<&str>) -> Result<Self> {
        let mut texts = BTreeMap::new();
        for row in rows::<Summary>(&source.locate(&[SUMMARIES])?)? {
            let summary = row?.1;
            if ids.contains(summary.document_id.as_str()) {
                texts.insert(summary.document_id, summary.summary.trim().to_owned());
            }
        }
        Ok(Self::Summaries(texts))
    }

    /// Finds the files at once: a missing one is noticed before the first question is asked.
    fn stories(source: &Source, ids: &BTreeSet<&str>) -> Result<Self> {
        let mut files = BTreeMap::new();
        for id in ids {
            if id.contains(['/', '\\']) {
                return Err(Error::io(format!("`{id}` is no document id")));
            }
            let names = STORIES.map(|folder| format!("{folder}{id}.content"));
            let file = source.locate(&names.each_ref().map(String::as_str)).map_err(|e| {
                e.with_help("download the stories with the data set's script, or use the setting `summary`")
            })?;
            files.insert((*id).to_owned(), file);
        }
        Ok(Self::Stories { files, last: Default::default() })
    }

    fn get(&mut self, id: &str) -> Result<String> {
        let missing = || Error::io(format!("no text of document `{id}`"));
        match self {
            Self::Summaries(texts) => texts.get(id).filter(|t| !t.is_empty()).cloned().ok_or_else(missing),
            Self::Stories { files, last } => {
                if last.0 != id {
                    let text = story(files.get(id).ok_or_else(missing)?)?;
                    *last = (id.to_owned(), text);
                }
                Ok(last.1.clone())
            }
        }
    }
}

/// The text of a story. The files are web pages as downloaded: what is no UTF-8 is read as Latin-1, the encoding of
/// Project Gutenberg's older texts, in which any bytes are a text.
fn story(path: &Path) -> Result<String> {
    let failed = |e: &dyn std::fmt::Display| Error::io(format!("{}: {e}", path.display()));
    let mut bytes = Vec::new();
    open_text(path)?.read_to_end(&mut bytes).map_err(|e| failed(&e))?;
    let text = match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(e) => e.into_bytes().into_iter().map(char::from).collect(),
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    if text.trim().is_empty() {
        return Err(failed(&"the story is empty"));
    }
    // as Python, in which the data set's scripts are written, opens a text
    Ok(text.replace("\r\n", "\n"))
}

/// The rows of a CSV file that has a header, with their lines.
fn rows<T: DeserializeOwned>(path: &Path) -> Result<impl Iterator<Item = Result<(u64, T)>>> {
    let name = path.display().to_string();
    let mut reader = csv::Reader::from_reader(open_text(path)?);
    let headers = reader.headers().map_err(|e| Error::io(format!("{name}: {e}")))?.clone();
    Ok(reader.into_records().map(move |row| {
        let failed = |e: csv::Error| Error::io(format!("{name}: {e}"));
        let row = row.map_err(failed)?;
        let line = row.position().map_or(0, csv::Position::line);
        let at = |e: csv::Error| Error::io(format!("{name}, line {line}: {e}"));
        row.deserialize(Some(&headers)).map(|value| (line, value)).map_err(at)
    }))
}
