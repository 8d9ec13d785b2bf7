//! The task over its sample, over files in the official formats, and over broken ones.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use e2llm_plugin::{Example, Host, Result, Source, Task, TaskOptions};
use e2llm_task_narrativeqa::{NarrativeQa, e2llm_plugin_entry};

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
    NarrativeQa::default().open(&Source::folder(folder, split))?.collect()
}

fn sample() -> Result<Vec<Example>> {
    NarrativeQa::default().open(&Source::sample())?.collect()
}

fn count<T: Ord>(examples: &[Example], f: impl Fn(&Example) -> T) -> usize {
    examples.iter().map(f).collect::<BTreeSet<_>>().len()
}

#[test]
fn conforms() {
    e2llm_plugin::testing::assert_conforms(e2llm_plugin_entry);
}

/// A task that reads the official files in the given setting.
fn in_setting(setting: &str) -> Result<NarrativeQa> {
    let mut task = NarrativeQa::default();
    let mut options = TaskOptions::default();
    options.0.insert("setting".into(), setting.into());
    task.configure(&options, Host::default()).map(|()| task)
}

const QUESTIONS: &str = "document_id,set,question,answer1,answer2,question_tokenized\n\
    d1,test,\"Who, then?\",\"A \"\"man\"\".\",A person,Who\n\
    d2,valid,Where?,There,,Where\n\
    d1,test,Why?,,because,Why\n";
const DOCUMENTS: &str =
    "document_id,set,kind,story_url,wiki_title\nd1,test,movie,u,One\nd2,valid,gutenberg,u,Two\n";
const SUMMARIES: &str =
    "document_id,set,summary\nd1,test,\" First\u{2028}line.\n\nSecond \"\nd2,valid,Text\n";

/// A folder in the official layout.
fn official() -> std::io::Result<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    std::fs::create_dir_all(dir.path().join("third_party/wikipedia"))?;
    for (name, text) in [
        ("qaps.csv", QUESTIONS),
        ("documents.csv", DOCUMENTS),
        ("third_party/wikipedia/summaries.csv", SUMMARIES),
    ] {
        std::fs::write(dir.path().join(name), text)?;
    }
    Ok(dir)
}

#[test]
fn the_sample_has_two_answers_each() {
    let all = sample().unwrap();
    assert_eq!((all.len(), count(&all, |e| e.group.clone())), (5, 2));
    assert!(all.iter().all(|e| e.references.len() == 2 && e.meta.contains_key("kind")));
    let prompt = NarrativeQa::default().prompt(&all[0]).unwrap();
    assert!(prompt.instruction.ends_with(&all[0].instruction));
}

#[test]
fn plain_records() {
    let Some(folder) = shared("narrativeqa") else { return };
    for (split, n, groups) in [("test", 200, 20), ("train", 2398, 81), ("longbench_mini", 6, 6)] {
        let all = read(&folder, split).unwrap();
        assert_eq!((all.len(), count(&all, |e| e.id.clone())), (n, n));
        assert_eq!(count(&all, |e| e.group.clone()), groups);
    }
    let all = read(&folder, "test").unwrap();
    assert_eq!(count(&all, |e| e.meta["kind"].to_string()), 2);
    assert!(all.iter().all(|e| e.group == e.meta["document_id"]));
}

#[test]
fn full_stories_are_streamed() {
    let Some(folder) = shared("narrativeqa") else { return };
    let source = Source::folder(&folder, "train_fullstory");
    let mut groups = BTreeSet::new();
    let mut n = 0;
    for e in NarrativeQa::default().open(&source).unwrap() {
        let e = e.unwrap();
        n += 1;
        groups.insert(e.group);
    }
    assert_eq!((n, groups.len()), (535, 18));
}

