//! `data fetch` and `data verify` against a server on this machine.

use crate::invoke::{Ended, arg, command, finish};
use std::io::{Read, Write};
use std::path::Path;
use tempfile::tempdir;

const BODY: &[u8] = b"{\"id\":\"1\",\"context\":\"An old pond.\",\"prompt\":\"What is old?\",\"answers\":[\"pond\"],\"meta\":{}}\n";

/// A server that has one file; gives its address.
fn server() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let (mut request, mut byte) = (Vec::new(), [0]);
            while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
                request.push(byte[0]);
            }
            let found = request.starts_with(b"GET /test.jsonl ");
            let (status, body) = if found { ("200 OK", BODY) } else { ("404 Not Found", &b""[..]) };
            let head =
                format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        }
    });
    address
}

/// Runs the program with a cache of its own.
#[track_caller]
fn with_cache(dir: &Path, args: &[&str]) -> Ended {
    let mut run = command(args);
    run.env("E2LLM_CACHE", dir.join("cache")).stdin(std::process::Stdio::null());
    finish(run)
}

#[test]
fn data_is_fetched_after_its_licence_and_verified() {
    let dir = tempdir().unwrap();
    let (catalogue, data) = (dir.path().join("data.toml"), dir.path().join("data"));
    let text = format!(
        "[triviaqa]\ndescription = \"ponds\"\nlicence = \"CC BY 9.9\"\nlicence_url = \"there\"\ncitation = \"Basho\"\n\
         [[triviaqa.downloads]]\nname = \"test.jsonl\"\nurl = \"{}/test.jsonl\"\n",
        server()
    );
    std::fs::write(&catalogue, &text).unwrap();
    let common = ["triviaqa", "--data", arg(&data), "--data-catalogue", arg(&catalogue)];
    let fetch = |more: &[&str]| with_cache(dir.path(), &[&["data", "fetch"][..], &common, more].concat());
    let verify = || with_cache(dir.path(), &[&["data", "verify"][..], &common].concat());
    verify().code(2).says(&["no data of task `triviaqa`"]);
    fetch(&[]).code(2).says(&["licence: CC BY 9.9", "cite: Basho", "run again with --accept-licence"]);
    fetch(&["--offline", "--accept-licence"])
        .code(1)
        .says(&["is not in the cache, and offline nothing is fetched"]);
    let fetched = fetch(&["--accept-licence"]).code(0).prints(&["test.jsonl unchanged, no checksum known"]);
    fetched.says(&["no checksum of test.jsonl is known: it came with sha256", "data.lock.toml"]);
    verify().code(0).prints(&["test.jsonl unchanged"]);
    with_cache(dir.path(), &["data", "info", "triviaqa", "--data", arg(&data)])
        .code(0)
        .prints(&["samples 1"]);
    let file = data.join("triviaqa/test.jsonl");
    std::fs::write(&file, "edited").unwrap();
    verify()
        .code(1)
        .prints(&["test.jsonl CHANGED", "has sha256"])
        .says(&["1 of 1 files are not as they should be"]);
    std::fs::remove_file(&file).unwrap();
    verify().code(1).prints(&["test.jsonl MISSING"]);
    let rows = fetch(&["--offline", "-q", "--json"]).code(0).json_lines();
    assert_eq!((&rows[0]["file"], &rows[0]["state"]), (&"test.jsonl".into(), &"unchanged".into()));
    assert_eq!(std::fs::read(&file).unwrap(), BODY);

    std::fs::remove_dir_all(&data).unwrap();
    std::fs::write(&catalogue, text.replace("/test.jsonl\"", "/gone.jsonl\"")).unwrap();
    fetch(&["--accept-licence"]).code(1).says(&["the server answers 404", "get the file by hand"]);
    let unknown = ["data", "fetch", "trivia", "--data", arg(&data)];
    with_cache(dir.path(), &unknown)
        .code(2)
        .says(&["no source of data for task `trivia`", "did you mean `triviaqa`?"]);
}
