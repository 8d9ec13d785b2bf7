//! The task over its sample, over files in the official formats, and over broken ones.
#![expect(clippy::unwrap_used, reason = "all of this is tests")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use e2llm_plugin::{Example, Host, Result, Source, Task, TaskOptions};
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
    LongBenchV2::default().open(&Source::folder(folder, split))?.collect()
}

fn sample() -> Result<Vec<Example>> {
    LongBenchV2::default().open(&Source::sample())?.collect()
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
        assert!(LongBenchV2::default().info().slices.iter().all(|s| e.meta.contains_key(s)));
        let prompt = LongBenchV2::default().prompt(e).unwrap();
        assert!(prompt.instruction.contains(&e.instruction));
        assert!(prompt.instruction.contains("The correct answer is (X)"));
        // whoever repeats the instruction has not answered
        assert_eq!(LongBenchV2::default().extract(e, &prompt.instruction).text, "");
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
        let got = LongBenchV2::default().extract(e, response);
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

/// The task with prompts of this style from the folder of real files.
fn styled(style: &str, folder: &Path) -> LongBenchV2 {
    let mut task = LongBenchV2::default();
    let options = [("prompt", style), ("templates", folder.to_str().unwrap())];
    let options = options.map(|(k, v)| (k.to_owned(), v.into())).into_iter().collect();
    task.configure(&TaskOptions(options), Host::default()).unwrap();
    drop(task.open(&Source::sample()).unwrap());
    task
}

/// As the official script does, but for values that contain placeholders.
fn filled(template: &str, e: &Example, cot: &str) -> String {
    let field = |k: &str| e.meta[k].as_str().unwrap().trim().to_owned();
    template
        .replace("$DOC$", e.context.trim())
        .replace("$Q$", &field("question"))
        .replace("$C_A$", &field("choice_A"))
        .replace("$C_B$", &field("choice_B"))
        .replace("$C_C$", &field("choice_C"))
        .replace("$C_D$", &field("choice_D"))
        .replace("$COT$", cot)
}

#[test]
fn official_prompts() {
    let Some(folder) = shared("longbench_v2") else { return };
    let file = |name: &str| std::fs::read_to_string(folder.join("raw/prompts").join(name)).unwrap();
    let all = read(&folder, "test").unwrap();
    for (style, name, hash) in [
        ("official", "0shot.txt", "68a162252bc9ff71"),
        ("official-no-context", "0shot_no_context.txt", "125fb44183af01ff"),
    ] {
        let task = styled(style, &folder);
        for e in &all {
            let p = task.prompt(e).unwrap();
            assert_eq!(p.render(), filled(&file(name), e, ""), "{}", e.id);
            assert_eq!((p.style.as_str(), &p.template_sha256[..16]), (style, hash));
            assert_eq!((p.max_new_tokens, p.chat, p.context.is_empty()), (128, true, style != "official"));
            assert_eq!(task.next_turn(e, "x", 1).unwrap(), None);
        }
    }
}

#[test]
fn reasoning_takes_two_turns() {
    let Some(folder) = shared("longbench_v2") else { return };
    let file = |name: &str| std::fs::read_to_string(folder.join("raw/prompts").join(name)).unwrap();
    let task = styled("official-cot", &folder);
    let mut e = read(&folder, "test").unwrap().remove(0);
    let first = task.prompt(&e).unwrap();
    assert_eq!((first.render(), first.max_new_tokens), (filled(&file("0shot_cot.txt"), &e, ""), 1024));
    e.context.clear(); // as the host hands it over
    let second = task.next_turn(&e, " It says $Q$. \n", 1).unwrap().unwrap();
    assert_eq!(second.render(), filled(&file("0shot_cot_ans.txt"), &e, "It says $Q$."));
    assert_eq!((second.max_new_tokens, second.context.as_str()), (128, ""));
    assert_eq!(task.next_turn(&e, "The correct answer is (A)", 2).unwrap(), None);
}

#[test]
fn retrieved_chunks_are_read_in_the_order_of_the_text() {
    let dir = tempfile::tempdir().unwrap();
    let rag = |more: &[(&str, &str)]| {
        let mut task = LongBenchV2::default();
        let options = [&[("prompt", "official-rag")], more].concat();
        let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).into())).collect();
        task.configure(&TaskOptions(options), Host::default()).map(|()| task)
    };
    let record = |chunks: &str| {
        format!(
            r#"{{"_id":"7","domain":"d","sub_domain":"s","difficulty":"easy","length":"short","question":"Why?",
            "choice_A":"a","choice_B":"b","choice_C":"c","choice_D":"d","answer":"C","context":"the text"{chunks}}}"#
        )
        .replace('\n', "")
    };
    let chunks = r#","retrieved_context":[{"content":"later","c_idx":9},{"content":"first $Q$","c_idx":2},
        {"content":"last","c_idx":11}]"#;
    let source = Source::folder(dir.path(), "test");
    let write = |text: String| std::fs::write(dir.path().join("data.json"), format!("[{text}]")).unwrap();
    write(record(chunks));
    let error = rag(&[]).unwrap().open(&source).err().unwrap();
    assert!(error.message.contains("`official-rag` needs 0shot_rag.txt"), "{error}");
    std::fs::write(dir.path().join("0shot_rag.txt"), "Chunks:\n$DOC$\n\n$Q$ (A) $C_A$").unwrap();
    let asked = |task: &LongBenchV2| {
        let e = task.open(&source).unwrap().next().unwrap();
        e.map(|e| (task.prompt(&e).unwrap(), e))
    };
    let (two, e) = asked(&rag(&[("chunks", "2")]).unwrap()).unwrap();
    let text = "Retrieved chunk 1: first $Q$\n\nRetrieved chunk 2: later";
    assert_eq!(two.render(), format!("Chunks:\n{text}\n\nWhy? (A) a"));
    assert_eq!((two.style.as_str(), two.context.as_str()), ("official-rag", text));
    let (all, _) = asked(&rag(&[]).unwrap()).unwrap();
    assert!(all.context.ends_with("Retrieved chunk 3: last"));
    // a record without chunks is cut by a backend that retrieves
    write(record(""));
    let (whole, other) = asked(&rag(&[]).unwrap()).unwrap();
    assert_eq!((whole.context.as_str(), &other.group), ("the text", &e.group));
    for (chunks, what) in [
        (r#","retrieved_context":[]"#, "`retrieved_context` is empty"),
        (r#","retrieved_context":[{"content":"x"}]"#, "retrieved_context[0]: field `c_idx` is no number"),
        (r#","retrieved_context":"x""#, "`retrieved_context` is a text, expected a list"),
    ] {
        write(record(chunks));
        let error = asked(&rag(&[]).unwrap()).unwrap_err();
        assert!(error.message.contains(what), "{error}");
    }
    assert!(rag(&[("chunks", "0")]).unwrap_err().message.contains("less than one"));
    let mut task = LongBenchV2::default();
    let options = [("chunks".to_owned(), "2".into())].into_iter().collect();
    let error = task.configure(&TaskOptions(options), Host::default()).unwrap_err();
    assert!(error.help.contains("--prompt official-rag"), "{error:?}");
}

#[test]
fn official_prompts_that_cannot_be_made_are_errors() {
    let with = |style: &str| {
        let mut task = LongBenchV2::default();
        let options = [("prompt".to_owned(), style.into())].into_iter().collect();
        task.configure(&TaskOptions(options), Host::default()).map(|()| task)
    };
    let error = with("rag").err().unwrap();
    assert_eq!(error.help, "it has: e2llm, official, official-cot, official-no-context, official-rag");
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("test.jsonl"), "{}").unwrap();
    let error = with("official-cot").unwrap().open(&Source::folder(dir.path(), "test")).err().unwrap();
    assert!(error.message.contains("needs 0shot_cot.txt"), "{error}");
    assert!(
        error.message.contains(dir.path().to_str().unwrap()) && error.help.contains("templates"),
        "{error:?}"
    );
    std::fs::write(dir.path().join("0shot.txt"), "$DOC$ $Q$").unwrap();
    let task = with("official").unwrap();
    drop(task.open(&Source::folder(dir.path(), "test")).unwrap());
    let error = task.prompt(&Example { id: "7".into(), ..Example::default() }).unwrap_err();
    assert!(error.message.contains("sample `7`: `meta.question` is missing"), "{error}");
}
