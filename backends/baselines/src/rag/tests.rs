//! `rag`.

use super::*;
use crate::full;
use crate::tests::{answer, assert_queue_is_each_alone, assert_same, build, decoder, prompt, request, tiny};
use e2llm_backend::{ModelFiles, Options};
use e2llm_lm::BertConfig;
use tempfile::TempDir;

#[test]
fn chunks_that_touch_become_one() {
    let chunks = [0..4, 4..8, 6..10, 12..14];
    assert_eq!(covered(&chunks, &[2, 0]), [0..4, 6..10]);
    assert_eq!(covered(&chunks, &[3, 1, 0, 2]), [0..10, 12..14]);
    assert_eq!(joined("abcdefghijklmn", &[0..2, 5..6]), "ab\n\nf");
    assert_eq!(joined("ab", &[]), "");
}

/// A model of both parts in `folder/encoder` and `folder/decoder`.
fn model(window: usize) -> (TempDir, ModelFiles) {
    let folder = tempfile::tempdir().unwrap();
    let (encoder, decoder) = (folder.path().join("encoder"), folder.path().join("decoder"));
    std::fs::create_dir_all(&decoder).unwrap();
    tiny::decoder(&decoder, window);
    let config = serde_json::json!({
        "model_type": "bert", "vocab_size": tiny::VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64,
    });
    tiny::write_json(&encoder, "config.json", &config);
    tiny::weights(&encoder, &BertConfig::from_file(&encoder.join("config.json")).unwrap().tensors());
    tiny::tokenizer(&encoder, true);
    let files = ModelFiles {
        name: "tiny".into(),
        encoder: Some(encoder),
        decoder: Some(decoder),
        ..ModelFiles::default()
    };
    (folder, files)
}

fn context(model: &ModelFiles, options: &[(&str, &str)]) -> BuildContext {
    let given = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let options = Options::checked(spec().options, &given).unwrap();
    BuildContext { model: model.clone(), options, ..BuildContext::default() }
}

/// Sentences of 30 bytes, one of which has the words of the question.
fn sentences() -> String {
    let needle = |i| if i == 7 { "where does the old zebra sleep" } else { "nothing of any value is in her" };
    (0..12).map(|i| format!("{}.", needle(i))).collect()
}

#[test]
fn a_budget_beyond_the_document_is_the_whole_prompt() {
    let (_folder, files) = model(512);
    let request = request(prompt(&sentences(), true));
    let mut full = build(full::spec(), files.decoder.as_ref().unwrap(), &[]).unwrap();
    for retriever in ["dense", "bm25", "hybrid"] {
        let context = context(&files, &[("retriever", retriever), ("chunk_chars", "31")]);
        let mut rag = (spec().build)(&context).unwrap();
        assert_same(&mut *full, &mut *rag, &request);
        let usage = answer(&mut *rag, &request).unwrap().usage;
        assert_eq!((usage.chunks, usage.chunks_retrieved, usage.context_dropped), (12, 12, 0));
    }
}

#[test]
fn what_the_question_names_is_read() {
    let (_folder, files) = model(160);
    let decoder = decoder(files.decoder.as_ref().unwrap(), 160);
    let mut prompt = prompt(&sentences(), true);
    prompt.instruction = "Zebra sleep?".into();
    for (retriever, top_k) in [("bm25", "1"), ("bm25", "3"), ("hybrid", "12"), ("dense", "12")] {
        let options = [("retriever", retriever), ("chunk_chars", "31"), ("top_k", top_k)];
        let rag = Rag::new(&context(&files, &options)).unwrap();
        let Prepared { segments, usage, .. } = rag.prepare(&decoder, &prompt, 8).unwrap();
        let [Segment::Ids(ids)] = segments.as_slice() else { panic!("one segment of ids") };
        let text = decoder.tokenizer.decode(ids, false).unwrap();
        // Seven sentences in, beyond what any truncation to the window keeps.
        assert!(retriever != "bm25" || text.contains("the old zebra sleep."), "{retriever}: {text}");
        assert!(text.contains("Zebra sleep?") && ids.len() + 8 <= 160);
        let taken = usage.chunks_retrieved;
        assert!(taken >= 1 && taken <= top_k.parse().unwrap(), "{taken}");
        assert_eq!((usage.chunks, usage.context_seen), (12, 31 * taken), "{retriever}");
        assert_eq!(usage.context_seen + usage.context_dropped, usage.context_tokens);
        assert_eq!(usage.truncation, Some(format!("retrieval-{retriever}")));
    }
}

