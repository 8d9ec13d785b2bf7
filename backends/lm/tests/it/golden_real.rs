//! The two small real models against transformers and sentence-transformers (`golden/real_models`).

use crate::support::{golden_device, never, real_model, shared};
use candle_core::IndexOp;
use e2llm_lm::{
    DecoderModel, EncoderFiles, Finish, Generation, KvCache, Message, Pooling, Precision, Segment,
    SentenceEncoder, SentenceSettings, prefill, token_log_probs,
};
use serde::Deserialize;

const DECODER: &str = "smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf";
const ENCODER: &str = "all-minilm-l6-v2";
const EOS: u32 = 2;

#[derive(Deserialize)]
struct Golden {
    decoder: Vec<DecoderCase>,
    chat: Vec<ChatCase>,
    encoder: Vec<EncoderCase>,
}

#[derive(Deserialize)]
struct DecoderCase {
    text: String,
    ids: Vec<u32>,
    top_ids: Vec<u32>,
    top_logits: Vec<f32>,
    token_nll: Vec<f64>,
    greedy: Vec<u32>,
    greedy_text: String,
}

#[derive(Deserialize)]
struct ChatCase {
    messages: Vec<Message>,
    text: String,
    ids: Vec<u32>,
    greedy: Vec<u32>,
    greedy_text: String,
}

#[derive(Deserialize)]
struct EncoderCase {
    text: String,
    ids: Vec<u32>,
    max_seq_length: usize,
    embedding: Vec<f32>,
}

fn golden() -> Option<Golden> {
    let path = shared("golden/real_models/real.json")?;
    Some(serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap())
}

fn decoder(precision: Precision) -> Option<(DecoderModel, Golden)> {
    let (path, golden) = (real_model(DECODER)?, golden()?);
    Some((DecoderModel::load(&path, &golden_device(), precision).unwrap(), golden))
}

fn nll(model: &DecoderModel, case: &DecoderCase) -> Vec<f64> {
    let scores = token_log_probs(&model.llama, &case.ids, &never).unwrap();
    scores.into_iter().map(|x| -x).collect()
}

/// Greedy ids with the ending token kept, as the golden file has them.
fn greedy(model: &DecoderModel, ids: &[u32]) -> (Vec<u32>, String) {
    let settings = Generation { max_new_tokens: 24, ..Generation::default() };
    let out = model.generate(&[Segment::Ids(ids.to_vec())], &settings, &never).unwrap();
    let mut all = out.ids;
    if out.finish == Finish::Eos {
        all.push(EOS);
    }
    (all, out.text)
}

#[test]
fn golden_decoder_tokens_logits_and_answers() {
    let Some((model, golden)) = decoder(Precision::F32) else { return };
    assert_eq!(model.eos_ids, [EOS]);
    assert_eq!(model.window, 8192);
    for case in &golden.decoder {
        assert_eq!(model.tokenizer.encode(&case.text, true).unwrap(), case.ids, "{}", case.text);
        assert_eq!(model.tokenizer.decode(&case.ids, false).unwrap(), case.text);
        let mut cache = KvCache::new(case.ids.len());
        let last = prefill(&model.llama, &[Segment::Ids(case.ids.clone())], &mut cache, &never).unwrap();
        let logits: Vec<f32> = model.llama.logits(&last).unwrap().i((0, 0)).unwrap().to_vec1().unwrap();
        for (id, want) in case.top_ids.iter().zip(&case.top_logits) {
            let got = logits[*id as usize];
            assert!((got - want).abs() < 1e-3, "logit of {id}: {got}, expected {want} in {}", case.text);
        }
        for (got, want) in nll(&model, case).iter().zip(&case.token_nll) {
            assert!((got - want).abs() < 1e-3, "{got}, expected {want} in {}", case.text);
        }
        let (ids, text) = greedy(&model, &case.ids);
        assert_eq!(ids, case.greedy, "{}", case.text);
        assert_eq!(text, case.greedy_text.replace("<|im_end|>", ""));
    }
}

