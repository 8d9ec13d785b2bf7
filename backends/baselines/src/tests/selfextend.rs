//! `selfextend`.

use super::{answer, assert_same, build, difference, folder, noise, prompt, request, scores};
use crate::{full, selfextend};
use e2llm_backend::ErrorKind;

#[test]
fn groups_of_one_and_near_prompts_are_full_attention() {
    let folder = folder(128);
    let request = request(prompt(&noise(80), true));
    let mut full = build(full::spec(), folder.path(), &[]).unwrap();
    for options in [[("group", "1"), ("neighbours", "16")], [("group", "4"), ("neighbours", "127")]] {
        let mut extended = build(selfextend::spec(), folder.path(), &options).unwrap();
        assert_same(&mut *full, &mut *extended, &request);
    }
    let mut grouped =
        build(selfextend::spec(), folder.path(), &[("group", "4"), ("neighbours", "16")]).unwrap();
    assert!(difference(&scores(&mut *full, &request), &scores(&mut *grouped, &request)) > 1e-6);
}

#[test]
fn every_token_beyond_the_trained_window_is_read() {
    let folder = folder(96);
    let context = noise(240);
    let mut other = context.clone();
    other.replace_range(120..123, "XYZ");
    let (long, changed) = (request(prompt(&context, true)), request(prompt(&other, true)));
    let options = [("neighbours", "32")];
    let mut extended = build(selfextend::spec(), folder.path(), &options).unwrap();
    assert_eq!(extended.info().window, Some(64 * 4 + 32));
    let usage = answer(&mut *extended, &long).unwrap().usage;
    assert_eq!((usage.context_seen, usage.context_dropped), (240, 0));
    assert!(difference(&scores(&mut *extended, &long), &scores(&mut *extended, &changed)) > 1e-6);
    let too_long = request(prompt(&noise(280), true));
    assert_eq!(answer(&mut *extended, &too_long).unwrap_err().kind, ErrorKind::ContextTooLong);
    let error = build(selfextend::spec(), folder.path(), &[("neighbours", "96")]).err().unwrap();
    assert!(error.message.contains("neighbours"), "{error}");
}
