//! Log-likelihoods.

use crate::stub::{Act, Stub, request};
use e2llm_backend::{Backend, ErrorKind};
use serde_json::json;

const PROMPT: usize = "A long text about dogs.\n\nWho barks?".len();

fn echoed(choice: f64) -> Act {
    Act::ok(json!({
        "choices": [{"text": "...", "logprobs": {
            "text_offset": [0, 7, PROMPT, PROMPT + 2, PROMPT + 3],
            "token_logprobs": [null, -3.0, choice, -0.5, -9.0],
        }}],
        "usage": {"prompt_tokens": 4, "completion_tokens": 1},
    }))
}

#[test]
fn each_choice_is_scored_by_an_echo() {
    let stub = Stub::new([echoed(-2.0), echoed(-1.0)]);
    let mut backend = stub.backend(&[("concurrency", "1")]);
    let choices = ["cat".to_owned(), "dog".to_owned()];
    let choice = backend.choose(&request("a", false), &choices).unwrap();
    assert_eq!((choice.log_likelihoods.as_slice(), choice.best()), (&[-2.5, -1.5][..], Some(1)));
    assert_eq!((choice.tokens.as_slice(), choice.usage.prompt_tokens), (&[2, 2][..], 2));
    let body = &stub.asked()[1].body;
    assert_eq!(body["prompt"], "A long text about dogs.\n\nWho barks?dog");
    assert_eq!((&body["echo"], &body["logprobs"]), (&json!(true), &json!(1)));
}

#[test]
fn where_there_are_none_the_error_says_why() {
    let choices = ["cat".to_owned()];
    let stub = Stub::new([
        Act::ok(json!({"choices": [{"text": "x", "logprobs": null}]})),
        Act::error(400, "", "`logprobs` is not supported"),
    ]);
    let mut backend = stub.backend(&[("retries", "0")]);
    for why in ["without log-probabilities", "`logprobs` is not supported"] {
        let error = backend.choose(&request("a", false), &choices).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unsupported, "{error}");
        assert!(error.message.contains(why), "{error}");
    }
    let error = backend.choose(&request("a", true), &choices).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert!(error.message.contains("endpoint=completions"), "{error}");
    assert_eq!(stub.asked().len(), 2);
}
