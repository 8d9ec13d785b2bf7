//! The task over its sample, over files in the official formats, and over broken ones.

use std::path::{Path, PathBuf};

use e2llm_plugin::{Example, Result, Source, Task};
use e2llm_task_multi_lexsum::{MultiLexSum, e2llm_plugin_entry};

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
    MultiLexSum.open(&Source::folder(folder, split))?.collect()
}

#[test]
fn conforms() {
    e2llm_plugin::testing::assert_conforms(e2llm_plugin_entry);
}

#[test]
fn the_sample_is_complete() {
    let all: Vec<_> = MultiLexSum.open(&Source::sample()).unwrap().map(|e| e.unwrap()).collect();
    assert_eq!(all.len(), 3);
    assert!(all.iter().all(|e| (400..3000).contains(&e.context.split_whitespace().count())));
    assert!(all.iter().all(|e| (30..200).contains(&e.references[0].split_whitespace().count())));
}

#[test]
fn raw_pairs_are_read_like_plain_records() {
    let Some(folder) = shared("multilexsum") else { return };
    let plain = read(&folder, "test").unwrap();
    assert_eq!(plain.len(), 150);
    let mut all = plain;
    all.extend(read(&folder, "train").unwrap());
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(folder.join("raw/test.head3.jsonl"), dir.path().join("test.jsonl")).unwrap();
    let got = read(dir.path(), "test").unwrap();
    assert_eq!(got.iter().map(|e| e.id.as_str()).collect::<Vec<_>>(), ["test-1", "test-2", "test-3"]);
    for e in &got {
        let same = all.iter().find(|p| p.context == e.context).unwrap();
        assert_eq!((&e.references, &e.group), (&same.references, &same.group));
        assert_eq!(MultiLexSum.prompt(e).unwrap(), MultiLexSum.prompt(same).unwrap());
    }
}

#[test]
fn mistakes_are_named() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("test.jsonl"), "{\"document\":\"d\"}\n").unwrap();
    let message = read(dir.path(), "test").unwrap_err().message;
    assert!(message.ends_with("test.jsonl, line 1: field `summary` is missing"), "{message}");
}
