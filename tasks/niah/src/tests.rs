use super::*;
use e2llm_plugin::haystack::{Measure, Unit, sentence_ends};
use serde_json::{Value, json};
use std::path::PathBuf;

fn options(pairs: &[(&str, Value)]) -> TaskOptions {
    TaskOptions(pairs.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect())
}

fn task(pairs: &[(&str, Value)]) -> Niah {
    let mut task = Niah::default();
    task.configure(&options(pairs), Host::default()).unwrap();
    task
}

/// A tokenizer that marks the beginning of every text and whose pieces do not add up.
fn tokens(text: &str) -> Option<u64> {
    Some(1 + text.len().div_ceil(4) as u64)
}

fn generated(folder: Option<PathBuf>, seed: u64) -> Source {
    let mut source = Source::sample();
    (source.folder, source.split, source.seed) = (folder, GENERATED.into(), seed);
    source
}

fn read(task: &Niah, source: &Source) -> Vec<Example> {
    task.open(source).unwrap().collect::<Result<_>>().unwrap()
}

fn refused(pairs: &[(&str, Value)]) -> Error {
    Niah::default().configure(&options(pairs), Host::default()).unwrap_err()
}

/// Everything that must hold of a generated sample; `needles` in the order of the references.
fn check(e: &Example, measure: &Measure, buffer: u64, sentence_at_most: u64) {
    let number = |key: &str| e.meta[key].as_f64().unwrap();
    let (length, depth) = (e.meta["length"].as_u64().unwrap(), number("depth"));
    let (context, id) = (e.context.as_str(), e.id.as_str());
    let size = measure.whole(context).unwrap();
    assert_eq!(e.meta["context_length"], json!(size));
    assert_eq!(e.meta["length_unit"], json!(measure.unit().name()));
    assert!(size <= length - buffer, "{id}: {size}");
    assert!(size + 2 * sentence_at_most >= length - buffer, "{id}: only {size}");
    let mut hay = context.to_owned();
    for value in &e.references {
        assert_eq!(context.matches(value.as_str()).count(), 1, "{id}: {value}");
        assert!(!e.instruction.contains(value.as_str()));
        let at = context.find(value.as_str()).unwrap();
        // our needles are one sentence of known beginning
        let begins = ["The catalogue number", "Whoever has a free day"];
        let start = begins.iter().filter_map(|b| context[..at].rfind(b)).max().unwrap();
        let end = at + value.len() + 1;
        let needle = &context[start..end];
        assert!(e.meta["needle"].as_str().unwrap().contains(needle), "{id}: {needle}");
        assert_eq!(context.matches(needle).count(), 1, "{id}");
        let before = context[..start].trim_end();
        assert!(
            before.is_empty() || sentence_ends(before).last() == Some(&before.len()),
            "{id}: ...{before}"
        );
        hay = hay.replacen(needle, "", 1);
    }
    for key in e.meta["key"].as_str().unwrap().split(", ") {
        assert!(!hay.to_lowercase().contains(&key.to_lowercase()), "{id}: {key}");
    }
    let first = number("position") * size as f64;
    let target = depth / 100.0 * size as f64;
    assert!(first <= target + 2.0, "{id}: {first} of {target}");
    assert!(first + sentence_at_most as f64 + 2.0 >= target, "{id}: {first} of {target}");
}

#[test]
fn every_cell_keeps_its_length_and_depth() {
    for unit in ["words", "tokens"] {
        for (kind, needles) in [("number", 1), ("number", 4), ("city", 1), ("city", 3)] {
            let mut task = task(&[
                ("lengths", json!([600, 1500, 5000])),
                ("depths", json!("0,7,33.3,50,90,100")),
                ("unit", unit.into()),
                ("kind", kind.into()),
                ("needles", json!(needles)),
                ("repeats", json!(2)),
            ]);
            task.counter = Counter::new(tokens);
            let wanted = if unit == "words" { Unit::Words } else { Unit::Tokens };
            let measure = Measure::new(Some(wanted), task.counter.clone()).unwrap();
            let all = read(&task, &generated(None, 11));
            assert_eq!(all.len(), 36);
            for e in &all {
                assert_eq!(e.references.len(), needles);
                check(e, &measure, 200, if unit == "words" { 60 } else { 90 });
            }
        }
    }
}

