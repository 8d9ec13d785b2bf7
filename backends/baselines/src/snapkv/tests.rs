//! `snapkv` against full attention.

use super::cache::{Keeping, SnapKvCache};
use super::select::Pooling;
use super::spec;
use crate::full;
use crate::tests::{answer, assert_same, build, decoder, difference, folder, noise, prompt, request, scores};
use e2llm_backend::ErrorKind;
use e2llm_lm::{Memory, Segment, prefill};

const SMALL: [(&str, &str); 3] = [("budget", "40"), ("observe", "8"), ("kernel", "3")];

#[test]
fn a_budget_beyond_the_prompt_is_full_attention() {
    let folder = folder(256);
    let request = request(prompt(&noise(200), true));
    let mut full = build(full::spec(), folder.path(), &[]).unwrap();
    let mut snapkv = build(spec(), folder.path(), &[]).unwrap();
    assert_same(&mut *full, &mut *snapkv, &request);
    let usage = answer(&mut *snapkv, &request).unwrap().usage;
    assert_eq!((usage.context_seen, usage.context_evicted, usage.truncation), (200, 0, None));
}

#[test]
fn the_prompt_is_read_whole_and_then_thinned() {
    let folder = folder(256);
    let request = request(prompt(&noise(200), true));
    let mut full = build(full::spec(), folder.path(), &[]).unwrap();
    let mut snapkv = build(spec(), folder.path(), &SMALL).unwrap();
    let (all, thinned) = (scores(&mut *full, &request), scores(&mut *snapkv, &request));
    // The first token follows from the whole prompt: truncation would not find it.
    assert!((all.log_likelihoods[0] - thinned.log_likelihoods[0]).abs() < 1e-5);
    // Those after it see what was kept.
    assert!(difference(&all, &thinned) > 1e-4);
    let usage = answer(&mut *snapkv, &request).unwrap().usage;
    assert_eq!((usage.context_tokens, usage.context_seen), (200, 200));
    assert_eq!(usage.context_evicted, usage.prompt_tokens - 40);
    assert_eq!(usage.truncation.as_deref(), Some("snapkv"));
    let long = crate::tests::request(prompt(&noise(300), true));
    assert_eq!(answer(&mut *snapkv, &long).unwrap_err().kind, ErrorKind::ContextTooLong);
}

#[test]
fn the_memory_is_the_budget_and_positions_go_on() {
    let folder = folder(2000);
    let decoder = decoder(folder.path(), 2000);
    let llama = &decoder.model.llama;
    let ids: Vec<u32> = (0..1100u32).map(|i| 3 + (i * i * 7 + i * 13) % 256).collect();
    let keeping = Keeping { budget: 50, observe: 16, kernel: 5, pooling: Pooling::Average };
    let mut memory = SnapKvCache::new(keeping, ids.len(), ids.len() + 2);
    prefill(llama, &[Segment::Ids(ids.clone())], &mut memory, &|| false).unwrap();
    assert_eq!((memory.held(), memory.offset()), (50, 1100));
    let mut branch = memory.fork().unwrap();
    for memory in [&mut *branch, &mut memory] {
        llama.forward_hidden(&llama.embed(&[5]).unwrap(), None, Some(memory)).unwrap();
        assert_eq!(memory.offset(), 1101);
    }
    assert_eq!(memory.held(), 51);
}

#[test]
fn bad_options_are_refused() {
    let folder = folder(64);
    for (option, value) in
        [("budget", "32"), ("observe", "0"), ("kernel", "4"), ("pooling", "median"), ("budget", "x")]
    {
        let error = build(spec(), folder.path(), &[(option, value)]).err().unwrap();
        assert!(error.message.contains(option) && error.message.contains(value), "{error}");
    }
}
