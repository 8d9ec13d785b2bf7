//! The task over its sample, over files in the official formats, and over broken ones.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use e2llm_plugin::{Example, Host, OutputKind, Result, Source, Task, TaskOptions};
use e2llm_task_quality::{Quality, e2llm_plugin_entry};

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
    Quality::default().open(&Source::folder(folder, split))?.collect()
}

fn sample() -> Result<Vec<Example>> {
    Quality::default().open(&Source::sample())?.collect()
}

fn count<T: Ord>(examples: &[Example], f: impl Fn(&Example) -> T) -> usize {
    examples.iter().map(f).collect::<BTreeSet<_>>().len()
}

#[test]
fn conforms() {
    e2llm_plugin::testing::assert_conforms(e2llm_plugin_entry);
}

#[test]
fn the_sample_is_complete() {
    let all = sample().unwrap();
    assert_eq!((all.len(), count(&all, |e| e.group.clone())), (6, 2));
    for e in &all {
        assert_eq!(e.meta["choice_protocol"], "quality");
        let options = e2llm_plugin::choice::options(e);
        assert_eq!(options.len(), 4);
        let gold = e.meta["gold_label"].as_u64().unwrap() as usize;
        assert_eq!(e.references, [["A", "B", "C", "D"][gold - 1]]);
        assert!(e.instruction.contains(&format!("({}) {}", e.references[0], options[gold - 1])));
        assert!(Quality::default().prompt(e).unwrap().instruction.contains(&e.instruction));
        // an option's text is an answer; the instruction is none
        assert_eq!(Quality::default().extract(e, &options[gold - 1]).text, e.references[0]);
        assert_eq!(
            Quality::default().extract(e, &Quality::default().prompt(e).unwrap().instruction).text,
            ""
        );
    }
}

#[test]
fn plain_records() {
    let Some(folder) = shared("quality") else { return };
    let all = read(&folder, "test").unwrap();
    assert_eq!((all.len(), count(&all, |e| e.id.clone()), count(&all, |e| e.group.clone())), (202, 202, 15));
    assert!(all.iter().all(|e| e.references.len() == 1 && e2llm_plugin::choice::options(e).len() == 4));
    let error = read(&folder, "dev").unwrap_err();
    assert!(error.message.ends_with("splits found: test, train"), "{error}");
}

#[test]
fn official_lines() {
    let Some(raw) = shared("quality/raw/tfds_dummy_QuALITY.v0.9.htmlstripped.dev.line1.3questions.jsonl")
    else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    for name in ["QuALITY.v1.0.1.htmlstripped.dev", "QuALITY.v0.9.htmlstripped.dev", "dev.jsonl"] {
        std::fs::copy(&raw, dir.path().join(name)).unwrap();
        // the official test file has no answers
        let all = read(dir.path(), &Quality::default().info().default_split).unwrap();
        assert_eq!((all.len(), count(&all, |e| e.id.clone())), (3, 3));
        assert_eq!((all[0].id.as_str(), all[0].group.as_str()), ("52995_I3M5VUMM_1", "52995"));
        assert_eq!((all[0].context.as_str(), all[0].references[0].as_str()), ("article text\n", "C"));
        assert_eq!((&all[0].meta["difficult"], &all[1].meta["difficult"]), (&0.into(), &1.into()));
        assert!(all[0].instruction.starts_with("Why is Si retirement so significant"));
        std::fs::remove_file(dir.path().join(name)).unwrap();
    }
}

#[test]
fn the_older_schema_agrees_with_the_plain_records() {
    let Some(folder) = shared("quality") else { return };
    let dir = tempfile::tempdir().unwrap();
    let raw = std::fs::read_to_string(folder.join("raw/nyu-mll_quality_example.jsonl")).unwrap();
    // the example's two lines are the same article
    let line = raw.split('\n').next().unwrap();
    std::fs::write(dir.path().join("train.jsonl"), line).unwrap();
    let got = read(dir.path(), "train").unwrap();
    let plain = read(&folder, "train").unwrap();
    assert_eq!((got.len(), plain.len()), (5, 5));
    for (a, b) in got.iter().zip(&plain) {
        assert_eq!(format!("quality-example-{}", a.id), b.id);
        assert_eq!((&a.references, &a.group), (&b.references, &b.group));
        assert_eq!(a.instruction, b.instruction);
        let words = |e: &Example| e.context.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(a), words(b), "the same words after tags are gone");
    }
    assert!(got[0].context.starts_with("THE GIRL IN HIS MIND\n\nBy ROBERT F. YOUNG\n\n[Transcriber's Note:"));
}

#[test]
fn the_strict_reading() {
    let e = &sample().unwrap()[0];
    for (response, text, rule) in [
        ("(C)", "C", "leading"),
        (" B. Because", "B", "leading"),
        ("I think the answer is (D)", "D", "answer-is"),
        ("A mule walks", "", ""),
        ("", "", ""),
    ] {
        let got = Quality::default().extract(e, response);
        assert_eq!((got.text.as_str(), got.rule.as_str()), (text, rule), "{response}");
    }
}