#[test]
fn depth_zero_begins_and_depth_hundred_ends_with_the_needle() {
    let all = read(&task(&[]), &Source::sample());
    assert_eq!(all.len(), 6);
    for e in &all {
        let needle = e.meta["needle"].as_str().unwrap();
        let words = e.context.split_whitespace().count();
        assert!((1200..3000).contains(&words), "{words}");
        match e.meta["depth"].as_u64().unwrap() {
            0 => assert!(e.context.starts_with(&format!("{needle} ")) && e.meta["position"] == 0.0),
            100 => assert!(e.context.ends_with(&format!(" {needle}")) && e.meta["position"] == 1.0),
            _ => assert!(e.context.contains(&format!(" {needle}"))),
        }
    }
    // the sample is the same text whatever tokenizer the backend has
    let mut other = task(&[]);
    other.counter = Counter::new(tokens);
    assert_eq!(read(&other, &Source::sample()), all);
}

#[test]
fn cells_depend_on_nothing_but_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let text: String =
        (0..4000).map(|i| format!("Line {i} of a dull report says nothing at all.\n")).collect();
    std::fs::write(dir.path().join("a.txt"), text).unwrap();
    for folder in [None, Some(dir.path().to_owned())] {
        let grid = task(&[
            ("lengths", json!([800, 1600, 6400])),
            ("depths", json!([0, 50, 75])),
            ("repeats", json!(3)),
        ]);
        let all = read(&grid, &generated(folder.clone(), 4));
        assert_eq!(all, read(&grid, &generated(folder.clone(), 4)));
        let alone = task(&[("lengths", json!([1600])), ("depths", json!([75])), ("repeats", json!(2))]);
        for e in read(&alone, &generated(folder.clone(), 4)) {
            assert!(all.contains(&e), "{}", e.id);
        }
        let other = read(&grid, &generated(folder.clone(), 5));
        for (a, b) in all.iter().zip(&other) {
            assert_eq!(a.id, b.id);
            assert_ne!(a.references, b.references);
        }
        let values: std::collections::BTreeSet<_> = all.iter().map(|e| &e.references[0]).collect();
        assert_eq!(values.len(), all.len());
    }
}

#[test]
fn units_are_never_mixed() {
    let mut counted = task(&[("lengths", json!([1000]))]);
    counted.counter = Counter::new(tokens);
    assert_eq!(read(&counted, &generated(None, 0))[0].meta["length_unit"], "tokens");
    let uncounted = task(&[("lengths", json!([1000]))]);
    assert_eq!(read(&uncounted, &generated(None, 0))[0].meta["length_unit"], "words");
    let strict = task(&[("unit", "tokens".into())]);
    assert!(strict.open(&generated(None, 0)).err().unwrap().message.contains("no tokenizer"));
    // a tokenizer that fails later is an error, not another unit
    counted.counter = Counter::new(|text: &str| text.is_empty().then_some(0));
    let first = counted.open(&generated(None, 0)).unwrap().next().unwrap();
    assert!(first.unwrap_err().message.contains("tokenizer failed"));
}

#[test]
fn haystack_files_are_read_in_order_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir(at("raw")).unwrap();
    let body =
        |word: &str| format!("{word} says the first line.\r\n\r\n").repeat(60) + "and an end without a stop";
    std::fs::write(at("raw/b.txt"), body("Beta")).unwrap();
    std::fs::write(at("raw/a.txt"), "\u{feff}".to_owned() + &body("Alpha")).unwrap();
    std::fs::write(at("raw/LICENSE.txt"), "Licence terms are here. ".repeat(500)).unwrap();
    std::fs::write(at("raw/notes.md"), "Notes are here. ".repeat(500)).unwrap();
    let task = task(&[("lengths", json!([700])), ("depths", json!([100]))]);
    let source = generated(Some(dir.path().to_owned()), 0);
    let e = read(&task, &source).remove(0);
    assert!(e.context.starts_with("Alpha says the first line.\n\nAlpha"));
    assert!(e.context.contains("Alpha says the first line.\n\nBeta"));
    assert!(!e.context.contains("stop") && !e.context.contains("Licence") && !e.context.contains('\r'));
    assert_eq!(e.meta["haystack"], "files");
    let names: Vec<_> = source.opened_files().iter().map(|p| p.file_name().unwrap().to_owned()).collect();
    assert_eq!(names, ["a.txt", "b.txt"]);
}