#[test]
fn official_copies_of_the_data() {
    let Some(folder) = shared("narrativeqa/raw/hf_dummy") else { return };
    for (split, kind) in [("test", "movie"), ("train", "gutenberg"), ("validation", "movie")] {
        let all = read(&folder, split).unwrap();
        assert_eq!((all.len(), all[0].references.len(), &all[0].meta["kind"]), (1, 2, &kind.into()));
        assert_eq!(
            (&all[0].id, &all[0].meta["setting"]),
            (&format!("{}-1", all[0].group), &"summary".into())
        );
        let source = Source::folder(&folder, split);
        let story = in_setting("story").unwrap().open(&source).unwrap().next().unwrap().unwrap();
        assert_eq!(source.opened_files().len(), 3, "questions, documents, one story");
        assert_eq!((&story.id, &story.references), (&all[0].id, &all[0].references));
        assert_ne!(story.context, all[0].context);
    }
    let source = Source::folder(&folder, "train");
    let story = in_setting("story").unwrap().open(&source).unwrap().next().unwrap().unwrap();
    assert!(story.context.starts_with("Title: Percival Keene\n"), "no byte order mark");
}

#[test]
fn the_official_layout() {
    let dir = official().unwrap();
    let all = read(dir.path(), "test").unwrap();
    assert_eq!(all.iter().map(|e| e.id.as_str()).collect::<Vec<_>>(), ["d1-1", "d1-2"]);
    assert_eq!(all[0].context, "First\u{2028}line.\n\nSecond");
    assert_eq!(
        (all[0].instruction.as_str(), &all[0].references[0]),
        ("Who, then?", &"A \"man\".".to_owned())
    );
    assert_eq!(all[1].references, ["because"]);
    assert_eq!(read(dir.path(), "dev").unwrap()[0].meta["wiki_title"], "Two");
    let error = read(dir.path(), "train").unwrap_err();
    assert!(error.message.ends_with("no split `train`; splits found: test, valid"), "{error}");

    let story = in_setting("story").unwrap();
    let open = || story.open(&Source::folder(dir.path(), "test"))?.collect::<Result<Vec<_>>>();
    let error = open().unwrap_err();
    assert!(error.message.contains("tmp/d1.content") && error.help.contains("download"), "{error:?}");
    std::fs::create_dir(dir.path().join("tmp")).unwrap();
    std::fs::write(dir.path().join("tmp/d1.content"), b"caf\xe9").unwrap();
    assert_eq!(open().unwrap()[1].context, "caf\u{e9}");
    std::fs::write(dir.path().join("tmp/d1.content"), " \n").unwrap();
    assert!(open().unwrap_err().message.ends_with("d1.content: the story is empty"));
    assert!(in_setting("film").unwrap_err().help.contains("`summary` or `story`"));
}

#[test]
fn mistakes_are_named() {
    let dir = official().unwrap();
    let fails = |name: &str, text: &str| {
        let path = dir.path().join(name);
        let before = std::fs::read(&path).unwrap();
        std::fs::write(&path, text).unwrap();
        let message = read(dir.path(), "test").unwrap_err().message;
        std::fs::write(&path, before).unwrap();
        message
    };
    let broken = format!("{QUESTIONS}{}d1,test\n", "d1,test,q,a,b,c\n".repeat(52));
    let message = fails("qaps.csv", &broken);
    assert!(message.contains("qaps.csv") && message.contains("line: 57"), "{message}");
    let message = fails("qaps.csv", &QUESTIONS.replace("answer1", "a"));
    assert!(message.contains("qaps.csv, line 2") && message.contains("`answer1`"), "{message}");
    assert!(fails("qaps.csv", "").ends_with("qaps.csv has no questions"));
    assert!(fails("qaps.csv", &QUESTIONS.replace(",because", ",")).contains("line 4: columns `answer1`"));
    assert!(
        fails("documents.csv", &DOCUMENTS.replace("\nd1", "\nd3"))
            .contains("line 2: document `d1` is not in")
    );
    let message = fails("third_party/wikipedia/summaries.csv", &SUMMARIES.replace("\nd1", "\nd3"));
    assert!(message.ends_with("qaps.csv, line 2: no text of document `d1`"), "{message}");
    std::fs::remove_file(dir.path().join("third_party/wikipedia/summaries.csv")).unwrap();
    let message = read(dir.path(), "test").unwrap_err().message;
    assert!(message.ends_with("has no third_party/wikipedia/summaries.csv"), "{message}");

    let good = r#"{"id":1,"context":"a","prompt":"q","answers":["x"]}"#;
    let lines = format!("{}{{\"id\":", format!("{good}\n").repeat(56));
    std::fs::write(dir.path().join("test.jsonl"), lines).unwrap();
    let message = read(dir.path(), "test").unwrap_err().message;
    assert!(message.contains("test.jsonl, line 57: not JSON"), "{message}");
}