#[test]
fn chunks_stand_in_the_order_of_the_document() {
    let (_folder, files) = model(512);
    let decoder = decoder(files.decoder.as_ref().unwrap(), 512);
    let mut prompt = prompt("one fish. two birds. red fish. blue bird fish. ", false);
    (prompt.instruction, prompt.template) = ("blue fish".into(), "{context}|{instruction}".into());
    let options = [("retriever", "bm25"), ("chunk_chars", "12"), ("top_k", "3")];
    let rag = Rag::new(&context(&files, &options)).unwrap();
    let prepared = rag.prepare(&decoder, &prompt, 8).unwrap();
    let [Segment::Ids(ids)] = prepared.segments.as_slice() else { panic!("one segment of ids") };
    let text = decoder.tokenizer.decode(ids, true).unwrap();
    let found: Vec<_> = ["one", "red", "blue"].iter().filter_map(|w| text.find(w)).collect();
    assert!(found.is_sorted() && text.contains(GAP), "{text}");
    assert!(!text.contains("two"), "{text}");
}

#[test]
fn an_encoder_is_needed_where_embeddings_are() {
    let (_folder, files) = model(128);
    let bare = ModelFiles { encoder: None, ..files.clone() };
    let error = (spec().build)(&context(&bare, &[])).err().unwrap();
    assert!(error.message.contains("retriever=bm25"), "{error}");
    assert!((spec().build)(&context(&bare, &[("retriever", "bm25")])).is_ok());
    let folder = files.encoder.as_ref().unwrap().to_str().unwrap();
    let with = (spec().build)(&context(&bare, &[("encoder", folder)])).unwrap();
    let without = (spec().build)(&context(&bare, &[("retriever", "bm25")])).unwrap();
    assert!(with.info().parameters > without.info().parameters);
    assert_ne!(with.info().fingerprint, without.info().fingerprint);
    for (option, value) in [
        ("retriever", "tfidf"),
        ("encoder", "/no/such/folder"),
        ("chunk_chars", "0"),
        ("overlap", "0.7"),
        ("b", "2"),
        ("k1", "-1"),
        ("pooling", "max"),
        ("top_k", "none"),
    ] {
        let error = (spec().build)(&context(&files, &[(option, value)])).err().unwrap();
        assert!(error.message.contains(option) && error.message.contains(value), "{error}");
    }
}

#[test]
fn a_document_is_encoded_once() {
    let (_folder, files) = model(160);
    let decoder = decoder(files.decoder.as_ref().unwrap(), 160);
    let rag = Rag::new(&context(&files, &[("chunk_chars", "31")])).unwrap();
    let first = prompt(&sentences(), true);
    let embeddings = |prompt: &Prompt| {
        assert_eq!(rag.prepare(&decoder, prompt, 8).unwrap().usage.chunks, 12);
        rag.embeddings(&rag.cut(&prompt.context).unwrap(), &decoder).unwrap()
    };
    let made = embeddings(&first);
    assert!(made.len() == 12 && Arc::ptr_eq(&made, &embeddings(&first)), "the index was made anew");
    let other = prompt(&sentences().replace('o', "u"), true);
    assert!(!Arc::ptr_eq(&made, &embeddings(&other)));
}

#[test]
fn a_queue_is_each_of_its_questions_alone() {
    let (_folder, files) = model(160);
    for retriever in ["dense", "bm25", "hybrid"] {
        let options = [("retriever", retriever), ("chunk_chars", "31")];
        assert_queue_is_each_alone(|| (spec().build)(&context(&files, &options)).unwrap(), &sentences());
    }
}