#[test]
fn a_haystack_that_is_missing_or_useless_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let open = |haystack: &std::path::Path| {
        let task = task(&[("haystack", haystack.to_str().unwrap().into())]);
        task.open(&generated(None, 0)).err().unwrap().message
    };
    assert!(open(&dir.path().join("nowhere")).starts_with("no haystack folder"));
    assert!(open(dir.path()).ends_with("has no .txt file"));
    std::fs::write(dir.path().join("x.txt"), "no sentence ends here").unwrap();
    assert!(open(dir.path()).ends_with("hold no sentence"));
    std::fs::write(dir.path().join("x.txt"), b"\xff\xfe").unwrap();
    assert!(open(dir.path()).contains("not UTF-8 at byte 0"));
    let missing = task(&[]).open(&generated(Some(dir.path().join("nowhere")), 0)).err().unwrap();
    assert!(missing.message.starts_with("no data folder"));
    // a data folder without texts is fine: the story is built in
    std::fs::remove_file(dir.path().join("x.txt")).unwrap();
    let first = task(&[]).open(&generated(Some(dir.path().to_owned()), 0)).unwrap().next().unwrap().unwrap();
    assert_eq!(first.meta["haystack"], "prose");
    // one endless sentence leaves no room
    std::fs::write(dir.path().join("x.txt"), "word ".repeat(3000) + "end. One more.").unwrap();
    let first = task(&[]).open(&generated(Some(dir.path().to_owned()), 0)).unwrap().next().unwrap();
    assert!(first.unwrap_err().message.contains("no room for the needle"));
}

#[test]
fn options_are_checked() {
    for (pairs, message) in [
        (vec![("lenghts", json!("1000"))], "unknown task option `lenghts`"),
        (vec![("lengths", json!("1000,x"))], "`x` is no whole number from 0 up"),
        (vec![("lengths", json!("150"))], "150 leaves nothing after the buffer of 200"),
        (vec![("lengths", json!("1000,1000"))], "1000 is there twice"),
        (vec![("lengths", json!("1000,99999999999999"))], "99999999999999 is more than 100000000"),
        (vec![("depths", json!("0,101"))], "101 is not between 0 and 100"),
        (vec![("depths", json!("NaN"))], "NaN is not between 0 and 100"),
        (vec![("depths", json!([]))], "the list is empty"),
        (vec![("needles", json!(0))], "0 is not between 1 and 64"),
        (vec![("unit", json!("letters"))], "`letters` is none of"),
        (vec![("kind", json!("colour"))], "`colour` is none of"),
        (vec![("needle", json!("The code is 4."))], "needs a `question`"),
        (vec![("needle", json!("The code is 4.")), ("question", json!("Which?"))], "needs an `answer`"),
        (
            vec![("needle", json!("It is 4.")), ("question", json!("?")), ("answer", json!("5"))],
            "`5` is not in",
        ),
        (vec![("answer", json!("5"))], "belongs to a needle of your own"),
    ] {
        let error = refused(&pairs);
        assert!(error.message.contains(message), "{pairs:?}: {error}");
    }
    assert!(refused(&[("lenghts", json!(1))]).help.contains("lengths, depths"));
    let wide = task(&[("buffer", json!(1600))]).open(&generated(None, 0)).err().unwrap();
    assert!(wide.message.contains("leaves nothing of a length of 1500"), "{wide}");
}

#[test]
fn needles_of_the_user() {
    let fixed = task(&[
        ("needle", json!("The password of the lighthouse is swordfish.")),
        ("question", json!("What is the password of the lighthouse?")),
        ("answer", json!("swordfish")),
    ]);
    for e in read(&fixed, &Source::sample()) {
        assert_eq!(e.references, ["swordfish"]);
        assert_eq!(e.context.matches("The password of the lighthouse is swordfish.").count(), 1);
    }
    let drawn = task(&[
        ("needle", json!("Room {value} belongs to the {key}.")),
        ("question", json!("Which room belongs to the {key}?")),
        ("needles", json!(2)),
    ]);
    let e = read(&drawn, &Source::sample()).remove(1);
    assert_eq!(e.references.len(), 2);
    assert!(
        e.instruction.contains(&e.meta["key"].as_str().unwrap().replace(", ", " and ")),
        "{}",
        e.instruction
    );
    // an answer that the haystack gives away
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("x.txt"), "Everyone knew the swordfish. ".repeat(900)).unwrap();
    let first = fixed.open(&generated(Some(dir.path().to_owned()), 0)).unwrap().next().unwrap();
    assert!(first.unwrap_err().message.contains("already contains"));
}

