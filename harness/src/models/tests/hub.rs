//! The model hub, by a fake server.

use super::*;

/// A model hub that has the model `tiny`, and hangs up after `cut` bytes of weights the first time.
fn fake_hub(cut: usize) -> (String, std::sync::Arc<std::sync::Mutex<Vec<String>>>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let log = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = log.clone();
    std::thread::spawn(move || {
        let mut cuts = usize::from(cut > 0);
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
                request.push(byte[0]);
            }
            let request = String::from_utf8(request).unwrap();
            let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
            let range = request
                .lines()
                .find_map(|l| l.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
            let range = range.unwrap_or_default();
            let (name, body) = match path.rsplit('/').next().unwrap() {
                "config.json" => ("config.json", CONFIG),
                _ => ("model.safetensors", WEIGHTS),
            };
            let (from, to) = range.split_once('-').unwrap();
            let from: usize = from.parse().unwrap();
            let to = to.parse().map_or(body.len(), |to: usize| to + 1);
            seen.lock().unwrap().push(format!("{name} {range}"));
            let head = format!(
                "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {from}-{}/{}\r\n\
                 ETag: \"etag-{name}\"\r\nx-repo-commit: abc123\r\nConnection: close\r\n\r\n",
                to - from,
                to - 1,
                body.len()
            );
            let mut sent = &body[from..to];
            if name == "model.safetensors" && range == "0-" && cuts > 0 {
                cuts -= 1;
                sent = &sent[..cut];
            }
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(sent).unwrap();
        }
    });
    (address, log)
}

#[test]
fn hub_download_is_checked_and_cleaned_up() {
    let (address, _) = fake_hub(0);
    let machine = Machine::new().with_hub_source(&address);
    let files = machine.fetcher().fetch("tiny").unwrap();
    assert_eq!(fs::read(files.decoder.unwrap().join("model.safetensors")).unwrap(), WEIGHTS);
    assert_eq!(machine.listing(), ["config.json", "model.safetensors"]);
}

#[test]
fn broken_hub_download_is_resumed() {
    let (address, log) = fake_hub(10);
    let machine = Machine::new().with_hub_source(&address);
    let error = machine.fetcher().fetch("tiny").unwrap_err();
    assert!(attempts(&error).contains("model hub e2llm-test/tiny: I/O error"), "{error}");
    assert!(!machine.cached("model.safetensors").exists());
    machine.fetcher().fetch("tiny").unwrap();
    assert_eq!(fs::read(machine.cached("model.safetensors")).unwrap(), WEIGHTS);
    let log = log.lock().unwrap();
    assert_eq!(log.last().unwrap(), "model.safetensors 10-", "{log:?}");
}

#[test]
fn wrong_unfinished_hub_download_is_started_again() {
    for wrong in [&b"WRONG"[..], &[b'x'; 100]] {
        let (address, log) = fake_hub(0);
        let machine = Machine::new().with_hub_source(&address);
        write(&machine.cached("config.json"), CONFIG);
        write(&machine.cached(".hub/models--e2llm-test--tiny/blobs/etag-model.part"), wrong);
        machine.fetcher().fetch("tiny").unwrap();
        assert_eq!(fs::read(machine.cached("model.safetensors")).unwrap(), WEIGHTS);
        assert_eq!(log.lock().unwrap().last().unwrap(), "model.safetensors 0-");
    }
}

#[test]
fn unreachable_hub_is_asked_once() {
    let machine = Machine::new().with_hub_source("http://127.0.0.1:9");
    let error = machine.fetcher().fetch("tiny").unwrap_err();
    assert!(attempts(&error).contains("model hub e2llm-test/tiny: request error"), "{error}");
    assert_eq!(machine.listing(), Vec::<String>::new());
}
