//! `longllmlingua` with a decoder of a few thousand parameters, whose tokens are bytes.

use super::*;
use crate::full;
use crate::tests::{
    answer, assert_queue_is_each_alone, assert_same, build, decoder, folder, noise, prompt, request,
};
use e2llm_backend::Options;
use e2llm_lm::token_log_probs;

fn method(options: &[(&str, &str)]) -> LongLlmLingua {
    let given = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let options = Options::checked(spec().options, &given).unwrap();
    LongLlmLingua::new(&BuildContext { options, ..BuildContext::default() }).unwrap()
}

/// What the decoder reads of the context, and the usage.
fn read(decoder: &Decoder, options: &[(&str, &str)], prompt: &Prompt) -> (String, Usage) {
    let prepared = method(options).prepare(decoder, prompt, 8).unwrap();
    let [Segment::Ids(ids)] = prepared.segments.as_slice() else { panic!("one segment of ids") };
    assert!(ids.len() + 8 <= decoder.window);
    let text = decoder.tokenizer.decode(ids, true).unwrap();
    let text = text.strip_prefix("user:Read: ").unwrap();
    let (context, _) = text.split_once(&format!("\nQ: {}", prompt.instruction)).unwrap();
    (context.to_owned(), prepared.usage)
}

#[test]
fn a_ratio_of_one_is_the_whole_prompt() {
    let folder = folder(512);
    let request = request(prompt(&noise(300), true));
    let mut full = build(full::spec(), folder.path(), &[]).unwrap();
    let mut compressed = build(spec(), folder.path(), &[("ratio", "1")]).unwrap();
    assert_same(&mut *full, &mut *compressed, &request);
    let usage = answer(&mut *compressed, &request).unwrap().usage;
    assert_eq!((usage.context_seen, usage.context_dropped, usage.truncation), (300, 0, None));
}

#[test]
fn the_ratio_is_reached() {
    let folder = folder(2048);
    let decoder = decoder(folder.path(), 2048);
    let prompt = prompt(&noise(1500), true);
    for (ratio, coarse) in [("0.5", "2"), ("0.25", "2"), ("0.1", "3"), ("0.3", "1"), ("0.9", "1.1")] {
        let options = [("ratio", ratio), ("coarse", coarse), ("chunk_chars", "200"), ("segment", "50")];
        let (_, usage) = read(&decoder, &options, &prompt);
        let reached = usage.context_seen as f64 / usage.context_tokens as f64;
        let wanted: f64 = ratio.parse().unwrap();
        assert!((reached / wanted - 1.0).abs() < 0.05, "{reached}, wanted {wanted}");
        assert_eq!(usage.context_seen + usage.context_dropped, 1500);
        assert_eq!(usage.truncation.as_deref(), Some(NAME));
        assert_eq!(usage.chunks, 8);
    }
    let (_, usage) = read(&decoder, &[("target", "123"), ("chunk_chars", "200")], &prompt);
    assert_eq!(usage.context_seen, 123);
}

#[test]
fn tokens_go_within_chunks_and_by_the_question() {
    let folder = folder(2048);
    let decoder = decoder(folder.path(), 2048);
    let mut prompt = prompt(&noise(600), true);
    let options = [
        ("ratio", "0.5"),
        ("chunk_chars", "600"),
        ("segment", "100"),
        ("order", "document"),
        ("dynamic", "0"),
    ];
    let (text, usage) = read(&decoder, &options, &prompt);
    assert_eq!((text.len(), usage.chunks_retrieved), (300, 1));
    // A subsequence of the one chunk, with parts from everywhere: no truncation keeps that.
    let mut left = prompt.context.chars();
    assert!(text.chars().all(|c| left.any(|d| d == c)), "{text}");
    assert!(!prompt.context.contains(&text[..60]) && !prompt.context.contains(&text[240..]));
    // Half of each segment stays.
    let mut at = 0;
    for segment in prompt.context.as_bytes().chunks(100) {
        let part = &text.as_bytes()[at..at + 50];
        let mut left = segment.iter();
        assert!(part.iter().all(|c| left.any(|d| d == c)));
        at += 50;
    }
    prompt.instruction = "Who was it then, and why?".into();
    assert_ne!(read(&decoder, &options, &prompt).0, text);
}

