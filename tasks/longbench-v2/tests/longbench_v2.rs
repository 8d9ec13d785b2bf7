//! The task over its sample, over files in the official formats, and over broken ones.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use e2llm_plugin::{Example, Result, Source, Task};
use e2llm_task_longbench_v2::{LongBenchV2, e2llm_plugin_entry};

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
    LongBenchV2.open(&Source::folder(folder, split))?.collect()
}

fn sample() -> Result<Vec<Example>> {
    LongBenchV2.open(&Source::sample())?.collect()
}

fn count<T: Ord>(examples: &[Example], f: impl Fn(&Example) -> T) -> usize {
    examples.iter().map(f).collect::<BTreeSet<_>>().len()
}

#[test]
fn conforms() {
    e2llm_plugin::testing::assert_conforms(e2llm_plugin_entry);
}

fn letter(e: &Example) -> &str {
    &e.references[0]
}

#[test]
fn the_sample_is_complete() {
    let all = sample().unwrap();
    assert_eq!((all.len(), count(&all, |e| e.group.clone())), (4, 2));
    assert_eq!(count(&all, |e| letter(e).to_owned()), 4);
    for e in &all {
        assert_eq!(e.meta["options"].as_array().unwrap().len(), 4);
        assert_eq!(e.meta["choice_protocol"], "longbench-v2");
        assert!(LongBenchV2.info().slices.iter().all(|s| e.meta.contains_key(s)));
        let prompt = LongBenchV2.prompt(e).unwrap();
        assert!(prompt.instruction.contains(&e.instruction));
        assert!(prompt.instruction.contains("The correct answer is (X)"));
        // whoever repeats the instruction has not answered
        assert_eq!(LongBenchV2.extract(e, &prompt.instruction).text, "");
    }
}

#[test]
fn plain_records() {
    let Some(folder) = shared("longbench_v2") else { return };
    let all = read(&folder, "test").unwrap();
    assert_eq!((all.len(), count(&all, |e| e.id.clone())), (95, 95));
    assert!(all.iter().all(|e| e.meta["options"][0] == e.meta["choice_A"] && e.references.len() == 1));
    assert_eq!(count(&all, |e| e.meta["length"].to_string()), 3);
}

#[test]
fn official_records_agree_with_the_plain_ones() {
    let Some(folder) = shared("longbench_v2") else { return };
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(folder.join("raw/data.5records.rebuilt.json"), dir.path().join("data.json")).unwrap();
    let got = read(dir.path(), "test").unwrap();
    assert_eq!((got.len(), count(&got, |e| e.id.clone())), (5, 5));
    let plain = read(&folder, "test").unwrap();
    let mut compared = 0;
    for e in &got {
        let Some(same) = plain.iter().find(|p| p.meta["_id"] == e.meta["_id"]) else { continue };
        assert_eq!(e.references, same.references);
        assert_eq!(e.context, same.context.trim());
        assert_eq!(e.meta["options"], same.meta["options"]);
        compared += 1;
    }
    assert!(compared > 0, "the files have no record in common");
    assert!(read(dir.path(), "train").is_err(), "there is one split");
}

#[test]
fn every_field_is_stripped() {
    let dir = tempfile::tempdir().unwrap();
    let record = "{\"_id\":\"7\",\"domain\":\" Code \",\"sub_domain\":\"s\",\"difficulty\":\"easy\\n\",\
        \"length\":\"short\",\"question\":\" Why? \",\"choice_A\":\" a\",\"choice_B\":\"b\\n\",\"choice_C\":\"c\",\
        \"choice_D\":\"d\",\"answer\":\" C\",\"context\":\"\\n x\u{2028}y \"}";
    std::fs::write(dir.path().join("data.json"), format!("[{record}]")).unwrap();
    let e = read(dir.path(), "test").unwrap().remove(0);
    assert_eq!((e.context.as_str(), letter(&e)), ("x\u{2028}y", "C"));
    assert_eq!(e.instruction, "Why?\n(A) a\n(B) b\n(C) c\n(D) d");
    assert_eq!((&e.meta["domain"], &e.meta["difficulty"]), (&"Code".into(), &"easy".into()));
}

#[test]
fn the_official_reading() {
    let e = &sample().unwrap()[0];
    for (response, text, rule) in [
        ("**The correct answer is (C)**.", "C", "official-parenthesised"),
        ("The correct answer is B, not (C)", "B", "official-bare"),
        ("(B)", "", ""),
        ("the correct answer is (B)", "", ""),
        ("", "", ""),
    ] {
        let got = LongBenchV2.extract(e, response);
        assert_eq!((got.text.as_str(), got.rule.as_str()), (text, rule), "{response}");
    }
}

#[test]
fn mistakes_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let fails = |file: &str, text: &str| {
        std::fs::write(dir.path().join(file), text).unwrap();
        let message = read(dir.path(), "test").unwrap_err().message;
        std::fs::remove_file(dir.path().join(file)).unwrap();
        message
    };
    let good = r#"{"id":1,"context":"a","prompt":"q","answers":["B"],"meta":{"options":["x","y"]}}"#;
    let broken = format!("{}{{\"id\":", format!("{good}\n").repeat(56));
    assert!(fails("test.jsonl", &broken).contains("test.jsonl, line 57: not JSON"));
    let message = fails("test.jsonl", &good.replace("\"B\"", "\"C\""));
    assert!(
        message.ends_with("line 1: the answer `C` is neither a letter nor an option's text"),
        "{message}"
    );
    assert!(fails("test.jsonl", &good.replace("options", "o")).contains("`meta.options`"));
    assert!(fails("data.json", "[]").ends_with("data.json is empty"));
    let message = fails("data.json", "[{\"context\":\"c\"}]");
    assert!(message.ends_with("data.json, element 1: field `choice_A` is missing"), "{message}");
    assert!(fails("data.json", "[{\"context\":").contains("element 1: the file ends inside it"));
    let error = read(dir.path(), "test").unwrap_err();
    assert!(error.message.contains("has no split `test`") && error.help.contains("data.json"), "{error:?}");
}
