//! Tokenizers and text that comes token by token.

use crate::support::{never, real_model};
use candle_core::Device;
use e2llm_lm::{DecoderModel, Finish, Generation, Gguf, Precision, Segment, TextStream, Tokenizer};
use proptest::prelude::*;
use std::sync::OnceLock;

const DECODER: &str = "smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf";

/// Byte-level BPE without merges: every byte is a token.
pub(crate) fn byte_tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| {
        let printable = |b: u32| matches!(b, 33..=126 | 161..=172 | 174..=255);
        let mut next = 256;
        let mut vocab = serde_json::Map::new();
        for byte in 0..256u32 {
            let code = if printable(byte) { byte } else { next };
            next += u32::from(code == next);
            vocab.insert(char::from_u32(code).unwrap().to_string(), byte.into());
        }
        vocab.insert("<end>".to_owned(), 256.into());
        let level = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let json = serde_json::json!({
            "version": "1.0", "truncation": {"max_length": 2, "strategy": "LongestFirst", "stride": 0},
            "padding": null, "normalizer": null, "post_processor": null,
            "added_tokens": [{"id": 256, "content": "<end>", "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true}],
            "pre_tokenizer": level, "decoder": level,
            "model": {"type": "BPE", "vocab": vocab, "merges": []},
        });
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
        std::fs::write(folder.path().join("tokenizer_config.json"), r#"{"eos_token": {"content": "<end>"}}"#).unwrap();
        Tokenizer::from_folder(folder.path()).unwrap()
    })
}

/// The text of `ids`, and whether a stop string ended it.
fn stream(ids: &[u32], stops: &[String]) -> (String, bool) {
    let mut stream = TextStream::new(byte_tokenizer(), stops);
    for id in ids {
        if stream.push(*id).unwrap() {
            break;
        }
    }
    stream.finish().unwrap()
}

/// Where the text ends by the definition: before the stop string that is complete first.
fn cut<'a>(text: &'a str, stops: &[String]) -> &'a str {
    let end_of = |s: &String| text.find(s.as_str()).map(|at| (at + s.len(), at));
    let first_end = stops.iter().filter(|s| !s.is_empty()).filter_map(end_of).min();
    match first_end {
        None => text,
        Some((end, _)) => {
            let starts = stops.iter().filter(|s| !s.is_empty()).filter_map(|s| text[..end].find(s.as_str()));
            &text[..starts.min().unwrap_or(end)]
        }
    }
}

proptest! {
    #[test]
    fn streamed_text_is_the_text_cut_before_the_stop(
        text in "[ab€🙂\n ]{0,30}",
        stops in proptest::collection::vec("[ab€🙂\n]{0,4}", 0..3),
    ) {
        let tokenizer = byte_tokenizer();
        let ids = tokenizer.encode(&text, false).unwrap();
        prop_assert_eq!(ids.len(), text.len());
        let (got, stopped) = stream(&ids, &stops);
        prop_assert_eq!(&got, cut(&text, &stops));
        prop_assert_eq!(stopped, got.len() < text.len());
    }

    #[test]
    fn offsets_are_byte_ranges(text in "[a-z€🙂 ]{0,30}") {
        for (id, range) in byte_tokenizer().encode_with_offsets(&text).unwrap() {
            prop_assert!(range.end <= text.len() && id < 256);
        }
    }
}

#[test]
fn characters_that_are_never_completed_are_shown_at_the_end() {
    assert_eq!(stream(&[97, 0xe2, 0x82], &[]).0, "a\u{fffd}");
    assert_eq!(stream(&[97, 256, 98], &[]).0, "ab");
}

#[test]
fn a_folder_gives_ids_and_limits() {
    let tokenizer = byte_tokenizer();
    assert_eq!(tokenizer.eos_ids(), [256]);
    assert_eq!(tokenizer.encode("abc<end>", true).unwrap(), [97, 98, 99, 256]);
    assert_eq!(tokenizer.encode_at_most("abc", 2).unwrap(), [97, 98]);
    assert_eq!((tokenizer.vocab_size(), tokenizer.token_id("<end>")), (257, Some(256)));
    assert!(tokenizer.chat().is_none());
}

#[test]
fn special_tokens_of_an_encoder_stay_when_text_is_cut() {
    let Some(folder) = real_model("all-minilm-l6-v2") else { return };
    let tokenizer = Tokenizer::from_folder(&folder).unwrap();
    assert_eq!(tokenizer.affixes(), ([101].as_slice(), [102].as_slice()));
    let ids = tokenizer.encode_at_most(&"budget ".repeat(400), 256).unwrap();
    assert_eq!((ids.len(), ids[0], ids[255]), (256, 101, 102));
    assert_eq!(
        tokenizer.encode("budget", true).unwrap(),
        tokenizer.wrap(&tokenizer.encode("budget", false).unwrap())
    );
}

#[test]
fn an_answer_ends_before_a_stop_string_that_spans_tokens() {
    let Some(path) = real_model(DECODER) else { return };
    let model = DecoderModel::load(&path, &Device::Cpu, Precision::Quantised).unwrap();
    let prompt = [Segment::Ids(model.tokenizer.encode("def fibonacci(n):\n    ", true).unwrap())];
    let answer = |stop: &[&str]| {
        let stop = stop.iter().map(|s| (*s).to_owned()).collect();
        let settings = Generation { max_new_tokens: 16, stop, ..Generation::default() };
        model.generate(&prompt, &settings, &never).unwrap()
    };
    let whole = answer(&[]);
    // A stop string from the middle of one token to the middle of another.
    let at = whole.text.char_indices().nth(whole.text.chars().count() / 2).unwrap().0;
    let stop: String = whole.text[at..].chars().take(7).collect();
    let first = whole.text.find(&stop).unwrap();
    let cut = answer(&[&stop]);
    assert_eq!((cut.text.as_str(), cut.finish), (&whole.text[..first], Finish::Stop));
    assert!(cut.ids.len() < whole.ids.len() && whole.ids.starts_with(&cut.ids));
}

#[test]
fn a_gguf_without_a_known_splitting_rule_is_refused() {
    let Some(path) = real_model(DECODER) else { return };
    let mut bytes = std::fs::read(path).unwrap();
    let key = b"tokenizer.ggml.pre";
    let at = bytes.windows(key.len()).position(|w| w == key).unwrap() + key.len() + 4 + 8;
    bytes[at..at + 6].copy_from_slice(b"smolxx");
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy.gguf");
    std::fs::write(&copy, bytes).unwrap();
    let error = Tokenizer::from_gguf(&Gguf::open(&copy).unwrap()).unwrap_err().to_string();
    assert!(error.contains("smolxx") && error.contains("copy.gguf"), "{error}");
}