#[test]
fn prompts_begin_the_answer_where_the_record_does() {
    let dir = tempfile::tempdir().unwrap();
    let row =
        json!({"index": 0, "input": "Hay.\nX is: 7.\nWhat is X? The X is", "outputs": ["7"], "length": 9});
    std::fs::write(dir.path().join("test.jsonl"), row.to_string()).unwrap();
    let task = task(&[]);
    let e = read(&task, &Source::folder(dir.path(), "test")).remove(0);
    let p = task.prompt(&e).unwrap();
    assert_eq!(
        (p.instruction.as_str(), p.answer_prefix.as_str(), p.max_new_tokens),
        ("What is X?", "The X is", 128)
    );
    assert_eq!(task.extract(&e, " \u{1}7\tor 8\u{0}\n").text, "7\nor 8");
    let mut missing = Source::sample();
    missing.split = "test".into();
    assert!(task.open(&missing).err().unwrap().message.contains("none is given"));
    let sample = read(&task, &Source::sample()).remove(0);
    let p = task.prompt(&sample).unwrap();
    assert_eq!((p.max_new_tokens, p.answer_prefix.as_str(), p.style.as_str()), (64, "", "e2llm"));
}

/// The folder of real records beside the checkout, if it is there.
fn shared() -> Option<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/niah");
    if !folder.is_dir() {
        eprintln!("SKIPPED: {} not found", folder.display());
        return None;
    }
    Some(folder)
}

#[test]
fn real_records_are_read() {
    let Some(folder) = shared() else { return };
    let task = task(&[]);
    let all = read(&task, &Source::folder(&folder, "test"));
    assert_eq!(all.len(), 100);
    for e in &all {
        let p = task.prompt(e).unwrap();
        assert!(p.instruction.ends_with("mentioned in the provided text?"), "{}", p.instruction);
        assert!(
            p.answer_prefix.starts_with("The special magic uuid for") && p.answer_prefix.ends_with(" is")
        );
        let needle = e.meta["needle"].as_str().unwrap();
        assert!(
            needle.starts_with("One of the special magic uuids for") && needle.contains(&e.references[0])
        );
        assert!(e.context.contains(needle) && !e.meta.contains_key("input"));
    }
    // the same rows as RULER writes them
    let raw = std::fs::read_to_string(folder.join("raw/ruler_4096_niah_multikey_3.head3.jsonl")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("test.jsonl"), raw).unwrap();
    for (ours, plain) in read(&task, &Source::folder(dir.path(), "test")).iter().zip(&all) {
        assert_eq!((&ours.context, &ours.instruction), (&plain.context, &plain.instruction));
        assert_eq!(
            (&ours.references, &ours.meta["answer_prefix"]),
            (&plain.references, &plain.meta["answer_prefix"])
        );
    }
}

#[test]
fn real_essays_make_a_haystack_of_128k() {
    let Some(folder) = shared() else { return };
    let mut task = task(&[
        ("lengths", json!([4000, 131_072])),
        ("depths", json!([0, 40, 100])),
        ("kind", "city".into()),
    ]);
    task.counter = Counter::new(tokens);
    let measure = Measure::new(None, task.counter.clone()).unwrap();
    let source = generated(Some(folder), 1);
    let all = read(&task, &source);
    assert!(source.opened_files().iter().all(|f| f.to_string_lossy().contains("PaulGrahamEssays")));
    assert!(source.opened_files().len() > 10);
    for e in &all {
        check(e, &measure, 200, 400);
    }
}

#[test]
fn built_in_prose_fills_128k() {
    let mut task = task(&[("lengths", json!([131_072])), ("depths", json!([50])), ("needles", json!(8))]);
    task.counter = Counter::new(tokens);
    let measure = Measure::new(None, task.counter.clone()).unwrap();
    check(&read(&task, &generated(None, 1))[0], &measure, 200, 90);
}

#[test]
fn conforms() {
    e2llm_plugin::testing::assert_conforms(e2llm_plugin_entry);
}
