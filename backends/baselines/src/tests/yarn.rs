//! `yarn`.

use super::{answer, assert_same, build, difference, folder, noise, prompt, request, scores};
use crate::{full, yarn};
use e2llm_backend::ErrorKind;

const SCALINGS: [&str; 4] = ["yarn", "linear", "dynamic", "llama3"];

#[test]
fn a_stretch_of_one_is_the_whole_prompt() {
    let folder = folder(96);
    let request = request(prompt(&noise(50), true));
    let mut full = build(full::spec(), folder.path(), &[]).unwrap();
    for scaling in SCALINGS {
        let mut yarn = build(yarn::spec(), folder.path(), &[("scaling", scaling), ("factor", "1")]).unwrap();
        assert_eq!(yarn.info().window, Some(96));
        assert_same(&mut *full, &mut *yarn, &request);
    }
}

#[test]
fn every_token_beyond_the_trained_window_is_read() {
    let folder = folder(96);
    let context = noise(250);
    let mut other = context.clone();
    other.replace_range(120..123, "XYZ");
    let (long, changed) = (request(prompt(&context, true)), request(prompt(&other, true)));
    let mut full = build(full::spec(), folder.path(), &[]).unwrap();
    assert_eq!(answer(&mut *full, &long).unwrap_err().kind, ErrorKind::ContextTooLong);
    for scaling in SCALINGS {
        let mut yarn = build(yarn::spec(), folder.path(), &[("scaling", scaling)]).unwrap();
        assert_eq!(yarn.info().window, Some(4 * 96));
        let response = answer(&mut *yarn, &long).unwrap();
        assert_eq!((response.usage.context_seen, response.usage.context_dropped), (250, 0));
        let change = difference(&scores(&mut *yarn, &long), &scores(&mut *yarn, &changed));
        assert!(change > 1e-6, "{scaling} does not see the middle of the context");
        let too_long = request(prompt(&noise(400), true));
        assert_eq!(answer(&mut *yarn, &too_long).unwrap_err().kind, ErrorKind::ContextTooLong);
    }
}

#[test]
fn scalings_differ_and_dynamic_leaves_short_prompts_alone() {
    let folder = folder(96);
    let short = request(prompt(&noise(40), true));
    let mut full = build(full::spec(), folder.path(), &[]).unwrap();
    let plain = scores(&mut *full, &short);
    let mut all = Vec::new();
    for scaling in SCALINGS {
        let mut yarn = build(yarn::spec(), folder.path(), &[("scaling", scaling)]).unwrap();
        let found = scores(&mut *yarn, &short);
        assert_eq!(difference(&plain, &found) < 1e-9, scaling == "dynamic", "{scaling}");
        assert!(all.iter().all(|other| difference(other, &found) > 1e-6), "{scaling}");
        all.push(found);
    }
}

#[test]
fn bad_options_are_refused() {
    let folder = folder(96);
    for (option, value) in [
        ("scaling", "longrope"),
        ("factor", "0.5"),
        ("factor", "much"),
        ("original_window", "0"),
        ("beta_slow", "64"),
        ("attention_factor", "-1"),
    ] {
        let error = build(yarn::spec(), folder.path(), &[(option, value)]).err().unwrap();
        assert!(error.kind == ErrorKind::BadRequest && error.message.contains(value), "{error}");
    }
    let error = build(yarn::spec(), folder.path(), &[("scaling", "llama3"), ("low_freq_factor", "4")]);
    assert!(error.err().unwrap().message.contains("low_freq_factor"));
}
