//! The official files: an article a line, with a list of questions; the older schema with a column for every part of
//! every question; and ZeroSCROLLS' records, where the options are lines of the query.

use e2llm_plugin::choice;
use e2llm_plugin::official::ZeroScrolls;
use e2llm_plugin::record::Record;
use e2llm_plugin::text::python_trim;
use e2llm_plugin::{Error, Example, Result};
use serde_json::{Map, Value};

use crate::html;

/// Options of a question.
const OPTIONS: usize = 4;

/// Whether a record is an article with a list of questions.
pub(crate) fn is_article(record: &Record) -> bool {
    record.value.get("article").is_some() && record.value.get("questions").is_some()
}

/// Whether a record is an article of the older schema: `question1`, `question1option1`, ...
pub(crate) fn is_columns(record: &Record) -> bool {
    record.value.get("article").is_some() && record.value.get("question1").is_some()
}

/// The questions about an article.
pub(crate) fn article(record: &Record) -> Result<Vec<Example>> {
    let context = context(record)?;
    let mut found = Vec::new();
    for (i, question) in record.list("questions")?.iter().enumerate() {
        let question = record.part(format_args!("questions[{i}]"), question);
        let mut meta = about(record);
        if let Some(difficult) = question.value.get("difficult") {
            meta.insert("difficult".into(), difficult.clone());
        }
        let options = question.texts("options")?;
        let id = question.text("question_unique_id")?.to_owned();
        found.push(example(
            &question,
            id,
            record.text_or_number("article_id")?,
            &context,
            ("question", "gold_label", &options),
            meta,
        )?);
    }
    Ok(found)
}

/// The questions about an article of the older schema.
pub(crate) fn columns(record: &Record) -> Result<Vec<Example>> {
    let context = context(record)?;
    let set = record.text("unique_id")?;
    let mut found = Vec::new();
    for n in 1.. {
        let field = format!("question{n}");
        if record.value.get(&field).is_none() {
            break;
        }
        let options = (1..=OPTIONS).map(|o| record.text(&format!("{field}option{o}")).map(str::to_owned));
        let options = options.collect::<Result<Vec<_>>>()?;
        let gold = format!("{field}_gold_label");
        let id = format!("{set}-{n}");
        let group = record.text_or_number("article_id")?;
        found.push(example(record, id, group, &context, (&field, &gold, &options), about(record))?);
    }
    Ok(found)
}

/// The question of a record of ZeroSCROLLS, whose answer is a letter or the text of an option.
pub(crate) fn zeroscrolls(record: &Record) -> Result<Example> {
    let mut example = ZeroScrolls::example(record)?;
    let mut parts: Vec<String> = vec![String::new()];
    for line in example.instruction.lines() {
        let letter = ('A'..).nth(parts.len() - 1).unwrap_or_default();
        let option = line.trim_start().strip_prefix(&format!("({letter})"));
        if let Some(option) = option.filter(|_| parts.len() <= OPTIONS) {
            parts.push(option.to_owned());
        } else if let Some(part) = parts.last_mut() {
            part.extend(["\n", line]);
        }
    }
    let parts: Vec<_> = parts.iter().map(|p| python_trim(p)).collect();
    let [question, options @ ..] = parts.as_slice() else { return Err(record.error("it asks nothing")) };
    if options.len() != OPTIONS {
        let found = options.len();
        return Err(record.error(format!("the query has {found} options `(A) ...`, expected {OPTIONS}")));
    }
    example.meta.insert("question".into(), (*question).into());
    example.meta.insert("options".into(), options.to_vec().into());
    for answer in &mut example.references {
        *answer = answer.trim_matches(['(', ')', ' ', '\n']).to_owned();
    }
    Ok(example)
}

/// An example from the fields of `record` named by `parts`: the question, the gold label; and the options.
fn example(
    record: &Record,
    id: String,
    group: String,
    context: &str,
    parts: (&str, &str, &[String]),
    mut meta: Map<String, Value>,
) -> Result<Example> {
    let (question, gold, options) = parts;
    let question = python_trim(record.text(question)?);
    let options: Vec<_> = options.iter().map(|o| python_trim(o)).collect();
    if options.len() != OPTIONS {
        return Err(record.error(format!("{} options, expected {OPTIONS}", options.len())));
    }
    let label = gold_label(record, gold)?;
    meta.insert("question".into(), question.into());
    meta.insert("options".into(), options.clone().into());
    meta.insert("gold_label".into(), label.into());
    Ok(Example {
        id,
        context: context.to_owned(),
        instruction: choice::question(question, &options),
        references: ('A'..).nth(label - 1).map(String::from).into_iter().collect(),
        group,
        meta,
    })
}

/// The number of the right option, from 1.
fn gold_label(record: &Record, field: &str) -> Result<usize> {
    let Some(value) = record.value.get(field) else {
        let error: Error = record.error(format!("field `{field}` is missing"));
        return Err(error.with_help("the answers of the official test split are not public; use --split dev"));
    };
    let label = value.as_u64().and_then(|n| usize::try_from(n).ok());
    label
        .filter(|n| (1..=OPTIONS).contains(n))
        .ok_or_else(|| record.error(format!("field `{field}` is {value}, expected 1 to {OPTIONS}")))
}

/// The article's text. The older files hold it as lines, and as HTML.
fn context(record: &Record) -> Result<String> {
    let text = record.texts("article")?.concat();
    let text = if html::is_html(&text) { html::text(&text) } else { text };
    if text.trim().is_empty() {
        return Err(record.error("field `article` is empty"));
    }
    Ok(text)
}

/// What is known of the article.
fn about(record: &Record) -> Map<String, Value> {
    ["article_id", "set_unique_id", "unique_id", "title", "author", "year", "topic", "source"]
        .iter()
        .filter_map(|k| Some(((*k).to_owned(), record.value.get(k)?.clone())))
        .collect()
}