#[test]
fn mistakes_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let fails = |lines: &str| {
        std::fs::write(dir.path().join("test.jsonl"), lines).unwrap();
        read(dir.path(), "test").unwrap_err()
    };
    let good = r#"{"id":1,"context":"a","prompt":"q","answers":["B"],"meta":{"options":["x","y","z","w"]}}"#;
    let broken = format!("{}{{\"id\":", format!("{good}\n").repeat(56));
    assert!(fails(&broken).message.contains("test.jsonl, line 57: not JSON"));
    assert!(fails("").message.ends_with("test.jsonl is empty"));
    let article =
        |question: &str| fails(&format!(r#"{{"article_id":1,"article":"a","questions":[{question}]}}"#));
    let question = r#"{"question":"q","question_unique_id":"u","options":["x","y","z","w"]}"#;
    let error = article(question);
    assert!(error.message.ends_with("line 1, questions[0]: field `gold_label` is missing"), "{error}");
    assert!(error.help.contains("--split dev"));
    let with =
        |gold: &str| question.replace("\"question\":", &format!("\"gold_label\":{gold},\"question\":"));
    for gold in ["0", "5", "\"B\"", "null"] {
        let error = article(&with(gold));
        assert!(error.message.contains(&format!("`gold_label` is {gold}, expected 1 to 4")), "{error}");
    }
    let error = article(&with("2").replace(",\"w\"", ""));
    assert!(error.message.ends_with("3 options, expected 4"), "{error}");
}

/// The task with this option.
fn with(option: &str, value: &str) -> Result<Quality> {
    let mut task = Quality::default();
    let mut options = TaskOptions::default();
    options.0.insert(option.into(), value.into());
    task.configure(&options, Host::default()).map(|()| task)
}

#[test]
fn an_option_can_be_chosen_by_likelihood() {
    let task = with("output", "choose").unwrap();
    assert_eq!(task.info().output, OutputKind::Choose);
    for e in task.open(&Source::sample()).unwrap() {
        let e = e.unwrap();
        assert_eq!(e.meta["choice_protocol"], "letter");
        let prompt = task.prompt(&e).unwrap();
        assert_eq!(prompt.choices.len(), 4);
        let gold = usize::from(e.references[0].as_bytes()[0] - b'A');
        let read = task.extract(&e, &prompt.choices[gold]);
        assert_eq!((read.text.as_str(), read.rule.as_str()), (e.references[0].as_str(), "likelihood"));
        assert_eq!(task.extract(&e, "(A)").text, "", "only an option's text is chosen");
    }
    assert_eq!(with("output", "choose-normalised").unwrap().info().output, OutputKind::ChooseNormalised);
    assert!(with("output", "guess").unwrap_err().help.contains("`choose`"));
}

#[test]
fn zeroscrolls_records_bring_their_prompts() {
    let (before, story, between) =
        ("Read it.\n\nStory:\n", "A long tale.", "\n\nQuestion and Possible Answers:\n");
    let query = "Who came?\n (A) Nobody\n (B) A man\nand his dog\n (C) A cat\n (D) All";
    let input = [before, story, between, query, "\n\nAnswer:\n"].concat();
    let (document, asked) = (before.len(), before.len() + story.len() + between.len());
    let row = |input: &str, output: &str| {
        serde_json::json!({"id": "7", "pid": "7_0", "input": input, "output": output,
            "document_start_index": document, "document_end_index": document + story.len(),
            "query_start_index": asked, "query_end_index": asked + query.len()})
        .to_string()
    };
    let dir = tempfile::tempdir().unwrap();
    let task = with("prompt", "zeroscrolls").unwrap();
    let first = |row: String| {
        std::fs::write(dir.path().join("validation.jsonl"), row).unwrap();
        task.open(&Source::folder(dir.path(), "validation")).unwrap().next().unwrap()
    };
    for (output, letter) in [("B", "B"), ("(C)", "C"), ("All", "D")] {
        let e = first(row(&input, output)).unwrap();
        assert_eq!((e.references.as_slice(), e.context.as_str()), (&[letter.to_owned()][..], story));
        assert_eq!(e.meta["options"], serde_json::json!(["Nobody", "A man\nand his dog", "A cat", "All"]));
        assert_eq!(e.meta["question"], "Who came?");
        let prompt = task.prompt(&e).unwrap();
        assert_eq!((prompt.render(), prompt.max_new_tokens), (input.clone(), 10));
    }
    let error = first(row(&input.replace("(D)", "(E)"), "A")).unwrap_err();
    assert!(error.message.contains("3 options"), "{error}");
    let error = task.prompt(&sample().unwrap()[0]).unwrap_err();
    assert!(error.help.contains("validation.jsonl"), "{error:?}");
}

#[test]
fn scrolls_asks_first_and_has_no_official_wording() {
    let task = with("prompt", "scrolls").unwrap();
    let e = &sample().unwrap()[0];
    let text = task.prompt(e).unwrap().render();
    assert!(text.starts_with(&format!("{}\n(A) ", e.meta["question"].as_str().unwrap())), "{}", &text[..200]);
    assert!(text.ends_with(&format!("\n\n{}", e.context)));
    assert_eq!(with("prompt", "official").unwrap_err().help, "it has: e2llm, scrolls, zeroscrolls");
}
