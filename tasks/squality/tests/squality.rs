//! The task over its sample, over files in the official formats, and over broken ones.

use std::path::{Path, PathBuf};

use e2llm_plugin::{Example, Result, Source, Task};
use e2llm_task_squality::{Squality, e2llm_plugin_entry};

/// A folder of real records beside the repository; where it is missing the test says so and passes.
fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data").join(name);
    if !path.exists() {
        eprintln!("SKIPPED: shared/data/{name} not found");
        return None;
    }
    Some(path)
}

fn read(folder: &Path, split: &str) -> Result<Vec<Example>> {
    Squality.open(&Source::folder(folder, split))?.collect()
}

#[test]
fn conforms() {
    e2llm_plugin::testing::assert_conforms(e2llm_plugin_entry);
}

#[test]
fn the_sample_has_several_answers_to_each_question() {
    let all: Vec<_> = Squality.open(&Source::sample()).unwrap().map(|e| e.unwrap()).collect();
    assert_eq!(all.len(), 3);
    for e in &all {
        assert!((1200..3000).contains(&e.context.split_whitespace().count()));
        assert_eq!((e.references.len(), e.group.as_str()), (2, all[0].group.as_str()));
        assert!(Squality.prompt(e).unwrap().instruction.ends_with(&e.instruction));
    }
}

#[test]
fn official_lines_agree_with_the_plain_records() {
    let Some(folder) = shared("squality") else { return };
    let dir = tempfile::tempdir().unwrap();
    let official = dir.path().join("data/v1-3/txt");
    std::fs::create_dir_all(&official).unwrap();
    std::fs::copy(folder.join("raw/v1-3.txt.dev.head1.jsonl"), official.join("dev.jsonl")).unwrap();
    let got = read(dir.path(), "validation").unwrap();
    assert_eq!(got.len(), 5);
    let plain = read(&folder, "validation").unwrap();
    assert_eq!(plain.len(), 125);
    for e in &got {
        let same = plain.iter().find(|p| p.group == e.group && p.instruction == e.instruction).unwrap();
        assert_eq!((&e.references, e.references.len()), (&same.references, 4));
        assert_eq!(e.meta["question_number"].as_str().unwrap(), same.meta["question_number"].to_string());
    }
    let error = read(dir.path(), "test").unwrap_err();
    assert!(error.message.ends_with("no split `test`; splits found: dev"), "{error}");
}

#[test]
fn mistakes_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let fails = |line: &str| {
        std::fs::write(dir.path().join("test.jsonl"), line).unwrap();
        read(dir.path(), "test").unwrap_err().message
    };
    let story = |question: &str| {
        fails(&format!(r#"{{"metadata":{{"passage_id":"1"}},"document":"d","questions":[{question}]}}"#))
    };
    assert!(fails(r#"{"document":"d","questions":[]}"#).ends_with("metadata: field `passage_id` is missing"));
    let none = story(r#"{"question_text":"q","question_number":1,"responses":[]}"#);
    assert!(none.contains("line 1, questions[0]: field `responses` is empty"), "{none}");
    let secret = story(r#"{"question_text":"q","question_number":1,"responses":[{"worker_id":"7"}]}"#);
    assert!(secret.ends_with("questions[0], responses[0]: field `response_text` is missing"), "{secret}");
}
