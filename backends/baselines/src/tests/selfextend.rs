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

#[test]
fn choices_are_scored_side_by_side_where_their_first_position_becomes_far() {
    let folder = folder(128);
    let request = request(prompt(&noise(60), true));
    let decoder = super::decoder(folder.path(), 128);
    let n = decoder.wrap(&request.prompt.render(), &request.prompt).unwrap().len();
    // The prompt is near itself altogether, and so is the first token behind it or none.
    for near in [n, n + 1] {
        let near = near.to_string();
        let mut extended = build(selfextend::spec(), folder.path(), &[("neighbours", &near)]).unwrap();
        let choices = [" no!", " yes.", " no!!"].map(str::to_owned);
        let together = extended.choose(&request, &choices).unwrap().log_likelihoods;
        for (choice, score) in choices.iter().zip(together) {
            let alone = extended.choose(&request, std::slice::from_ref(choice)).unwrap().log_likelihoods[0];
            assert!((score - alone).abs() < 1e-6, "{near} {choice}: {score} {alone}");
        }
    }
}
