//! `streaming` against full attention.

use super::{evicted, shared, spec};
use crate::full;
use crate::tests::{
    answer, assert_same, build, decoder, difference, folder, noise, prompt, request, scores, shallow,
};
use candle_core::{DType, Tensor};
use e2llm_backend::ErrorKind;
use e2llm_lm::{Llama, Memory, RollingCache, Segment, prefill, token_log_probs};

fn ids(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| 3 + (i * i * 7 + i * 13) % 256).collect()
}

fn last_of_full(llama: &Llama, ids: &[u32]) -> Tensor {
    let all = llama.forward_hidden(&llama.embed(ids).unwrap(), None, None).unwrap();
    all.narrow(1, ids.len() - 1, 1).unwrap()
}

fn distance(a: &Tensor, b: &Tensor) -> f32 {
    let flat = |t: &Tensor| t.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
    (flat(a) - flat(b)).unwrap().abs().unwrap().max(0).unwrap().to_scalar().unwrap()
}

#[test]
fn what_fits_is_full_attention() {
    let folder = folder(128);
    let mut full = build(full::spec(), folder.path(), &[]).unwrap();
    let mut streaming = build(spec(), folder.path(), &[]).unwrap();
    let request = request(prompt(&noise(80), true));
    assert_same(&mut *full, &mut *streaming, &request);
    let usage = answer(&mut *streaming, &request).unwrap().usage;
    assert_eq!((usage.context_seen, usage.context_evicted, usage.truncation), (80, 0, None));
}

#[test]
fn positions_are_those_in_the_memory() {
    // In one layer what is remembered of a token is the token, so the last position sees what it would see of a text
    // of the sinks and the latest tokens alone.
    let folder = shallow(64);
    let decoder = decoder(folder.path(), 64);
    let llama = &decoder.model.llama;
    let ids = ids(301);
    for (sinks, recent) in [(4, 20), (0, 13), (2, 8)] {
        let mut memory = RollingCache::new(sinks, recent, 0);
        let blocks = prefill(llama, &[Segment::Ids(ids.clone())], &mut memory, &|| false).unwrap();
        let visible = [&ids[..sinks], &ids[ids.len() - recent..]].concat();
        let expected = last_of_full(llama, &visible);
        assert!(distance(&blocks, &expected) < 1e-4, "{sinks} {recent}");
        // One at a time the same, more of them than were expected, and after the blocks too.
        let mut single = RollingCache::new(sinks, recent, 7);
        for (i, id) in ids.iter().enumerate() {
            let hidden =
                llama.forward_hidden(&llama.embed(&[*id]).unwrap(), None, Some(&mut single)).unwrap();
            let start = (i + 1).saturating_sub(recent).max(sinks.min(i + 1));
            let visible = [&ids[..sinks.min(i + 1)], &ids[start..=i]].concat();
            if i % 37 == 0 || i + 1 == ids.len() {
                assert!(distance(&hidden, &last_of_full(llama, &visible)) < 1e-4, "{sinks} {recent} {i}");
            }
        }
        let next = llama.forward_hidden(&llama.embed(&[9]).unwrap(), None, Some(&mut memory)).unwrap();
        let visible = [&ids[..sinks], &ids[ids.len() + 1 - recent..], &[9]].concat();
        assert!(distance(&next, &last_of_full(llama, &visible)) < 1e-4);
    }
}

#[test]
fn memory_does_not_grow() {
    let folder = folder(64);
    let decoder = decoder(folder.path(), 64);
    let bytes_after = |n: usize, expected: usize| {
        let mut memory = RollingCache::new(4, 60, expected);
        prefill(&decoder.model.llama, &[Segment::Ids(ids(n))], &mut memory, &|| false).unwrap();
        assert_eq!(memory.offset(), n);
        memory.bytes()
    };
    let each = 2 * 2 * 2 * 8 * 4; // layers, keys and values, heads, width, bytes
    assert_eq!(bytes_after(10, 12), 12 * each, "what is expected");
    assert_eq!(bytes_after(10, 0), (64 + 30) * each, "half of the recent ones beyond it");
    assert_eq!(bytes_after(300, 300), (64 + 30 + 4) * each, "and copies of the sinks");
    assert_eq!(bytes_after(3000, 3000), bytes_after(300, 300));
}

#[test]
fn everything_is_read_even_what_is_forgotten() {
    let folder = folder(64);
    let mut streaming = build(spec(), folder.path(), &[]).unwrap();
    let context = noise(600);
    let mut other = context.clone();
    // Forgotten by the end, but seen by tokens that are remembered: truncation would not notice.
    other.replace_range(515..518, "XYZ");
    let (long, changed) = (request(prompt(&context, true)), request(prompt(&other, true)));
    let usage = answer(&mut *streaming, &long).unwrap().usage;
    assert_eq!((usage.context_tokens, usage.context_seen, usage.context_dropped), (600, 600, 0));
    // Of `<s>user:Read: ` before the context four tokens are remembered, eight forgotten.
    assert_eq!(usage.prompt_tokens, usage.context_evicted + 8 + 64);
    assert_eq!(usage.truncation.as_deref(), Some("sinks-and-recent"));
    let change = difference(&scores(&mut *streaming, &long), &scores(&mut *streaming, &changed));
    assert!(change > 1e-6, "{change}");
}

#[test]
fn choices_are_scored_side_by_side() {
    let folder = folder(32);
    let decoder = decoder(folder.path(), 32);
    let mut streaming = build(spec(), folder.path(), &[("sinks", "2")]).unwrap();
    let request = request(prompt(&noise(100), true));
    let together = scores(&mut *streaming, &request);
    let alone = streaming.choose(&request, &[" no!".to_owned()]).unwrap();
    assert!((together.log_likelihoods[2] - alone.log_likelihoods[0]).abs() < 1e-6);
    // A window wide enough makes it the sum over the whole text.
    let mut wide = build(spec(), folder.path(), &[("window", "400")]).unwrap();
    let mut ids = decoder.wrap(&request.prompt.render(), &request.prompt).unwrap();
    let n = ids.len();
    ids.extend(decoder.tokenizer.encode(" no!", false).unwrap());
    let all = token_log_probs(&decoder.model.llama, &ids, &|| false).unwrap();
    let sum: f64 = all[n - 1..].iter().sum();
    assert!((scores(&mut *wide, &request).log_likelihoods[2] - sum).abs() < 1e-4);
}

#[test]
fn a_window_of_sinks_alone_is_refused() {
    let folder = folder(32);
    let error = build(spec(), folder.path(), &[("sinks", "32")]).err().unwrap();
    assert!(error.kind == ErrorKind::BadRequest && error.message.contains("32"), "{error}");
    assert_eq!(evicted(10, 4, 8), 4..6);
    assert_eq!(evicted(8, 4, 8), 4..4);
    assert_eq!((shared(&(4..6), &(5..9)), shared(&(0..2), &(4..6))), (1, 0));
}