#[test]
fn golden_chat_template_and_answers() {
    let Some((model, golden)) = decoder(Precision::F32) else { return };
    let template = model.tokenizer.chat().unwrap();
    assert_eq!(template.hash().len(), 64);
    for case in &golden.chat {
        assert_eq!(template.render(&case.messages, true).unwrap(), case.text);
        assert_eq!(model.tokenizer.encode(&case.text, false).unwrap(), case.ids);
        let (ids, text) = greedy(&model, &case.ids);
        assert_eq!(ids, case.greedy);
        assert_eq!(text, case.greedy_text.replace("<|im_end|>", ""));
    }
}

#[test]
fn golden_quantised_decoder_is_near() {
    let Some((model, golden)) = decoder(Precision::Quantised) else { return };
    let (mut ours, mut theirs, mut n) = (0.0, 0.0, 0);
    for case in &golden.decoder {
        ours += nll(&model, case).iter().sum::<f64>();
        theirs += case.token_nll.iter().sum::<f64>();
        n += case.token_nll.len();
    }
    let (ours, theirs) = (ours / n as f64, theirs / n as f64);
    eprintln!("mean NLL quantised {ours:.4}, float32 {theirs:.4}");
    assert!((ours - theirs).abs() < 0.05, "mean NLL {ours}, expected {theirs}");
}

#[test]
fn golden_encoder_embeddings() {
    let (Some(path), Some(golden)) = (real_model(ENCODER), golden()) else { return };
    let files = EncoderFiles::open(&path).unwrap();
    let encoder = files.load(&golden_device(), Precision::F32).unwrap();
    let tokenizer = files.tokenizer.unwrap();
    let ids: Vec<_> = golden
        .encoder
        .iter()
        .map(|case| {
            let ids = tokenizer.encode_at_most(&case.text, case.max_seq_length).unwrap();
            assert_eq!(ids, case.ids, "{}", case.text);
            ids
        })
        .collect();
    let batch: Vec<Vec<f32>> = encoder.embed(&ids).unwrap().to_vec2().unwrap();
    for (i, case) in golden.encoder.iter().enumerate() {
        let alone: Vec<Vec<f32>> = encoder.embed(&ids[i..=i]).unwrap().to_vec2().unwrap();
        for got in [&batch[i], &alone[0]] {
            let worst = got.iter().zip(&case.embedding).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-4, "{worst} in {}", case.text);
        }
    }
}

#[test]
fn golden_sentence_encoder_embeddings_and_nearness() {
    let (Some(path), Some(golden)) = (real_model(ENCODER), golden()) else { return };
    // sentence-transformers' own limit, which the fetched folder does not name.
    let settings = SentenceSettings {
        max_tokens: Some(golden.encoder[0].max_seq_length),
        ..SentenceSettings::of(&path).unwrap()
    };
    assert_eq!(settings.pooling, Pooling::Mean);
    let files = EncoderFiles::open(&path).unwrap();
    let encoder = SentenceEncoder::load(files, settings, &golden_device(), Precision::F32).unwrap();
    let texts: Vec<&str> = golden.encoder.iter().map(|c| c.text.as_str()).collect();
    let passages = encoder.passages(&texts, 3, &never).unwrap();
    for (case, passage) in golden.encoder.iter().zip(&passages) {
        for got in [passage, &encoder.query(&case.text).unwrap()] {
            let worst = got.iter().zip(&case.embedding).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-4, "{worst} in {}", case.text);
        }
    }
    let query = encoder.query("Where does the kitten rest?").unwrap();
    let near = |p: &Vec<f32>| p.iter().zip(&query).map(|(a, b)| a * b).sum::<f32>();
    assert!(passages[1..].iter().all(|p| near(p) < near(&passages[0])), "the cat is nearest");
}
