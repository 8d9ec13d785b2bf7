//! The task over its sample, over files in the official formats, and over broken ones.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use e2llm_plugin::{Example, Host, Result, Source, Task, TaskOptions};
use e2llm_task_qmsum::{Qmsum, e2llm_plugin_entry};
use serde_json::Value;

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
    Qmsum::default().open(&Source::folder(folder, split))?.collect()
}

fn count<T: Ord>(examples: &[Example], f: impl Fn(&Example) -> T) -> usize {
    examples.iter().map(f).collect::<BTreeSet<_>>().len()
}

#[test]
fn conforms() {
    e2llm_plugin::testing::assert_conforms(e2llm_plugin_entry);
}

#[test]
fn the_sample_has_general_and_specific_queries() {
    let all: Vec<_> = Qmsum::default().open(&Source::sample()).unwrap().map(|e| e.unwrap()).collect();
    assert_eq!((all.len(), count(&all, |e| e.group.clone())), (6, 2));
    assert_eq!(count(&all, |e| e.meta["query_type"].to_string()), 2);
    let prompt = Qmsum::default().prompt(&all[1]).unwrap();
    assert!(prompt.instruction.ends_with(&all[1].instruction));
    assert_eq!((prompt.max_new_tokens, prompt.style.as_str()), (512, "e2llm"));
}

#[test]
fn plain_records() {
    let Some(folder) = shared("qmsum") else { return };
    let all = read(&folder, "validation").unwrap();
    assert_eq!((all.len(), count(&all, |e| e.id.clone()), count(&all, |e| e.group.clone())), (272, 272, 35));
    assert!(all.iter().all(|e| e.meta.contains_key("query_type") && !e.references[0].is_empty()));
    let longbench = read(&folder, "longbench_mini").unwrap();
    assert_eq!((longbench.len(), count(&longbench, |e| e.group.clone())), (6, 6));
}

#[test]
fn official_lines() {
    let Some(raw) = shared("qmsum/raw/test.head3.jsonl") else { return };
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("data/ALL/jsonl")).unwrap();
    for place in ["test.jsonl", "data/ALL/jsonl/test.jsonl"] {
        std::fs::copy(&raw, dir.path().join(place)).unwrap();
        let all = read(dir.path(), "test").unwrap();
        std::fs::remove_file(dir.path().join(place)).unwrap();
        assert_eq!(count(&all, |e| e.id.clone()), all.len());
        assert_eq!(count(&all, |e| e.group.clone()), 3);
        let first: Vec<_> = all.iter().filter(|e| e.group == "test-1").collect();
        assert_eq!(first.len(), 13);
        assert_eq!((first[0].id.as_str(), first[12].id.as_str()), ("test-1-g0", "test-1-s11"));
        assert_eq!(first[0].instruction, "Summarize the whole meeting.");
        assert!(first[0].references[0].starts_with("This meeting was the eleventh evidence session"));
        assert!(first[0].context.starts_with("Lynne Neagle AM: Good afternoon, everyone."));
        assert_eq!(first[0].context.lines().count(), 133);
        assert_eq!(first[1].meta["relevant_text_span"][0][1], "16");
        assert_eq!(first[1].meta["topic_list"].as_array().unwrap().len(), 6);
    }
}

#[test]
fn official_files_agree_with_the_plain_records() {
    let Some(folder) = shared("qmsum") else { return };
    let dir = tempfile::tempdir().unwrap();
    let meetings = dir.path().join("data/ALL/train");
    std::fs::create_dir_all(&meetings).unwrap();
    for name in ["Bed004", "Bdb001"] {
        let raw = folder.join(format!("raw/train-{name}.json"));
        std::fs::copy(raw, meetings.join(format!("{name}.json"))).unwrap();
    }
    let source = Source::folder(dir.path(), "train");
    let got: Vec<_> = Qmsum::default().open(&source).unwrap().map(|e| e.unwrap()).collect();
    assert_eq!(source.opened_files().len(), 2);
    let plain = read(&folder, "train").unwrap();
    let same: Vec<_> = plain.iter().filter(|e| e.group == "Bdb001" || e.group == "Bed004").collect();
    assert_eq!(got.len(), same.len());
    for (a, b) in got.iter().zip(same) {
        assert_eq!(format!("qmsum-train-{}", a.id), b.id);
        assert_eq!((&a.context, &a.instruction), (&b.context, &b.instruction));
        assert_eq!((&a.references, &a.group), (&b.references, &b.group));
        for key in ["query_type", "relevant_text_span", "topic_list"] {
            assert_eq!(a.meta[key], b.meta[key], "{key}");
        }
    }
    let error = read(dir.path(), "test").unwrap_err();
    assert!(error.message.ends_with("no split `test`; splits found: train"), "{error}");
    std::fs::rename(meetings, dir.path().join("test")).unwrap();
    assert_eq!(read(dir.path(), "test").unwrap(), got);
}

