//! The key: sent where it should be, shown nowhere.

use crate::stub::{Act, Stub, request};
use e2llm_backend::{Backend, CancelFlag, ErrorKind};

const SECRET: &str = "sk-do-not-show-me";

#[test]
fn the_key_is_sent_and_is_in_no_error_and_no_debug_output() {
    let echoed = format!("Incorrect API key provided: {SECRET}");
    let torn = format!("{{\"oops\": \"{SECRET}\"");
    let stub = Stub::new([
        Act::error(401, "", &echoed),
        Act::error(500, "", &echoed),
        Act::Answer(200, "", torn),
        Act::Answer(502, "", echoed.clone()),
    ]);
    let environment = [("OPENAI_API_KEY", SECRET)];
    let mut backend = stub.try_backend(&[("retries", "0")], &CancelFlag::default(), &environment).unwrap();
    let mut shown = format!("{backend:?} {backend:#?} {:?}", backend.info());
    for _ in 0..4 {
        let error = backend.generate(&[request("a", true)]).remove(0).unwrap_err();
        shown += &format!("{error} {error:?}");
    }
    assert!(!shown.contains(SECRET), "{shown}");
    assert!(shown.contains("[redacted]") && shown.contains("refuses the key in $OPENAI_API_KEY"), "{shown}");
    assert!(stub.asked().iter().all(|a| a.headers["authorization"] == format!("Bearer {SECRET}")));
}

#[test]
fn a_key_among_the_options_is_refused_without_being_repeated() {
    let stub = Stub::new([]);
    let body = format!("{{\"api_key\":\"{SECRET}\"}}");
    let environment = [("MY_KEY", SECRET)];
    let options = [("key_env", "MY_KEY"), ("extra_body", body.as_str())];
    let error = stub.try_backend(&options, &CancelFlag::default(), &environment).unwrap_err();
    assert_eq!(error.kind, ErrorKind::BadRequest);
    assert!(error.message.contains("extra_body") && !error.message.contains(SECRET), "{error}");
    let error = stub.try_backend(&[("key_env", "MY_KEY")], &CancelFlag::default(), &[]).unwrap_err();
    assert!(error.message.contains("`MY_KEY` is not set"), "{error}");
}
