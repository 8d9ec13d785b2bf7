//! `truncate` and `no-context`.

use super::{build, decoder, folder, prompt, request};
use crate::decoder::{Decoder, Method, Prepared};
use crate::truncate::Truncate;
use crate::{Policy, no_context, truncate};
use e2llm_backend::{BackendError, ErrorKind, Prompt};
use e2llm_lm::Segment;

/// The prompt's text with special tokens, and what became of the context.
fn read(
    policy: Policy,
    margin: usize,
    decoder: &Decoder,
    prompt: &Prompt,
) -> Result<(String, e2llm_backend::Usage), BackendError> {
    let Prepared { segments, usage, .. } = Truncate { policy, margin }.prepare(decoder, prompt, 8)?;
    let [Segment::Ids(ids)] = segments.as_slice() else { panic!("one segment of ids") };
    assert_eq!(ids.len() as u64, usage.prompt_tokens);
    assert_eq!(usage.context_seen + usage.context_dropped, usage.context_tokens);
    assert!(ids.len() + 8 <= decoder.window);
    Ok((decoder.tokenizer.decode(ids, false).unwrap(), usage))
}

#[test]
fn what_fits_is_not_touched() {
    let folder = folder(128);
    let decoder = decoder(folder.path(), 128);
    for policy in Policy::ALL {
        let (text, usage) = read(policy, 16, &decoder, &prompt("a dog", true)).unwrap();
        assert_eq!(text, "<s>user:Read: a dog\nQ: What?</s><s>assistant:");
        assert_eq!((usage.context_tokens, usage.context_dropped, usage.truncation), (5, 0, None));
        let (text, _) = read(policy, 16, &decoder, &prompt("a dog", false)).unwrap();
        assert_eq!(text, "<s>Read: a dog\nQ: What?");
    }
}

#[test]
fn each_policy_keeps_its_part() {
    let folder = folder(96);
    let decoder = decoder(folder.path(), 96);
    let context: String = ('a'..='z').cycle().take(200).collect();
    let long = prompt(&context, true);
    // 96 - 8 answer - 11 margin - 18 template: 59 of the 216 tokens of the rendered prompt, `<s>` being one.
    let whole = format!("Read: {context}\nQ: What?");
    let overhead = decoder.overhead(&long).unwrap();
    assert_eq!((whole.len() + 1, overhead), (216, 18));
    for (policy, expected, dropped) in [
        (Policy::MiddleLongbenchV1, format!("{}{}", &whole[..28], &whole[whole.len() - 29..]), 158),
        (Policy::MiddleLongbenchV2, format!("{}{}", &whole[..28], &whole[whole.len() - 30..]), 157),
        (Policy::Left, whole[whole.len() - 59..].to_owned(), 150),
        (Policy::Right, whole[..58].to_owned(), 148),
        (Policy::ContextTail, format!("Read: {}\nQ: What?", &context[..43]), 157),
    ] {
        let (text, usage) = read(policy, 11, &decoder, &long).unwrap();
        assert_eq!(text, format!("<s>user:{}</s><s>assistant:", expected.trim()), "{policy}");
        assert_eq!(usage.context_dropped, dropped, "{policy}");
        assert_eq!(usage.context_tokens, 200);
        assert_eq!(usage.truncation.as_deref(), Some(policy.name()));
    }
}

#[test]
fn a_cut_inside_a_character_still_fits_the_window() {
    // Each half character decodes to U+FFFD, three bytes: more tokens than were kept.
    let folder = folder(80);
    let decoder = decoder(folder.path(), 80);
    for n in 60..70 {
        let long = prompt(&format!("{}{}", "x".repeat(n), "é日🙂".repeat(40)), true);
        for policy in Policy::ALL {
            let (text, _) = read(policy, 0, &decoder, &long).unwrap();
            let cut_is_clean = policy == Policy::ContextTail;
            assert!(!cut_is_clean || !text.contains('\u{FFFD}'), "{text}");
        }
    }
}

#[test]
fn a_window_too_small_for_the_rest_is_an_error() {
    let folder = folder(64);
    let small = decoder(folder.path(), 24);
    for policy in Policy::ALL {
        let error = read(policy, 16, &small, &prompt("some context", true)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::ContextTooLong, "{policy}");
        assert!(error.message.contains("24"), "{error}");
    }
    let mut long = prompt(&"x".repeat(100), true);
    long.instruction = "y".repeat(100);
    let error = read(Policy::ContextTail, 0, &decoder(folder.path(), 64), &long).unwrap_err();
    assert_eq!(error.kind, ErrorKind::ContextTooLong);
}

#[test]
fn a_context_the_template_does_not_show_is_dropped() {
    let folder = folder(96);
    let decoder = decoder(folder.path(), 96);
    let mut hidden = prompt("unseen", true);
    hidden.template = "{instruction}".into();
    let (_, usage) = read(Policy::MiddleLongbenchV2, 0, &decoder, &hidden).unwrap();
    assert_eq!((usage.context_tokens, usage.context_dropped), (6, 6));
}

#[test]
fn backends_answer_choose_and_count() {
    let folder = folder(96);
    let long = request(prompt(&"long ".repeat(50), true));
    for spec in [truncate::spec(), no_context::spec()] {
        let mut backend = build(spec, folder.path(), &[]).unwrap();
        let response = backend.generate(std::slice::from_ref(&long)).remove(0).unwrap();
        assert!(response.usage.generated_tokens <= 8 && response.usage.context_dropped > 0);
        assert_eq!(response.usage.context_tokens, 250);
        let choices = ["A".to_owned(), " B".to_owned()];
        let choice = backend.choose(&long, &choices).unwrap();
        assert_eq!(choice.tokens, [1, 2]);
        assert!(choice.log_likelihoods.iter().all(|l| l.is_finite() && *l < 0.0));
        assert_eq!(backend.token_counter().unwrap()("dog"), 3);
        let info = backend.info();
        assert_eq!((info.window, info.trained_parameters), (Some(96), 0));
        assert!(info.parameters > 1000 && info.chat_template.is_some());
        assert!(backend.choose(&long, &[String::new()]).is_err());
    }
}

#[test]
fn options_decide_window_and_fingerprint() {
    let folder = folder(96);
    let plain = build(truncate::spec(), folder.path(), &[]).unwrap();
    let other = build(truncate::spec(), folder.path(), &[("window", "48"), ("policy", "left")]).unwrap();
    assert_eq!((other.info().window, other.info().truncation.as_str()), (Some(48), "left"));
    assert_eq!(plain.info().truncation, "middle-longbench-v2");
    assert_ne!(plain.info().fingerprint, other.info().fingerprint);
    let wide = build(truncate::spec(), folder.path(), &[("window", "200")]).unwrap();
    assert!(wide.info().warnings[0].contains("200"));
    for (option, value) in [("policy", "centre"), ("window", "many"), ("margin", "-1")] {
        let error = build(truncate::spec(), folder.path(), &[(option, value)]).err().unwrap();
        assert!(error.message.contains(option) && error.message.contains(value), "{error}");
    }
}