#[test]
fn mistakes_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let fails = |lines: &str| {
        std::fs::write(dir.path().join("test.jsonl"), lines).unwrap();
        read(dir.path(), "test").unwrap_err().message
    };
    let good = r#"{"id":1,"context":"a: b","prompt":"q","answers":["x"]}"#;
    let broken = format!("{}{{\"id\":", format!("{good}\n").repeat(56));
    assert!(fails(&broken).contains("test.jsonl, line 57: not JSON"));
    assert!(fails("").ends_with("test.jsonl is empty"));
    let queries = r#""general_query_list":[],"specific_query_list":[{"query":"q"}]"#;
    let meeting = |turns: &str| fails(&format!("{good}\n{{\"meeting_transcripts\":{turns},{queries}}}\n"));
    assert!(meeting("[]").ends_with("line 2: field `meeting_transcripts` is empty"));
    let message = meeting(r#"[{"speaker":"A"}]"#);
    assert!(message.ends_with("line 2, meeting_transcripts[0]: field `content` is missing"), "{message}");
    let message = meeting(r#"[{"speaker":"A","content":"b"}]"#);
    assert!(message.ends_with("line 2, specific_query_list[0]: field `answer` is missing"), "{message}");
}

#[test]
fn only_line_feeds_end_lines() {
    let dir = tempfile::tempdir().unwrap();
    let meeting = "{\"meeting_transcripts\":[{\"speaker\":\"A\",\"content\":\"x\u{2028}y\u{85}z\"}],\
                   \"general_query_list\":[{\"query\":\"q\",\"answer\":\"a\"}],\"specific_query_list\":[]}\r\n";
    std::fs::write(dir.path().join("val.jsonl"), meeting.repeat(2)).unwrap();
    let all = read(dir.path(), "validation").unwrap();
    assert_eq!(all.len(), 2);
    assert_eq!(all[1].context, "A: x\u{2028}y\u{85}z");
}

#[test]
fn official_prompts_are_those_others_have_made() {
    // LongBench's prompts as OpenCompass wrote them down with the answers of a model
    let (Some(folder), Some(templates)) = (shared("qmsum"), shared("longbench/raw")) else { return };
    let path = folder.join("raw/minilongbench_qmsum.opencompass.json");
    let made: Value = serde_json::from_reader(std::fs::File::open(path).unwrap()).unwrap();
    let made: Vec<_> =
        made.as_object().unwrap().values().map(|v| v["origin_prompt"].as_str().unwrap()).collect();
    let mut task = Qmsum::default();
    let options = [("prompt", "official".into()), ("templates", templates.to_str().unwrap().into())];
    task.configure(
        &TaskOptions(options.map(|(k, v): (&str, Value)| (k.to_owned(), v)).into_iter().collect()),
        Host::default(),
    )
    .unwrap();
    let all: Vec<_> =
        task.open(&Source::folder(&folder, "longbench_mini")).unwrap().map(|e| e.unwrap()).collect();
    let prompts: Vec<_> = all.iter().map(|e| task.prompt(e).unwrap()).collect();
    for text in &made {
        assert!(prompts.iter().any(|p| p.render() == **text), "no prompt is {}...", &text[..400]);
    }
    let first = &prompts[0];
    assert_eq!(&first.template_sha256[..16], "dca23b678fe0183b");
    assert_eq!((first.style.as_str(), first.max_new_tokens, first.chat), ("official", 512, true));
}
