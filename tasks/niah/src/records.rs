//! Records of a file: the plain format, and RULER's own rows.

use e2llm_plugin::record::{Record, context_group};
use e2llm_plugin::{Example, Result};
use serde_json::Value;

/// Reads a record of either format. Its `meta` gets the answer prefix, and the needle and its position where the
/// answer is found in the text.
///
/// # Errors
/// A field that is missing or of another kind.
pub(crate) fn example(record: &Record, number: usize) -> Result<Example> {
    let mut example = if record.value.get("outputs").is_some() && !record.is_plain() {
        ruler(record, number)?
    } else {
        record.plain(&[])?
    };
    // RULER's input repeats context and prompt
    example.meta.remove("input");
    // RULER's length is the sample's own size; slices by length are for the lengths of a grid
    if let Some(length) = example.meta.remove("length") {
        example.meta.insert("sample_length".into(), length);
    }
    if let Some(prefix) = record.value.get("answer_prefix") {
        example.meta.insert("answer_prefix".into(), prefix.clone());
    }
    if !example.meta.contains_key("answer_prefix")
        && let Some((question, prefix)) = begun_answer(&example.instruction)
    {
        let (question, prefix) = (question.to_owned(), prefix.to_owned());
        example.meta.insert("answer_prefix".into(), prefix.into());
        example.instruction = question;
    }
    locate(&mut example);
    Ok(example)
}

/// A row `{"index","input","outputs","length"}`: the question is the last line of the input.
fn ruler(record: &Record, number: usize) -> Result<Example> {
    let input = record.text("input")?;
    let Some((context, question)) = input.trim_end().rsplit_once('\n') else {
        return Err(record.error("field `input` has one line: a text and a question were expected"));
    };
    let references = record.texts("outputs")?;
    if references.is_empty() {
        return Err(record.error("field `outputs` is empty: a sample without a reference cannot be scored"));
    }
    let mut meta = record.object("meta");
    if let Some(length) = record.value.get("length") {
        meta.insert("length".into(), length.clone());
    }
    let id = record.value.get("index").map_or_else(|| number.to_string(), Value::to_string);
    Ok(Example {
        id: format!("ruler-{id}"),
        context: context.to_owned(),
        instruction: question.to_owned(),
        references,
        group: context_group(context),
        meta,
    })
}

/// Splits `What is it? It is` into the question and the beginning of its answer.
fn begun_answer(prompt: &str) -> Option<(&str, &str)> {
    let (question, begun) = prompt.rsplit_once('?')?;
    let begun = begun.trim();
    let open = !begun.is_empty() && !begun.ends_with(['.', '!', '"', ')']);
    open.then(|| (prompt[..question.len() + 1].trim(), begun))
}

/// Notes the sentence or line of the text that holds the first answer, if it is there once.
fn locate(example: &mut Example) {
    let Some(answer) = example.references.first() else { return };
    let mut found = example.context.match_indices(answer.as_str());
    let (Some((at, _)), None) = (found.next(), found.next()) else { return };
    let line = |text: &str, from: usize| text[..from].rfind('\n').map_or(0, |i| i + 1);
    let start = line(&example.context, at);
    let end = example.context[at..].find('\n').map_or(example.context.len(), |i| at + i);
    let needle = example.context[start..end].trim();
    // in flowing text a line is a paragraph, and no needle
    if needle.len() <= 4 * answer.len() + 200 && !example.meta.contains_key("needle") {
        example.meta.insert("needle".into(), needle.into());
    }
    let position = start as f64 / example.context.len().max(1) as f64;
    example.meta.entry("position").or_insert_with(|| position.into());
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: Value) -> Result<Example> {
        example(&Record { place: "f.jsonl, line 1".into(), value }, 0)
    }

    #[test]
    fn the_begun_answer_is_split_off() {
        let e = read(json!({"id": "1", "context": "Hay.\nX is: 7.\nHay.", "prompt": "What is X? The X is",
            "answers": ["7"], "meta": {"length": 12, "input": "Hay."}}))
        .unwrap();
        assert_eq!(
            (e.instruction.as_str(), e.meta["answer_prefix"].as_str()),
            ("What is X?", Some("The X is"))
        );
        assert_eq!(
            (e.meta["needle"].as_str(), e.meta["sample_length"].as_u64()),
            (Some("X is: 7."), Some(12))
        );
        assert!(!e.meta.contains_key("input") && !e.meta.contains_key("length"));
        let e =
            read(json!({"id": "1", "context": "Hay.", "prompt": "What? Say it briefly.", "answers": ["7"]}))
                .unwrap();
        assert_eq!((e.instruction.as_str(), e.meta.len()), ("What? Say it briefly.", 0));
    }

    #[test]
    fn rows_of_ruler_are_read_and_broken_ones_refused() {
        let e = read(json!({"index": 3, "input": "Hay.\nX is 7.\nWhat is X?", "outputs": ["7"], "length": 9,
            "answer_prefix": "It is"}))
        .unwrap();
        assert_eq!((e.id.as_str(), e.context.as_str()), ("ruler-3", "Hay.\nX is 7."));
        assert_eq!((e.instruction.as_str(), e.meta["answer_prefix"].as_str()), ("What is X?", Some("It is")));
        for broken in
            [json!({"input": "one line", "outputs": ["7"]}), json!({"input": "a\nb", "outputs": []})]
        {
            assert!(read(broken).unwrap_err().message.starts_with("f.jsonl, line 1: field"));
        }
    }
}
