use super::*;
use crate::subtasks::{SUBTASKS, What};
use e2llm_plugin::haystack::Measure;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn options(pairs: &[(&str, Value)]) -> TaskOptions {
    TaskOptions(pairs.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect())
}

fn task(pairs: &[(&str, Value)]) -> Ruler {
    let mut task = Ruler::default();
    task.configure(&options(pairs), Host::default()).unwrap();
    task
}

/// A tokenizer that marks the beginning of every text and whose pieces do not add up.
fn tokens(text: &str) -> Option<u64> {
    Some(1 + text.len().div_ceil(4) as u64)
}

fn generated(folder: Option<&Path>, seed: u64) -> Source {
    let mut source = Source::sample();
    (source.folder, source.split, source.seed) = (folder.map(Into::into), GENERATED.into(), seed);
    source
}

fn read(task: &Ruler, source: &Source) -> Vec<Example> {
    task.open(source).unwrap().collect::<Result<_>>().unwrap()
}

fn name(e: &Example) -> &str {
    e.meta["task"].as_str().unwrap()
}

/// A folder with small files in the formats of SQuAD and HotpotQA.
fn questions() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let paragraph = |a: usize, p: usize| {
        let text = format!("Article {a}, paragraph {p}. ")
            + &format!("Fact {a}-{p} is told here at some length. ").repeat(9);
        let qa = json!({"question": format!(" What is told in {a}-{p}? "), "answers": [{"text": format!("Fact {a}-{p}")}]});
        let none = json!({"question": "Nothing?", "answers": [], "is_impossible": true});
        json!({"context": text, "qas": [qa, none]})
    };
    let article = |a| json!({"paragraphs": (0..6).map(|p| paragraph(a, p)).collect::<Vec<_>>()});
    let squad = json!({"data": (0..20).map(article).collect::<Vec<_>>()});
    std::fs::write(dir.path().join("squad.json"), squad.to_string()).unwrap();
    let pair = |q: usize, d: usize| {
        json!([format!("Title {q}-{d}"), [format!("It is {q}{d}."), " And more of it. "]])
    };
    let item = |q: usize| json!({"question": format!("Which {q}?"), "answer": format!("{q}0"), "context": [pair(q, 0), pair(q, 1)]});
    let hotpot: Vec<_> = (0..200).map(item).collect();
    std::fs::write(dir.path().join("hotpotqa.json"), json!(hotpot).to_string()).unwrap();
    dir
}

/// Everything that must hold of a sample of `length`; `slack` is what one more piece of hay may be long.
fn check(task: &Ruler, e: &Example, measure: &Measure, length: u64, reserve: u64, slack: u64) {
    let prompt = task.prompt(e).unwrap();
    let id = &e.id;
    let text = prompt.render() + &prompt.answer_prefix;
    let size = measure.whole(&text).unwrap() + prompt.max_new_tokens as u64 + reserve;
    assert_eq!(e.meta["prompt_length"], json!(size), "{id}");
    assert!(size <= length, "{id}: {size}");
    assert!(size + slack > length, "{id}: only {size}");
    assert_eq!(prompt.answer_prefix, e.meta["answer_prefix"].as_str().unwrap());
    assert!(!prompt.answer_prefix.is_empty() && !e.references.is_empty());
    let distinct: BTreeSet<_> = e.references.iter().collect();
    assert_eq!(distinct.len(), e.references.len(), "{id}");
    for answer in &e.references {
        assert!(e.context.contains(answer.as_str()), "{id}: {answer}");
        assert!(
            !e.instruction.contains(answer.as_str()) && !prompt.answer_prefix.contains(answer.as_str()),
            "{id}"
        );
    }
    match name(e) {
        n if n.starts_with("niah") => needles(e),
        "vt" => {
            // following the chain from its number gives the answer
            let value = e
                .instruction
                .split_whitespace()
                .find(|w| w.trim_end_matches(',').len() == 5 && w.starts_with(|c: char| c.is_ascii_digit()));
            let value = value.unwrap().trim_end_matches(',');
            let mut known = vec![value.to_owned()];
            for line in e.context.lines().filter(|l| l.starts_with("VAR")) {
                let words: Vec<_> = line.split_whitespace().collect();
                let from = if words[3] == "VAR" { words[4] } else { words[3] };
                assert_eq!(from, known.last().unwrap(), "{id}: {line}");
                known.push(words[1].to_owned());
            }
            assert_eq!(known[1..], e.references);
        }
        "cwe" => assert_eq!(most(e, 10, |w| !w.ends_with('.')), distinct, "{id}"),
        "fwe" => assert_eq!(most(e, 3, |w| w != "..."), distinct, "{id}"),
        _ => assert_eq!(e.meta["ruler_match"], "part"),
    }
}

