//! The task over its sample, over files in the official formats, and over broken ones.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use e2llm_plugin::{Example, Host, Result, Source, Task, TaskOptions};
use e2llm_task_govreport::{GovReport, e2llm_plugin_entry};
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
    GovReport::default().open(&Source::folder(folder, split))?.collect()
}

fn sample() -> Result<Vec<Example>> {
    GovReport::default().open(&Source::sample())?.collect()
}

fn count<T: Ord>(examples: &[Example], f: impl Fn(&Example) -> T) -> usize {
    examples.iter().map(f).collect::<BTreeSet<_>>().len()
}

#[test]
fn conforms() {
    e2llm_plugin::testing::assert_conforms(e2llm_plugin_entry);
}

#[test]
fn every_report_gets_the_same_instruction() {
    let all = sample().unwrap();
    assert_eq!((all.len(), count(&all, |e| e.group.clone())), (3, 3));
    assert_eq!(count(&all, |e| GovReport::default().prompt(e).unwrap().instruction), 1);
}

#[test]
fn plain_records() {
    let Some(folder) = shared("govreport") else { return };
    let all = read(&folder, "test").unwrap();
    assert_eq!((all.len(), count(&all, |e| e.id.clone()), count(&all, |e| e.group.clone())), (25, 25, 25));
    assert!(all.iter().all(|e| e.references.len() == 1 && e.references[0].len() > 500));
    let error = read(&folder, "train").unwrap_err();
    assert!(error.message.ends_with("no split `train`; splits found: test"), "{error}");
}

#[test]
fn leval_agrees_with_the_plain_records() {
    let Some(folder) = shared("govreport") else { return };
    let dir = tempfile::tempdir().unwrap();
    let raw = folder.join("raw/leval_gov_report_summ.head2.jsonl");
    std::fs::copy(raw, dir.path().join("gov_report_summ.jsonl")).unwrap();
    let got = read(dir.path(), "test").unwrap();
    assert_eq!((got.len(), count(&got, |e| e.id.clone())), (2, 2));
    let plain = read(&folder, "test").unwrap();
    for e in &got {
        let same = plain.iter().find(|p| p.group == e.group).unwrap();
        assert_eq!((&e.context, &e.references), (&same.context, &same.references));
    }
    assert!(read(dir.path(), "validation").is_err(), "a file of the test split is no other split");
}

#[test]
fn longbench_lines() {
    let Some(raw) = shared("longbench/raw/multi_news.head10.jsonl") else { return };
    let dir = tempfile::tempdir().unwrap();
    for name in ["gov_report.jsonl", "test.jsonl"] {
        std::fs::copy(&raw, dir.path().join(name)).unwrap();
        let all = read(dir.path(), "test").unwrap();
        assert_eq!((all.len(), count(&all, |e| e.id.clone())), (10, 10));
        assert_eq!(all[0].id, "e45abfcb82a3c862c0f772e6f461866839955c11ea2f46a8");
        assert_eq!(all[0].meta["length"], 2099);
        assert!(all[0].references[0].starts_with("The Occupy LA encampment"));
    }
}

#[test]
fn mistakes_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let fails = |lines: &str| {
        std::fs::write(dir.path().join("test.jsonl"), lines).unwrap();
        read(dir.path(), "test").unwrap_err().message
    };
    let good = r#"{"id":1,"context":"a","prompt":"q","answers":["x"]}"#;
    let broken = format!("{}{{\"id\":", format!("{good}\n").repeat(56));
    assert!(fails(&broken).contains("test.jsonl, line 57: not JSON"));
    assert!(fails("").ends_with("test.jsonl is empty"));
    let longbench = r#"{"_id":"1","input":"","context":"c","answers":[]}"#;
    assert!(fails(&format!("{good}\n{longbench}")).contains("line 2: field `answers` is empty"));
    let leval = r#"{"instructions":["q"],"outputs":[],"input":"c"}"#;
    assert!(fails(leval).contains("line 1: field `outputs` is empty"));
}

#[test]
fn official_prompts_are_those_others_have_made() {
    // LongBench's prompts as OpenCompass wrote them down with the answers of a model
    let (Some(folder), Some(templates)) = (shared("govreport"), shared("longbench/raw")) else { return };
    let path = folder.join("raw/minilongbench_gov_report.opencompass.json");
    let made: Value = serde_json::from_reader(std::fs::File::open(path).unwrap()).unwrap();
    let made: Vec<_> =
        made.as_object().unwrap().values().map(|v| v["origin_prompt"].as_str().unwrap()).collect();
    let mut task = GovReport::default();
    let options = [("prompt", "official".into()), ("templates", templates.to_str().unwrap().into())];
    task.configure(
        &TaskOptions(options.map(|(k, v): (&str, Value)| (k.to_owned(), v)).into_iter().collect()),
        Host::default(),
    )
    .unwrap();
    let all: Vec<_> = task.open(&Source::folder(&folder, "test")).unwrap().map(|e| e.unwrap()).collect();
    let prompts: Vec<_> = all.iter().map(|e| task.prompt(e).unwrap()).collect();
    for text in &made {
        assert!(prompts.iter().any(|p| p.render() == **text), "no prompt is {}...", &text[..400]);
    }
    let first = &prompts[0];
    assert_eq!(&first.template_sha256[..16], "91c25d585b189ced");
    assert_eq!((first.style.as_str(), first.max_new_tokens, first.chat), ("official", 512, true));
}

#[test]
fn scrolls_gives_the_report_alone() {
    let mut task = GovReport::default();
    let options = [("prompt".to_owned(), "scrolls".into())].into_iter().collect();
    task.configure(&TaskOptions(options), Host::default()).unwrap();
    let e = &sample().unwrap()[0];
    let prompt = task.prompt(e).unwrap();
    assert_eq!((prompt.render(), prompt.chat), (e.context.clone(), false));
    assert_eq!((prompt.style.as_str(), prompt.max_new_tokens), ("scrolls", 1024));
}
