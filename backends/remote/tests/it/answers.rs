//! What is sent, and what is made of the answer.

use crate::stub::{Act, Stub, chat, request};
use e2llm_backend::{Backend, ErrorKind, FinishReason};
use serde_json::json;

#[test]
fn a_chat_prompt_goes_to_the_chat_and_a_raw_one_to_completions() {
    let plain = json!({"choices": [{"text": " dogs.\nand more", "finish_reason": "length"}], "usage": null});
    let stub = Stub::new([Act::ok(chat("Dogs.")), Act::ok(plain)]);
    let mut backend = stub.backend(&[("concurrency", "1")]);
    let mut raw = request("raw", false);
    raw.prompt.answer_prefix = "\nAnswer:".into();
    raw.prompt.stop = vec!["\n".into()];
    let answers = backend.generate(&[request("chat", true), raw]);
    let asked = stub.asked();

    let first = answers[0].as_ref().unwrap();
    assert!(asked[0].line.starts_with("POST /v1/chat/completions "), "{}", asked[0].line);
    let message = json!([{"role": "user", "content": "A long text about dogs.\n\nWho barks?"}]);
    assert_eq!((&asked[0].body["messages"], &asked[0].body["model"]), (&message, &json!("stub")));
    assert_eq!((first.text.as_str(), first.finish), ("Dogs.", FinishReason::Eos));
    assert_eq!((first.usage.prompt_tokens, first.usage.generated_tokens), (11, 2));
    assert_eq!((first.usage.context_tokens, first.usage.context_seen), (6, 6));
    assert!(first.usage.time_to_first_token > 0.0);

    let second = answers[1].as_ref().unwrap();
    assert!(asked[1].line.starts_with("POST /v1/completions "));
    assert_eq!(asked[1].body["prompt"], "A long text about dogs.\n\nWho barks?\nAnswer:");
    assert_eq!(asked[1].body["stop"], json!(["\n"]));
    assert_eq!((second.text.as_str(), second.finish), (" dogs.", FinishReason::StopString));
    assert_eq!(second.usage.generated_tokens, 4, "estimated, as the server counts nothing");
    assert!(!asked[0].headers.contains_key("authorization"));
}

#[test]
fn the_endpoint_can_be_fixed() {
    let text = json!({"choices": [{"text": "x", "finish_reason": "stop"}]});
    let stub = Stub::new([Act::ok(text), Act::ok(chat("y"))]);
    stub.backend(&[("endpoint", "completions")]).generate(&[request("a", true)]).remove(0).unwrap();
    stub.backend(&[("endpoint", "chat")]).generate(&[request("a", false)]).remove(0).unwrap();
    let lines: Vec<_> = stub.asked().into_iter().map(|a| a.line).collect();
    assert!(lines[0].contains(" /v1/completions ") && lines[1].contains("/chat/"), "{lines:?}");
}

#[test]
fn a_streamed_answer_has_a_first_token() {
    let events = concat!(
        "data: {\"choices\":[{\"delta\":{\"content\":\"Dogs\"}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\" do.\"},\"finish_reason\":\"stop\"}]}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":3}}\n\ndata: [DONE]\n\n",
    );
    let broken = "data: {\"choices\":[{\"delta\":{\"content\":\"Do\"}}]}\n\n";
    let stub = Stub::new([Act::Answer(200, "", broken.into()), Act::Answer(200, "", events.into())]);
    let mut backend = stub.backend(&[("stream", "true")]);
    let answer = backend.generate(&[request("a", true)]).remove(0).unwrap();
    assert_eq!((answer.text.as_str(), answer.usage.generated_tokens), ("Dogs do.", 3));
    assert_eq!(stub.asked().len(), 2, "a stream that broke off is asked for again");
    assert_eq!(stub.asked()[1].body["stream"], true);
}

#[test]
fn requests_of_a_batch_are_under_way_together_but_not_more_than_allowed() {
    let stub = Stub::new((0..12).map(|_| Act::Together(4)));
    let mut backend = stub.backend(&[("concurrency", "4")]);
    assert_eq!(backend.preferred_batch(), Some(16));
    let batch: Vec<_> = (0..12).map(|i| request(&i.to_string(), true)).collect();
    let answers = backend.generate(&batch);
    assert!(answers.iter().all(|a| a.as_ref().is_ok_and(|a| a.text == "together")));
    assert_eq!((stub.most(), stub.asked().len()), (4, 12));
}

#[test]
fn a_policy_cuts_the_prompt_before_it_is_sent() {
    let stub = Stub::new([]);
    let options = [("policy", "context-tail"), ("window", "60"), ("margin", "10"), ("chars_per_token", "2")];
    let mut backend = stub.backend(&options);
    let mut long = request("a", true);
    long.prompt.context = "dog ".repeat(100);
    let answer = backend.generate(&[long.clone()]).remove(0).unwrap();
    // 60 - 16 answer - 10 margin: 34 tokens of two characters
    let sent = stub.asked()[0].body["messages"][0]["content"].as_str().unwrap().to_owned();
    assert!(sent.len() <= 68 && sent.ends_with("\n\nWho barks?"), "{sent}");
    let usage = answer.usage;
    assert_eq!((usage.context_tokens, usage.truncation.as_deref()), (200, Some("context-tail")));
    assert_eq!(usage.context_seen + usage.context_dropped, 200);
    assert_eq!((backend.info().truncation.as_str(), backend.info().window), ("context-tail", Some(60)));
    long.generation.max_new_tokens = 45;
    assert_eq!(backend.generate(&[long]).remove(0).unwrap_err().kind, ErrorKind::ContextTooLong);
}

#[test]
fn the_info_names_model_and_host_and_its_fingerprint_what_decides_an_answer() {
    let stub = Stub::new([]);
    let plain = stub.backend(&[]);
    let info = plain.info().clone();
    assert_eq!((info.name.as_str(), info.model.as_str(), info.window), ("openai", "stub", Some(4096)));
    assert_eq!(info.device, format!("server {}", &stub.url()[7..].trim_end_matches("/v1")));
    let fingerprint = |options: &[(&str, &str)]| stub.backend(options).info().fingerprint.clone();
    assert_eq!(info.fingerprint, fingerprint(&[("concurrency", "2"), ("retries", "1"), ("stream", "true")]));
    for other in
        [("model", "other"), ("endpoint", "chat"), ("policy", "left"), ("extra_body", "{\"top_k\":1}")]
    {
        assert_ne!(info.fingerprint, fingerprint(&[other]), "{other:?}");
    }
    let warnings = stub.backend(&[("model", "other")]).info().warnings.join("; ");
    assert!(
        warnings.contains("does not list a model `other`") && warnings.contains("estimated"),
        "{warnings}"
    );
}
