//! The backend `openai`: what it leaves behind, and a real server.

use crate::invoke::{arg, command, finish};
use crate::runs::{results, samples, text};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use tempfile::tempdir;

const SECRET: &str = "sk-not-for-any-eyes-123";

/// A server that refuses every third question, repeating the key it was sent, as some do.
fn server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for (i, stream) in listener.incoming().enumerate() {
            let _ = serve(&stream.unwrap(), i);
        }
    });
    url
}

fn serve(mut stream: &TcpStream, i: usize) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let (mut first, mut length, mut key) = (String::new(), 0, String::new());
    reader.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap_or(0),
            "authorization" => key = value.to_owned(),
            _ => {}
        }
    }
    reader.take(length).read_to_end(&mut Vec::new())?;
    let (status, body) = match first.starts_with("GET") {
        true => (200, r#"{"data":[{"id":"little"}]}"#.to_owned()),
        false if i.is_multiple_of(3) => (400, format!(r#"{{"error":{{"message":"no: {key}"}}}}"#)),
        false => (
            200,
            r#"{"choices":[{"message":{"content":"(B)"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":3}}"#
                .to_owned(),
        ),
    };
    write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

fn all_text(folder: &Path) -> String {
    let mut all = String::new();
    for entry in folder.read_dir().unwrap() {
        let path = entry.unwrap().path();
        all += &if path.is_dir() { all_text(&path) } else { std::fs::read_to_string(&path).unwrap() };
    }
    all
}

#[test]
fn the_key_is_in_no_file_and_no_log_of_a_run() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("run");
    let mut run = command(&["run", "--tasks", "quality", "--backend", "openai", "--out", arg(&out)]);
    run.args(["--backend-option", &format!("base_url={};key_env=MY_KEY", server())]);
    run.env("MY_KEY", SECRET).env("E2LLM_LOG", "trace");
    let ended = finish(run).code(3).says(&["[redacted]"]);
    for (what, text) in [("stderr", ended.stderr()), ("stdout", ended.stdout()), ("a file", all_text(&out))] {
        assert!(!text.contains(SECRET) && !text.contains("not-for-any"), "the key is in {what}: {text}");
    }
    assert!(!ended.stderr().contains("TRACE ureq"), "the HTTP library dumps what it sends");
    let manifest = text(&out, "manifest.toml");
    assert!(manifest.contains("model = \"little\"") && manifest.contains("device = \"server 127.0.0.1:"));
    assert!(samples(&out, "quality").iter().any(|s| s["outcome"]["answered"]["response"] == "(B)"));
}

/// `tests/llama_server.sh` starts the server and then this.
#[test]
#[ignore = "needs a server: tests/llama_server.sh"]
fn a_real_server_answers() {
    let url = std::env::var("LLAMA_SERVER").unwrap();
    let dir = tempdir().unwrap();
    for more in ["", ";stream=true", ";endpoint=completions"] {
        let out = dir.path().join(more.replace(';', "run-"));
        let mut run = command(&["run", "--tasks", "niah", "--backend", "openai", "--out", arg(&out)]);
        run.args(["--limit", "1", "--max-new-tokens", "16", "--task-option", "niah.lengths=300"]);
        run.args(["--backend-option", &format!("base_url={url};concurrency=2{more}")]);
        finish(run).code(0);
        let results = results(&out);
        assert_eq!(
            (&results["run"]["backend"], &results["run"]["model"]),
            (&"openai".into(), &"smollm2".into())
        );
        for sample in samples(&out, "niah") {
            let usage = &sample["outcome"]["answered"]["usage"];
            assert!(usage["prompt_tokens"].as_u64().unwrap() > 100, "{sample}");
            assert!((1..=17).contains(&usage["generated_tokens"].as_u64().unwrap()), "{sample}");
            let first = usage["time_to_first_token"].as_f64().unwrap();
            assert!(
                first > 0.0 && (usage["decode_time"].as_f64().unwrap() > 0.0) == (more == ";stream=true")
            );
        }
    }
    let out = dir.path().join("long");
    let mut run = command(&["run", "--tasks", "niah", "--backend", "openai", "--out", arg(&out)]);
    run.args(["--limit", "1", "--task-option", "niah.lengths=8000"]);
    run.args(["--backend-option", &format!("base_url={url}")]);
    finish(run).code(3).says(&["the prompt is too long for the server's model"]);
}
