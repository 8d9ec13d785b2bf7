//! The task over its sample, over files in the official formats, and over broken ones.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use e2llm_plugin::{Example, Host, Result, Source, Task, TaskOptions};
use e2llm_task_triviaqa::{TriviaQa, e2llm_plugin_entry};

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
    TriviaQa::default().open(&Source::folder(folder, split))?.collect()
}

fn sample() -> Result<Vec<Example>> {
    TriviaQa::default().open(&Source::sample())?.collect()
}

fn count<T: Ord>(examples: &[Example], f: impl Fn(&Example) -> T) -> usize {
    examples.iter().map(f).collect::<BTreeSet<_>>().len()
}

#[test]
fn conforms() {
    e2llm_plugin::testing::assert_conforms(e2llm_plugin_entry);
}

/// A task that reads the given official questions.
fn of_domain(domain: &str) -> Result<TriviaQa> {
    let mut task = TriviaQa::default();
    let mut options = TaskOptions::default();
    options.0.insert("domain".into(), domain.into());
    task.configure(&options, Host::default()).map(|()| task)
}

fn unpack(archive: &Path, into: &Path) -> std::io::Result<bool> {
    let status = std::process::Command::new("tar").arg("xzf").arg(archive).arg("-C").arg(into).status()?;
    Ok(status.success())
}

#[test]
fn the_sample_has_aliases() {
    let all = sample().unwrap();
    assert_eq!((all.len(), count(&all, |e| e.group.clone())), (5, 2));
    assert!(all.iter().all(|e| e.references.len() > 1 && e.context.contains(&e.references[0])));
    let prompt = TriviaQa::default().prompt(&all[0]).unwrap();
    assert!(prompt.instruction.ends_with(&all[0].instruction));
}

#[test]
fn plain_records() {
    let Some(folder) = shared("triviaqa") else { return };
    for (split, n, groups) in [("test", 16, 16), ("train", 208, 207)] {
        let all = read(&folder, split).unwrap();
        assert_eq!((all.len(), count(&all, |e| e.id.clone())), (n, n));
        assert_eq!(count(&all, |e| e.group.clone()), groups);
    }
}

#[test]
fn official_files_agree_with_the_plain_records() {
    let Some(folder) = shared("triviaqa") else { return };
    let dir = tempfile::tempdir().unwrap();
    assert!(unpack(&folder.join("raw/allennlp_triviaqa-sample.tgz"), dir.path()).unwrap());
    let mut compared = 0;
    for (split, plain) in [("dev", "test"), ("train", "train")] {
        let plain = read(&folder, plain).unwrap();
        for domain in ["wikipedia", "web"] {
            let source = Source::folder(dir.path(), split);
            let got: Vec<_> = of_domain(domain).unwrap().open(&source).unwrap().map(|e| e.unwrap()).collect();
            assert_eq!(source.opened_files().len(), 1);
            for e in got {
                let id = format!("triviaqa-{domain}-{split}-{}", e.id);
                let same = plain.iter().find(|p| p.id == id).unwrap();
                assert_eq!((&e.context, &e.instruction), (&same.context, &same.instruction));
                assert_eq!(e.references[..same.references.len()], same.references);
                assert_eq!(e.meta["normalized_aliases"], same.meta["normalized_aliases"]);
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 11);
    let error = read(dir.path(), "test").unwrap_err();
    assert!(error.message.ends_with("splits found: dev, train"), "{error}");
    assert_eq!(read(dir.path(), "validation").unwrap().len(), 2);
}

#[test]
fn every_official_answer_counts() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("qa")).unwrap();
    std::fs::create_dir_all(dir.path().join("evidence/web/1")).unwrap();
    std::fs::write(dir.path().join("evidence/web/1/1_2.txt"), "x\u{2028}y").unwrap();
    let answer = r#"{"Value":"U.S.","Aliases":["U.S.","The US"],"NormalizedAliases":["u s","us","america"],
                     "HumanAnswers":["America"]}"#;
    let question = |answer: &str, file: &str| {
        format!(
            r#"{{"QuestionId":"q","Question":"Where?","Answer":{answer},"EntityPages":[],
                "SearchResults":[{{"Filename":"{file}"}}]}}"#
        )
    };
    let task = of_domain("web").unwrap();
    let read = |data: &str| {
        let text = format!(r#"{{"Data":[{data}],"Split":"dev"}}"#);
        std::fs::write(dir.path().join("qa/web-dev.json"), text).unwrap();
        task.open(&Source::folder(dir.path(), "dev"))?.collect::<Result<Vec<_>>>()
    };
    let got = read(&question(answer, "1/1_2.txt")).unwrap();
    assert_eq!(got[0].references, ["U.S.", "The US", "America"]);
    assert_eq!(got[0].context, "x\u{2028}y");
    let fails = |data: &str| read(data).unwrap_err();
    assert!(fails("").message.contains("`Data` is empty"));
    let error = fails(&question(answer, "1/none.txt"));
    assert!(error.message.contains("element 1, SearchResults[0]: cannot open"), "{error}");
    let error = fails(&question(answer, "../../qa/web-dev.json"));
    assert!(error.message.contains("is no name of a file"), "{error}");
    let error = fails(r#"{"QuestionId":"q","Question":"Where?","SearchResults":[]}"#);
    assert!(error.message.ends_with("the question has no documents"), "{error}");
    let none = r#"{"Value":"","Aliases":[],"NormalizedAliases":[]}"#;
    assert!(fails(&question(none, "1/1_2.txt")).message.contains("element 1, Answer: no answers"));
    let unanswered = question("1", "1/1_2.txt").replace("\"Answer\":1,", "");
    let error = fails(&unanswered);
    assert!(error.message.contains("`Answer` is missing") && error.help.contains("--split dev"), "{error:?}");
    assert!(of_domain("books").unwrap_err().help.contains("verified-web"));
}

#[test]
fn the_first_line_counts() {
    let e = &sample().unwrap()[0];
    for (response, text) in [
        ("\n\nFram\nPassage: more", "Fram"),
        ("Fram \u{2028} (ship)", "Fram \u{2028} (ship)"),
        (" \nFram", ""),
        ("\n\n", ""),
    ] {
        let got = TriviaQa::default().extract(e, response);
        assert_eq!((got.text.as_str(), got.rule.is_empty()), (text, text.is_empty()), "{response:?}");
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
    assert!(fails(&good.replace("[\"x\"]", "[]")).contains("line 1: field `answers` is empty"));
}