/// Needles stand in the text as sentences of their own; what is asked is answered by them alone.
fn needles(e: &Example) {
    let sentences = |key: &str| e.context.matches(&format!(" for {key} is: ")).count();
    let counts = match name(e) {
        "niah_multivalue" => (1, 4),
        "niah_multiquery" => (4, 4),
        _ => (1, 1),
    };
    let asked = e.instruction.split_once("give for ").unwrap().1.split_once('?').unwrap().0;
    let keys: Vec<_> = asked.replace(", and ", ", ").split(", ").map(str::to_owned).collect();
    assert_eq!((keys.len(), e.references.len()), counts, "{}", e.instruction);
    for key in &keys {
        assert_eq!(sentences(key), e.references.len() / keys.len(), "{}: {key}", e.id);
    }
    let many = e.references.len() > 1;
    assert_eq!(e.instruction.ends_with("List all of them."), many);
    assert!(e.meta["answer_prefix"].as_str().unwrap().ends_with(if many { " are" } else { " is" }));
}

/// The words that occur most often.
fn most(e: &Example, n: usize, counts: impl Fn(&str) -> bool) -> BTreeSet<&String> {
    let mut found = std::collections::BTreeMap::<&str, usize>::new();
    for word in e.context.split_whitespace().filter(|w| counts(w)) {
        *found.entry(word).or_default() += 1;
    }
    let mut found: Vec<_> = found.into_iter().collect();
    found.sort_by_key(|(_, times)| std::cmp::Reverse(*times));
    assert!(found[n - 1].1 > found[n].1, "{}: no clear order", e.id);
    let top: Vec<_> = found[..n].iter().map(|(w, _)| *w).collect();
    e.references.iter().filter(|r| top.contains(&r.as_str())).collect()
}

/// The greatest piece of hay of a task, in words and in the tokens above.
fn slack(task: &str) -> (u64, u64) {
    match task {
        "qa_1" => (90, 150),
        "cwe" => (10, 40),
        "fwe" => (30, 60),
        _ => (70, 120),
    }
}

#[test]
fn every_sample_fills_its_length() {
    let dir = questions();
    for unit in ["words", "tokens"] {
        let mut task = task(&[("lengths", json!("2k,4k,8k")), ("samples", json!(2)), ("unit", unit.into())]);
        task.counter = Counter::new(tokens);
        let measure = Measure::new(task.settings.unit, task.counter.clone()).unwrap();
        let all = read(&task, &generated(Some(dir.path()), 3));
        assert_eq!(all.len(), 13 * 3 * 2);
        assert_eq!(all.iter().map(|e| &e.id).collect::<BTreeSet<_>>().len(), all.len());
        assert_eq!(all.iter().map(name).collect::<BTreeSet<_>>().len(), 13);
        for e in &all {
            let length = e.meta["length"].as_u64().unwrap();
            let (words, tokens) = slack(name(e));
            // the small files above end before the greater lengths
            let short_file = name(e).starts_with("qa") && length > 2048;
            let slack = if short_file {
                length
            } else if unit == "words" {
                words
            } else {
                tokens
            };
            check(&task, e, &measure, length, 64, slack);
        }
    }
}

#[test]
fn samples_depend_on_nothing_but_themselves() {
    let grid = task(&[("lengths", json!([1500, 3000])), ("samples", json!(3)), ("unit", "words".into())]);
    let all = read(&grid, &generated(None, 4));
    assert_eq!(all, read(&grid, &generated(None, 4)));
    assert_eq!(all.len(), 11 * 2 * 3, "the tasks of documents need files");
    let alone = task(&[
        ("lengths", json!([3000])),
        ("samples", json!(2)),
        ("unit", "words".into()),
        ("tasks", json!("vt,niah_multikey_3,cwe,fwe")),
    ]);
    for e in read(&alone, &generated(None, 4)) {
        assert!(all.contains(&e), "{}", e.id);
    }
    for (a, b) in all.iter().zip(&read(&grid, &generated(None, 5))) {
        assert_eq!(a.id, b.id);
        assert_ne!(a.references, b.references);
    }
}

