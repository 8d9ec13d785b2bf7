//! Preparing data.

use crate::support::{prepared, records};
use crate::tiny;
use e2llm_backend::Chunker;
use e2llm_train::Split;
use e2llm_train::data::{Assign, Dataset, Incoming, Record};
use std::collections::BTreeSet;
use std::path::Path;

fn root() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    tiny::encoder(&root.path().join("encoder"), 32);
    tiny::decoder(&root.path().join("decoder"), 400);
    root
}

fn incoming(place: &str, assign: Assign, context: &str, instruction: &str, answer: &str) -> Incoming {
    let record = Record {
        document: None,
        context: context.into(),
        instruction: instruction.into(),
        answer: answer.into(),
    };
    Incoming { place: place.into(), assign, record: Ok(record) }
}

fn text(ids: &[u32]) -> String {
    String::from_utf8(ids.iter().filter(|i| **i > 2).map(|i| byte(*i)).collect()).unwrap()
}

/// The byte behind an id of the test tokenizer, whose ids from 3 on are the bytes in order.
fn byte(id: u32) -> u8 {
    (id - 3) as u8
}

#[test]
fn a_document_is_stored_once_and_comes_back_whole() {
    let root = root();
    let report = prepared(root.path(), records(40), 0.0).unwrap();
    let (t, v) = (&report.manifest.train, &report.manifest.validation);
    assert_eq!((t.documents + v.documents, t.questions + v.questions), (40, 80));
    assert!((2..20).contains(&v.documents), "about a fifth: {}", v.documents);
    let mut names = BTreeSet::new();
    for split in [Split::Train, Split::Validation] {
        let data = Dataset::open(&root.path().join("data"), split).unwrap();
        for q in 0..data.questions() {
            let question = data.question(q);
            let context: Vec<u32> =
                data.chunks(question.document).flat_map(|c| data.decoder_ids(c)).collect();
            let answer = text(&question.answer);
            let context = text(&context);
            assert!(context.contains(&answer) && context.ends_with('.'), "{answer} in {context}");
            let number: usize = question.instruction["Which is number ".len()..][..1].parse().unwrap();
            assert_eq!(context.trim_end_matches('.').split(' ').nth(number).unwrap(), answer);
            assert_eq!(question.instruction_tokens, question.instruction.len(), "one token a byte");
        }
        for chunk in 0..data.info().chunks as usize {
            let (encoder, decoder) = (data.encoder_ids(chunk), data.decoder_ids(chunk));
            assert!(encoder.len() <= 20, "cut to the encoder's window");
            assert_eq!((encoder[0], encoder[encoder.len() - 1]), (1, 2));
            assert_eq!(text(&encoder), text(&decoder));
        }
        for d in 0..data.documents() {
            assert!(names.insert(data.name(d).to_owned()), "a document in both splits");
        }
    }
}

#[test]
fn unusable_records_are_named_and_too_many_are_an_error() {
    let bad = || {
        let broken = Incoming {
            place: "x.jsonl, line 7".into(),
            assign: Assign::BySeed,
            record: Err("not JSON".into()),
        };
        let empty = incoming("x.jsonl, line 8", Assign::BySeed, "Some text.", "What?", " ");
        let mut all = records(10);
        all.extend([broken, empty, incoming("x.jsonl, line 9", Assign::BySeed, "", "What?", "Nothing")]);
        all
    };
    let root = root();
    let report = prepared(root.path(), bad(), 0.2).unwrap();
    assert_eq!(report.manifest.bad_records, 3);
    let named: Vec<_> = report.bad.iter().map(|b| format!("{}: {}", b.place, b.reason)).collect();
    let expected = [
        "x.jsonl, line 7: not JSON",
        "x.jsonl, line 8: the answer is empty",
        "x.jsonl, line 9: the context is empty",
    ];
    assert_eq!(named, expected);
    let error = prepared(root.path(), bad(), 0.2).unwrap_err().to_string();
    assert!(error.contains("not empty"), "{error}");
    std::fs::remove_dir_all(root.path().join("data")).unwrap();
    let error = prepared(root.path(), bad(), 0.1).unwrap_err().to_string();
    assert!(error.contains("3 of 23") && error.contains("line 8"), "{error}");
    assert!(!root.path().join("data/manifest.json").exists(), "unfinished data has no manifest");
    // Nothing of it is in the way of the next one, and nothing that is not of it is touched.
    let notes = root.path().join("data/train/notes.txt");
    std::fs::create_dir_all(notes.parent().unwrap()).unwrap();
    std::fs::write(&notes, "mine").unwrap();
    let error = prepared(root.path(), bad(), 0.2).unwrap_err().to_string();
    assert!(error.contains("notes.txt is there") && notes.exists(), "{error}");
    std::fs::remove_file(&notes).unwrap();
    std::fs::write(root.path().join("data/train/chunks.idx"), "of a process that was killed").unwrap();
    prepared(root.path(), bad(), 0.2).unwrap();
}

#[test]
fn contexts_of_any_length() {
    let root = root();
    let long = "no break here ".repeat(150_000);
    let all = vec![
        incoming("a", Assign::To(Split::Train), "x", "What?", "x"),
        incoming("b", Assign::To(Split::Train), &long, "What?", "no break"),
        incoming("c", Assign::To(Split::Validation), "\u{65e5}\u{672c}", "?", "y"),
    ];
    prepared(root.path(), all, 0.0).unwrap();
    let data = Dataset::open(&root.path().join("data"), Split::Train).unwrap();
    assert_eq!(data.chunks(0).len(), 1);
    let chars: usize = data.chunks(1).map(|c| data.decoder_len(c)).sum();
    assert_eq!(chars, long.len());
    assert!(data.chunks(1).len() >= Chunker::new(24, 0.0).unwrap().chunks(&long).len());
}

#[test]
fn documents_never_cross() {
    let root = root();
    let all = vec![
        incoming("v", Assign::To(Split::Validation), "Shared text.", "What?", "one"),
        incoming("t", Assign::To(Split::Train), "Shared text.", "What?", "two"),
        incoming("u", Assign::To(Split::Train), "Own text.", "What?", "three"),
    ];
    let report = prepared(root.path(), all.clone(), 0.0).unwrap();
    assert_eq!((report.manifest.crossing_records, report.manifest.train.questions), (1, 1));
    std::fs::remove_dir_all(root.path().join("data")).unwrap();
    let turned = all.into_iter().rev().collect();
    let error = prepared(root.path(), turned, 0.0).unwrap_err().to_string();
    assert!(error.contains("v: its document"), "{error}");
}

#[test]
fn damaged_data_is_a_clear_error() {
    let root = root();
    prepared(root.path(), records(12), 0.0).unwrap();
    let data = root.path().join("data");
    let open =
        |data: &Path| Dataset::open(data, Split::Train).err().map(|e| e.to_string()).unwrap_or_default();
    assert_eq!(open(&data), "");
    for name in
        ["encoder.ids", "chunks.idx", "documents.idx", "questions.idx", "questions.txt", "documents.txt"]
    {
        let path = data.join("train").join(name);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(open(&data).contains("prepare the data again"), "{name}: {}", open(&data));
        std::fs::write(&path, &bytes).unwrap();
    }
    for name in ["chunks.idx", "documents.idx", "questions.idx"] {
        let path = data.join("train").join(name);
        let bytes = std::fs::read(&path).unwrap();
        let mut wrong = bytes.clone();
        wrong[7] = 0xff;
        std::fs::write(&path, wrong).unwrap();
        assert!(!open(&data).is_empty(), "{name}");
        std::fs::write(&path, &bytes).unwrap();
    }
}