/// The task with these options.
fn with(options: &[(&str, &str)]) -> Result<NarrativeQa> {
    let mut task = NarrativeQa::default();
    let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).into())).collect();
    task.configure(&TaskOptions(options), Host::default()).map(|()| task)
}

#[test]
fn prompts_of_others() {
    let example = &sample().unwrap()[0];
    let scrolls = with(&[("prompt", "scrolls")]).unwrap().prompt(example).unwrap();
    assert_eq!(scrolls.render(), format!("{}\n\n{}", example.instruction, example.context));
    assert_eq!((scrolls.style.as_str(), scrolls.chat, scrolls.max_new_tokens), ("scrolls", false, 64));
    assert!(
        with(&[("prompt", "formal")])
            .unwrap_err()
            .help
            .ends_with("it has: e2llm, official, scrolls, zeroscrolls")
    );
    let error = with(&[("prompt", "zeroscrolls")]).unwrap().prompt(example).unwrap_err();
    assert!(error.help.contains("ZeroSCROLLS' own records"), "{error}");
    let official = with(&[("prompt", "official")]).unwrap();
    assert!(official.prompt(example).is_err() && official.open(&Source::sample()).is_err());
    let Some(templates) = shared("longbench/raw") else { return };
    let official = with(&[("prompt", "official"), ("templates", templates.to_str().unwrap())]).unwrap();
    drop(official.open(&Source::sample()).unwrap());
    let prompt = official.prompt(example).unwrap();
    assert_eq!(&prompt.template_sha256[..16], "aada7ed24b06abac");
    assert!(prompt.render().ends_with(&format!("Question: {}\n\nAnswer:", example.instruction)));
    assert!(prompt.render().contains(&format!("\n\nStory: {}\n\nNow, answer", example.context)));
    assert_eq!((prompt.max_new_tokens, prompt.chat), (128, true));
}

#[test]
fn rows_of_zeroscrolls() {
    let dir = tempfile::tempdir().unwrap();
    let row = |pid: &str, output: &str| {
        let input = "Read.\n\nStory:\nA cat sat.\n\nQuestion:\nWho sat?\n\nAnswer:\n";
        let (document, query) = (input.find("A cat").unwrap(), input.find("Who").unwrap());
        serde_json::json!({"id": "1", "pid": pid, "input": input, "output": output, "document_start_index": document,
            "document_end_index": document + 10, "query_start_index": query, "query_end_index": query + 8})
        .to_string()
    };
    std::fs::write(dir.path().join("validation.jsonl"), row("1_0", "cat") + "\n" + &row("1_1", "the cat"))
        .unwrap();
    let task = with(&[("prompt", "zeroscrolls")]).unwrap();
    let all: Vec<_> =
        task.open(&Source::folder(dir.path(), "validation")).unwrap().map(|e| e.unwrap()).collect();
    assert_eq!((all.len(), all[0].references.len()), (1, 2));
    let prompt = task.prompt(&all[0]).unwrap();
    assert_eq!(prompt.render(), "Read.\n\nStory:\nA cat sat.\n\nQuestion:\nWho sat?\n\nAnswer:\n");
    assert_eq!(prompt.max_new_tokens, 64);
    let ours = NarrativeQa::default().prompt(&all[0]).unwrap();
    assert!(ours.instruction.ends_with("Question: Who sat?"));
}