#[test]
fn the_sample_is_short_and_the_same_for_every_tokenizer() {
    let all = read(&task(&[]), &Source::sample());
    assert_eq!(all.iter().map(name).collect::<Vec<_>>(), subtasks::SAMPLE);
    let measure = Measure::new(Some(e2llm_plugin::haystack::Unit::Words), Counter::default()).unwrap();
    for e in &all {
        check(&task(&[]), e, &measure, 1500, 0, slack(name(e)).0);
    }
    let mut other = task(&[]);
    other.counter = Counter::new(tokens);
    assert_eq!(read(&other, &Source::sample()), all);
}

#[test]
fn answers_have_rulers_lengths() {
    let tokens: Vec<_> = SUBTASKS.iter().map(|s| (s.name, s.answer_tokens)).collect();
    for (name, n) in tokens {
        let expected = match name {
            "vt" => 30,
            "cwe" => 120,
            "fwe" => 50,
            "qa_1" | "qa_2" => 32,
            _ => 128,
        };
        assert_eq!(n, expected, "{name}");
    }
    assert_eq!(SUBTASKS.iter().filter(|s| matches!(s.what, What::Needles { .. })).count(), 8);
    assert_eq!(Ruler::default().extract(&Example::default(), " \u{1}7\tor 8\u{0}\n").text, "7\nor 8");
}

#[test]
fn questions_come_with_their_documents_and_a_missing_file_is_named() {
    let dir = questions();
    let task = task(&[
        ("tasks", json!("qa_1,qa_2")),
        ("lengths", json!([900])),
        ("samples", json!(3)),
        ("unit", "words".into()),
    ]);
    let source = generated(Some(dir.path()), 0);
    let all = read(&task, &source);
    assert_eq!(source.opened_files().len(), 2);
    assert_eq!(all[1].references, ["Fact 0-1"]);
    assert!(
        all[1].context.contains("Article 0, paragraph 1.") && all[1].context.starts_with("Document 1:\n")
    );
    assert!(all[1].instruction.ends_with("Question: What is told in 0-1?"));
    assert!(
        all[3].context.contains("Title 0-0\nIt is 00. And more of it. ")
            && all[3].context.contains("Title 0-1\n")
    );
    std::fs::remove_file(dir.path().join("hotpotqa.json")).unwrap();
    let error = task.open(&source).err().unwrap();
    assert!(
        error.message.starts_with("qa_2 needs hotpotqa.json") && error.help.contains("--data ruler="),
        "{error:?}"
    );
    assert!(task.open(&generated(None, 0)).err().unwrap().message.contains("qa_1 needs squad.json"));
    for (text, what) in [
        ("{}", "field `data` is missing"),
        (
            r#"{"data":[{"paragraphs":[{"context":"c","qas":[{"question":"q"}]}]}]}"#,
            "paragraphs[0], qas[0]: field `answers`",
        ),
        (r#"{"data":[]}"#, "no question with an answer"),
        ("{\"data\":", "not JSON"),
    ] {
        std::fs::write(dir.path().join("squad.json"), text).unwrap();
        let error = task.open(&source).err().unwrap();
        assert!(error.message.contains(what), "{error}");
    }
}

#[test]
fn what_cannot_be_made_is_an_error() {
    let first = task(&[("lengths", json!([100])), ("tasks", "vt".into())])
        .open(&generated(None, 0))
        .unwrap()
        .next()
        .unwrap();
    assert!(first.unwrap_err().message.contains("vt: a length of 100 words is too short"));
    let missing = task(&[("haystack", "/nowhere/at/all".into())]).open(&generated(None, 0)).err().unwrap();
    assert!(missing.message.starts_with("no haystack folder"), "{missing}");
    let split = Ruler::default().open(&Source::folder("x", "test")).err().unwrap();
    assert!(split.help.contains("`niah` reads rows"), "{split:?}");
    assert!(Ruler::default().prompt(&Example::default()).is_err());
}

#[test]
fn essays_are_read_from_a_folder() {
    let folder =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/niah/raw/PaulGrahamEssays");
    if !folder.is_dir() {
        eprintln!("SKIPPED: {} not found", folder.display());
        return;
    }
    let mut task = task(&[
        ("tasks", json!("niah_single_3,niah_multiquery")),
        ("lengths", json!("4k,128k")),
        ("samples", json!(1)),
        ("haystack", folder.to_str().unwrap().into()),
    ]);
    task.counter = Counter::new(tokens);
    let measure = Measure::new(None, task.counter.clone()).unwrap();
    let source = generated(None, 1);
    for e in read(&task, &source) {
        check(&task, &e, &measure, e.meta["length"].as_u64().unwrap(), 64, 400);
    }
    assert!(source.opened_files().len() > 10);
}

#[test]
fn conforms() {
    e2llm_plugin::testing::assert_conforms(e2llm_plugin_entry);
}