#[test]
fn scores_are_differences_of_log_likelihoods() {
    let folder = folder(1024);
    let decoder = decoder(folder.path(), 1024);
    let llama = &decoder.model.llama;
    let context = noise(120);
    let chunk = Chunk::new(&decoder, &context, 0..120).unwrap();
    let question = decoder.tokenizer.encode("Why?\n\n", false).unwrap();
    let method = method(&[("segment", "60")]);
    let thinned = method.thinned(&decoder, &[(&chunk, 70)], "Why?").unwrap().remove(0);
    assert_eq!(thinned.keep.iter().filter(|k| **k).count(), 70);
    let scored = |before: &[u32], ids: &[u32]| {
        let all = token_log_probs(llama, &[&[1][..], before, ids].concat(), &|| false).unwrap();
        all[before.len()..].to_vec()
    };
    let (first, second) = chunk.ids.split_at(60);
    let kept: Vec<u32> = first.iter().zip(&thinned.keep).filter(|(_, k)| **k).map(|(id, _)| *id).collect();
    assert_eq!(kept.len(), 35);
    // The second segment is judged behind what is left of the first.
    let expected = [
        score::contrastive(&scored(&[], first), &scored(&question, first)),
        score::contrastive(&scored(&kept, second), &scored(&[question, kept.clone()].concat(), second)),
    ]
    .concat();
    for (got, want) in thinned.scores.iter().zip(&expected) {
        assert!((got - want).abs() < 1e-4, "{got} {want}");
    }
}

#[test]
fn chunks_are_ranked_by_the_question_behind_them() {
    let folder = folder(1024);
    let decoder = decoder(folder.path(), 1024);
    let context = noise(300);
    let chunks: Vec<Chunk> =
        (0..3).map(|i| Chunk::new(&decoder, &context, 100 * i..100 * i + 100).unwrap()).collect();
    let ranking = method(&[]).ranked(&decoder, &chunks, "Why?").unwrap();
    let question = decoder.tokenizer.encode(&format!("\n\nWhy?{RESTRICTION}"), false).unwrap();
    let worth = |chunk: &Chunk| {
        let ids = [&[1][..], chunk.ids.as_slice(), &question].concat();
        let all = token_log_probs(&decoder.model.llama, &ids, &|| false).unwrap();
        score::importance(&all[chunk.ids.len()..])
    };
    assert!(ranking.windows(2).all(|w| worth(&chunks[w[0]]) > worth(&chunks[w[1]])), "{ranking:?}");
    // The best comes first in the prompt.
    let prompt = prompt(&context, true);
    let options = [("ratio", "0.9"), ("chunk_chars", "100"), ("coarse", "2"), ("dynamic", "0")];
    let (by_relevance, _) = read(&decoder, &options, &prompt);
    let (by_document, _) = read(&decoder, &[&options[..], &[("order", "document")]].concat(), &prompt);
    assert_eq!(by_document.replace('\n', "").len(), by_relevance.replace('\n', "").len());
}

#[test]
fn a_target_beyond_the_window_is_lowered_to_it() {
    let folder = folder(200);
    let decoder = decoder(folder.path(), 200);
    let context = format!("{}{}", noise(500), "é日🙂".repeat(30));
    let (_, usage) = read(&decoder, &[("ratio", "1"), ("chunk_chars", "100")], &prompt(&context, true));
    assert!(usage.context_dropped > 0 && usage.prompt_tokens <= 192, "{usage:?}");
    let mut small = prompt(&context, true);
    small.instruction = "y".repeat(300);
    let error = method(&[]).prepare(&decoder, &small, 8).err().unwrap();
    assert_eq!(error.kind, ErrorKind::ContextTooLong);
}

#[test]
fn answers_get_back_what_was_left_out() {
    let folder = folder(2048);
    let decoder = decoder(folder.path(), 2048);
    let prompt = prompt(&noise(400), true);
    let prepared = method(&[("ratio", "0.8"), ("chunk_chars", "400")]).prepare(&decoder, &prompt, 8).unwrap();
    let [Segment::Ids(ids)] = prepared.segments.as_slice() else { panic!("one segment of ids") };
    let text = decoder.tokenizer.decode(ids, true).unwrap();
    let quoted = &text["user:Read: ".len() + 20..][..100];
    assert!(!prompt.context.contains(quoted));
    let recovered = prepared.finish.unwrap()(quoted).unwrap();
    assert!(recovered.len() > 100 && prompt.context.contains(&recovered), "{recovered}");
    let off = method(&[("ratio", "0.5"), ("recover", "false")]).prepare(&decoder, &prompt, 8).unwrap();
    assert!(off.finish.is_none());
}

#[test]
fn bad_options_are_refused() {
    let folder = folder(64);
    for (option, value) in [
        ("ratio", "1.5"),
        ("ratio", "0"),
        ("target", "0"),
        ("coarse", "0.5"),
        ("dynamic", "2"),
        ("segment", "0"),
        ("order", "random"),
        ("recover", "maybe"),
    ] {
        let error = build(spec(), folder.path(), &[(option, value)]).err().unwrap();
        assert!(error.message.contains(option) && error.message.contains(value), "{error}");
    }
}

#[test]
fn a_queue_is_each_of_its_questions_alone() {
    let folder = folder(400);
    let options = [("ratio", "0.5"), ("chunk_chars", "60")];
    assert_queue_is_each_alone(|| build(spec(), folder.path(), &options).unwrap(), &noise(240));
}
