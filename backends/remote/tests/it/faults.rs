//! A server that fails: what is tried again, what is not, and what is said.

use crate::stub::{Act, Stub, chat, request};
use e2llm_backend::{Backend, BackendError, CancelFlag, ErrorKind, Response};

fn ask(stub: &Stub, options: &[(&str, &str)]) -> Result<Response, BackendError> {
    stub.backend(options).generate(&[request("a", true)]).remove(0)
}

#[test]
fn passing_faults_are_tried_again_until_there_is_an_answer() {
    for fault in [
        Act::error(429, "retry-after: 0\r\n", "slow down"),
        Act::error(429, "retry-after: Wed, 21 Oct 2015 07:28:00 GMT\r\n", "slow down"),
        Act::error(500, "", "oops"),
        Act::error(503, "", "loading"),
        Act::Reset,
        Act::Torn("{\"choices\":[{\"mess".into()),
        Act::Answer(200, "", "{\"choices\":[{\"message\"".into()),
        Act::Answer(200, "", "<html>a proxy</html>".into()),
        Act::Answer(200, "", "{\"choices\":[]}".into()),
    ] {
        let stub = Stub::new([fault]);
        assert_eq!(ask(&stub, &[]).unwrap().text, "ok");
        assert_eq!(stub.asked().len(), 2);
    }
}

#[test]
fn a_slow_body_is_given_up_after_the_timeout() {
    let stub = Stub::new([Act::Silence]);
    assert_eq!(ask(&stub, &[("timeout_s", "0.3")]).unwrap().text, "ok");
    assert_eq!(stub.asked().len(), 2);
    let stub = Stub::new([Act::Silence, Act::Silence]);
    let error = ask(&stub, &[("timeout_s", "0.3"), ("retries", "1")]).unwrap_err();
    assert!(error.message.contains("given up after 2 attempts"), "{error}");
    assert!(error.message.to_lowercase().contains("timeout"), "{error}");
}

#[test]
fn after_the_last_attempt_the_last_fault_is_told() {
    let stub = Stub::new((0..3).map(|_| Act::error(500, "retry-after: 0\r\n", "the model fell over")));
    let error = ask(&stub, &[("retries", "2")]).unwrap_err();
    assert_eq!((error.kind, stub.asked().len()), (ErrorKind::Failed, 3));
    for part in ["/v1/chat/completions", "500", "the model fell over", "given up after 3 attempts"] {
        assert!(error.message.contains(part), "{error}");
    }
}

#[test]
fn a_longer_wait_than_allowed_is_an_error_at_once() {
    let stub = Stub::new([Act::error(429, "retry-after: 3600\r\n", "quota of the hour")]);
    let error = ask(&stub, &[("max_wait_s", "5")]).unwrap_err();
    assert!(error.message.contains("asks to wait 3600 s, more than the 5 s"), "{error}");
    assert_eq!(stub.asked().len(), 1);
    let far = Act::error(503, "retry-after: Fri, 31 Dec 9999 23:59:59 GMT\r\n", "maintenance");
    assert!(ask(&Stub::new([far]), &[]).unwrap_err().message.contains("asks to wait"));
}

#[test]
fn what_will_not_change_is_not_asked_again() {
    for (status, message, kind, says) in [
        (401, "no key", ErrorKind::Failed, "put it into $OPENAI_API_KEY"),
        (404, "no such model", ErrorKind::Failed, "check base_url"),
        (400, "unknown field", ErrorKind::BadRequest, "unknown field"),
        (400, "This model's maximum context length is 512 tokens", ErrorKind::ContextTooLong, "too long"),
        (307, "moved", ErrorKind::Failed, "change base_url"),
    ] {
        let stub = Stub::new([Act::error(status, "location: http://127.0.0.1:1/\r\n", message)]);
        let error = ask(&stub, &[]).unwrap_err();
        assert_eq!((error.kind, stub.asked().len()), (kind, 1), "{error}");
        assert!(error.message.contains(says) && error.message.contains(message), "{error}");
    }
}

#[test]
fn a_failing_request_fails_alone() {
    let stub = Stub::new([Act::ok(chat("one")), Act::error(400, "", "bad"), Act::ok(chat("three"))]);
    let batch: Vec<_> = ["1", "2", "3"].map(|id| request(id, true)).to_vec();
    let answers = stub.backend(&[("concurrency", "1")]).generate(&batch);
    let texts: Vec<_> = answers.iter().map(|a| a.as_ref().map(|a| a.text.as_str()).ok()).collect();
    assert_eq!(texts, [Some("one"), None, Some("three")]);
}

#[test]
fn cancelling_ends_a_wait_and_a_request_under_way() {
    for act in [Act::error(503, "retry-after: 100\r\n", "wait"), Act::Silence] {
        let stub = Stub::new([act]);
        let cancel = CancelFlag::default();
        let mut backend = stub.try_backend(&[], &cancel, &[]).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while stub.asked().is_empty() {
                    std::thread::yield_now();
                }
                cancel.cancel();
            });
            let error = backend.generate(&[request("a", true)]).remove(0).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Cancelled);
        });
    }
}

#[test]
fn a_server_that_is_not_there_is_told_when_the_backend_is_built() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}/v1");
    let stub = Stub::new([]);
    let options = [("base_url", url.as_str()), ("retries", "0")];
    let error = stub.try_backend(&options, &CancelFlag::default(), &[]).unwrap_err();
    assert!(error.message.contains(&url) && error.message.contains("did not answer"), "{error}");
}
