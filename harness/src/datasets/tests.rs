//! Fetching from a server on this machine that behaves as badly as servers do.

use super::*;
use crate::failure::{Failure, shown};
use crate::models::verify::Sha;
use e2llm_backend::CancelFlag;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;

/// What the server does with one request.
#[derive(Debug, Clone)]
enum Reply {
    /// Sends what was asked for.
    Good,
    /// Promises all of it and hangs up after so many bytes.
    Cut(usize),
    /// As `Cut`, but does not say how much there is.
    Endless(usize),
    /// Sends the whole file whatever range was asked for.
    NoRanges,
    /// Never answers.
    Silent,
    /// A status, with a header.
    Status(u16, &'static str),
    /// Sends elsewhere.
    Redirect(&'static str),
    /// Another version of the file, with another tag.
    Changed(&'static [u8]),
}

/// A server with one file, and what it was asked: `path range`.
struct Server {
    address: String,
    log: Arc<Mutex<Vec<String>>>,
}

const BODY: &[u8] = b"one record a line\ntwo records, two lines\n";

/// Answers requests in the order of `script`, and well after its end.
fn server(body: &'static [u8], script: Vec<Reply>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let log = Arc::new(Mutex::new(Vec::new()));
    let seen = log.clone();
    std::thread::spawn(move || {
        let mut script = script.into_iter();
        let mut silent = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let (mut request, mut byte) = (Vec::new(), [0]);
            while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
                request.push(byte[0]);
            }
            let request = String::from_utf8(request).unwrap().to_lowercase();
            let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
            let header = |name: &str| request.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
            let range = header("range: bytes=").unwrap_or_default().to_owned();
            assert_eq!(header("accept-encoding:"), Some("identity"));
            seen.lock().unwrap().push(format!("{path} {range}").trim().to_owned());
            let reply = script.next().unwrap_or(Reply::Good);
            let (body, tag) = match &reply {
                Reply::Changed(other) => (*other, "\"v2\""),
                _ => (body, "\"v1\""),
            };
            let same = header("if-range:").is_none_or(|t| t == tag);
            let from = range.trim_end_matches('-').parse().unwrap_or(0);
            let from = if same && !matches!(reply, Reply::NoRanges) { from } else { 0 };
            let mut head = match from {
                0 => "HTTP/1.1 200 OK\r\n".to_owned(),
                _ => format!(
                    "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {from}-{}/{}\r\n",
                    body.len() - 1,
                    body.len()
                ),
            };
            head += &format!("ETag: {tag}\r\nConnection: close\r\n");
            let rest = &body[from..];
            let length = format!("Content-Length: {}\r\n\r\n", rest.len());
            let mut send = |head: String, body: &[u8]| {
                // the other side may be gone
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
            };
            match reply {
                Reply::Good | Reply::NoRanges | Reply::Changed(_) => send(head + &length, rest),
                Reply::Cut(n) => send(head + &length, &rest[..n]),
                Reply::Endless(n) => send(head + "\r\n", &rest[..n]),
                Reply::Silent => silent.push(stream),
                Reply::Status(code, header) => {
                    let lines = format!(
                        "HTTP/1.1 {code} X\r\n{header}Content-Length: 0\r\nConnection: close\r\n\r\n"
                    );
                    send(lines, b"");
                }
                Reply::Redirect(to) => send(
                    format!(
                        "HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                    ),
                    b"",
                ),
            }
        }
    });
    Server { address, log }
}

impl Server {
    fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }
}

fn sha256(bytes: &[u8]) -> String {
    let mut sha = Sha::new();
    sha.update(bytes);
    sha.finish()
}

/// A cache, a data folder, and a catalogue with the task `mine`.
struct Machine {
    dir: TempDir,
    downloads: String,
    offline: bool,
    hub: Option<String>,
    answer: Duration,
    tries: u32,
}

impl Machine {
    fn new(server: &Server, more: &str) -> Self {
        let downloads =
            format!("[[mine.downloads]]\nname = \"test.jsonl\"\nurl = \"{}/file\"\n{more}\n", server.address);
        Self {
            dir: tempfile::tempdir().unwrap(),
            downloads,
            offline: false,
            hub: None,
            answer: Duration::from_secs(60),
            tries: 3,
        }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.root().join("mine").join(name)
    }

    fn fetcher(&self) -> DataFetcher {
        let path = self.dir.path().join("catalogue.toml");
        let head = "[mine]\ndescription = \"d\"\nlicence = \"MIT\"\nlicence_url = \"u\"\ncitation = \"c\"\n";
        fs::write(&path, head.to_owned() + &self.downloads).unwrap();
        let patience = Patience {
            tries: self.tries,
            wait: Duration::from_millis(1),
            longest_wait: Duration::from_millis(20),
            answer: self.answer,
            body: Duration::from_secs(20),
        };
        let settings = DataSettings {
            cache: self.dir.path().join("cache"),
            offline: self.offline,
            quiet: true,
            hub_endpoint: self.hub.clone(),
            patience,
            cancel: CancelFlag::default(),
        };
        DataFetcher::new(DataCatalogue::load(Some(&path)).unwrap(), settings)
    }

    fn fetch(&self) -> crate::failure::Result<Vec<FileReport>> {
        self.fetcher().fetch("mine", &self.root(), &mut |_| Ok(())).map(|(_, reports)| reports)
    }

    #[track_caller]
    fn refused(&self, what: &str) {
        let error = self.fetch().unwrap_err();
        let shown = shown(&error);
        assert!(shown.contains(what), "{shown}");
        assert!(!self.file("test.jsonl").exists());
    }
}

fn pinned(body: &[u8]) -> String {
    format!("size = {}\nsha256 = \"{}\"", body.len(), sha256(body))
}

#[test]
fn a_known_file_is_fetched_once_and_verified() {
    let server = server(BODY, vec![]);
    let machine = Machine::new(&server, &pinned(BODY));
    for _ in 0..2 {
        let reports = machine.fetch().unwrap();
        assert_eq!(
            (reports[0].state, reports[0].sha256.as_deref()),
            (State::Verified, Some(sha256(BODY).as_str()))
        );
    }
    assert_eq!(fs::read(machine.file("test.jsonl")).unwrap(), BODY);
    assert_eq!(server.log(), ["/file"]);
    fs::remove_file(machine.file("test.jsonl")).unwrap();
    let offline = Machine { offline: true, ..machine };
    offline.fetch().unwrap();
    assert_eq!(server.log(), ["/file"], "the second time from the cache");
}

#[test]
fn an_unknown_sha256_is_kept_and_holds_from_then_on() {
    let server = server(BODY, vec![Reply::Good, Reply::Changed(b"another version")]);
    let machine = Machine::new(&server, "");
    assert_eq!(machine.fetch().unwrap()[0].state, State::Unchanged);
    let lock = Lock::read(&machine.root().join("mine")).unwrap();
    let locked = lock.get("test.jsonl").unwrap();
    assert_eq!((locked.pinned, locked.size, &locked.sha256), (false, BODY.len() as u64, &sha256(BODY)));
    assert_eq!(lock.licence, "MIT");
    fs::remove_file(machine.file("test.jsonl")).unwrap();
    fs::remove_dir_all(machine.dir.path().join("cache")).unwrap();
    machine.refused("the server's file has 15 bytes, not 41");
    fs::write(machine.file("test.jsonl"), b"edited").unwrap();
    let reports = machine.fetcher().verify("mine", &machine.root()).unwrap();
    assert_eq!(reports[0].state, State::Changed);
    assert!(
        machine.fetch().unwrap_err().to_string().contains("has sha256"),
        "a changed file is not replaced"
    );
}

#[test]
fn a_cut_download_goes_on_where_it_ended() {
    let server = server(BODY, vec![Reply::Cut(10), Reply::Cut(5), Reply::Cut(1), Reply::Cut(1)]);
    let machine = Machine::new(&server, "");
    machine.fetch().unwrap();
    assert_eq!(fs::read(machine.file("test.jsonl")).unwrap(), BODY);
    assert_eq!(server.log(), ["/file", "/file 10-", "/file 15-", "/file 16-", "/file 17-"]);
}

#[test]
fn a_killed_download_goes_on_in_the_next_process() {
    let server = server(
        BODY,
        vec![Reply::Cut(12), Reply::Status(503, ""), Reply::Status(503, ""), Reply::Status(503, "")],
    );
    let machine = Machine::new(&server, &pinned(BODY));
    machine.refused("the server answers 503");
    machine.fetch().unwrap();
    assert_eq!(server.log().last().unwrap(), "/file 12-");
    assert_eq!(fs::read(machine.file("test.jsonl")).unwrap(), BODY);
}

#[test]
fn a_server_without_ranges_sends_all_of_it_again() {
    let server = server(BODY, vec![Reply::Cut(10), Reply::NoRanges]);
    let machine = Machine::new(&server, &pinned(BODY));
    machine.fetch().unwrap();
    assert_eq!(fs::read(machine.file("test.jsonl")).unwrap(), BODY);
    assert_eq!(server.log(), ["/file", "/file 10-"]);
}

#[test]
fn another_version_is_never_glued_to_the_first() {
    const OTHER: &[u8] = b"ONE RECORD A LINE\nAND QUITE ANOTHER SECOND ONE\n";
    let server = server(BODY, vec![Reply::Cut(10), Reply::Changed(OTHER)]);
    let machine = Machine::new(&server, "");
    machine.fetch().unwrap();
    assert_eq!(fs::read(machine.file("test.jsonl")).unwrap(), OTHER);
}

#[test]
fn what_may_pass_is_tried_again_and_what_will_not_is_not() {
    let script = vec![Reply::Status(500, ""), Reply::Status(429, "Retry-After: 0\r\n"), Reply::Good];
    let busy = server(BODY, script);
    Machine::new(&busy, "").fetch().unwrap();
    assert_eq!(busy.log().len(), 3);

    let gone = server(BODY, vec![Reply::Status(404, ""); 9]);
    Machine::new(&gone, "").refused("the server answers 404");
    assert_eq!(gone.log().len(), 1);

    let broken = server(BODY, vec![Reply::Status(500, ""); 9]);
    Machine::new(&broken, "").refused("Internal Server Error (3 tries)");
    assert_eq!(broken.log().len(), 3);

    let silent = server(BODY, vec![Reply::Silent]);
    // a busy machine may miss the time of a good answer, too
    let machine = Machine { answer: Duration::from_millis(200), tries: 100, ..Machine::new(&silent, "") };
    machine.fetch().unwrap();
    assert!(silent.log().len() > 1);
}

#[test]
fn redirects_are_followed_but_not_for_ever() {
    let moved = server(BODY, vec![Reply::Redirect("/elsewhere")]);
    let machine = Machine::new(&moved, "");
    machine.fetch().unwrap();
    assert_eq!(moved.log(), ["/file", "/elsewhere"]);
    let circle = server(BODY, vec![Reply::Redirect("/file"); 99]);
    Machine::new(&circle, "").refused("too many redirects");
}

#[test]
fn wrong_bytes_are_refused_and_not_kept() {
    let short = server(BODY, vec![Reply::Endless(20)]);
    let machine = Machine::new(&short, &pinned(BODY));
    machine.refused("has 20 bytes, not 41");
    machine.fetch().unwrap();
    let wrong = server(b"one record a line\ntwo records, TWO lines\n", vec![]);
    Machine::new(&wrong, &pinned(BODY)).refused(&format!("not {}", sha256(BODY)));
}

#[test]
fn nothing_is_fetched_offline_or_without_the_licence() {
    let server = server(BODY, vec![]);
    let machine = Machine { offline: true, ..Machine::new(&server, "") };
    machine.refused("offline nothing is fetched");
    let machine = Machine { offline: false, ..machine };
    let refuse = &mut |entry: &DataEntry| Err(Failure::usage(format!("no to {}", entry.licence)));
    let error = machine.fetcher().fetch("mine", &machine.root(), refuse).unwrap_err();
    assert_eq!(error.to_string(), "no to MIT");
    assert_eq!(server.log(), Vec::<String>::new());
    machine.fetch().unwrap();
    let again = machine.fetcher().fetch("mine", &machine.root(), refuse);
    assert!(again.is_ok(), "accepted once, not asked again");
}

#[test]
fn files_of_the_user_are_left_alone() {
    let server = server(BODY, vec![]);
    let machine = Machine::new(&server, "");
    fs::create_dir_all(machine.root().join("mine")).unwrap();
    fs::write(machine.file("test.jsonl"), b"my own").unwrap();
    assert_eq!(machine.fetch().unwrap()[0].state, State::Unknown);
    assert_eq!(fs::read(machine.file("test.jsonl")).unwrap(), b"my own");
    assert_eq!(server.log(), Vec::<String>::new());
}

/// An archive with these files.
fn zip_of(files: &[(&str, &[u8])]) -> &'static [u8] {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in files {
        zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    Vec::leak(zip.finish().unwrap().into_inner())
}

fn tar_gz_of(files: &[(&str, &[u8])]) -> &'static [u8] {
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        tar.append(&header, *bytes).unwrap();
    }
    Vec::leak(tar.into_inner().unwrap().finish().unwrap())
}

fn archive(server: &Server, unpack: &str) -> Machine {
    let downloads = format!(
        "[[mine.downloads]]\nname = \"all.archive\"\nurl = \"{}/a\"\nunpack = {unpack}\n",
        server.address
    );
    Machine { downloads, ..Machine::new(server, "") }
}

#[test]
fn archives_are_unpacked_and_each_file_is_verified() {
    let files: &[(&str, &[u8])] =
        &[("data/one.jsonl", b"1"), ("data/more/two.jsonl", b"22"), ("readme", b"x")];
    for (body, form) in [(zip_of(files), "zip"), (tar_gz_of(files), "tar.gz")] {
        let server = server(body, vec![]);
        let machine = archive(&server, &format!("{{ form = \"{form}\", folder = \"data\" }}"));
        let reports = machine.fetch().unwrap();
        let names: Vec<_> = reports.iter().map(|r| (r.file.as_str(), r.state)).collect();
        assert_eq!(names, [("more/two.jsonl", State::Unchanged), ("one.jsonl", State::Unchanged)]);
        assert!(!machine.file("readme").exists() && !machine.file("all.archive").exists());
        fs::write(machine.file("one.jsonl"), b"2").unwrap();
        fs::remove_file(machine.file("more/two.jsonl")).unwrap();
        let reports = machine.fetcher().verify("mine", &machine.root()).unwrap();
        assert_eq!(reports.iter().map(|r| r.state).collect::<Vec<_>>(), [State::Missing, State::Changed]);
        assert_eq!(server.log().len(), 1);
        let only =
            archive(&server, &format!("{{ form = \"{form}\", folder = \"data\", only = [\"one.jsonl\"] }}"));
        assert_eq!(only.fetch().unwrap().len(), 1);
        let none = archive(&server, &format!("{{ form = \"{form}\", only = [\"three.jsonl\"] }}"));
        none.refused("has no file `three.jsonl`");
    }
}

#[test]
fn archives_do_not_write_outside_their_folder() {
    let files: &[(&str, &[u8])] = &[("data/../../evil", b"1")];
    for (body, form) in [(zip_of(files), "zip"), (tar_gz_of(files), "tar.gz")] {
        let server = server(body, vec![]);
        let machine = archive(&server, &format!("{{ form = \"{form}\" }}"));
        machine.refused("which leads out of its folder");
        assert!(!machine.dir.path().join("data/evil").exists() && !machine.dir.path().join("evil").exists());
    }
    let server = server(b"no archive", vec![]);
    archive(&server, "{ form = \"zip\" }").refused("is no archive that can be read");
}

#[test]
fn the_built_in_catalogue_is_sound_and_mistakes_are_shown_in_their_line() {
    let catalogue = DataCatalogue::load(None).unwrap();
    assert!(catalogue.names().count() >= 8);
    for task in catalogue.names() {
        let entry = catalogue.get(task).unwrap();
        assert!(!entry.licence.is_empty() && entry.citation.contains("https://"), "{task}");
    }
    assert!(shown(&catalogue.get("qmsun").unwrap_err()).contains("did you mean `qmsum`"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    let head =
        "[a]\ndescription = \"\"\nlicence = \"\"\nlicence_url = \"\"\ncitation = \"\"\n[[a.downloads]]\n";
    for (text, what, place) in [
        ("name = \"x\"\nsha265 = \"\"\n", "did you mean `sha256`?", "c.toml:8:1"),
        ("name = \"../x\"\nurl = \"https://x\"\n", "must be relative", "c.toml:1:1"),
        ("name = \"x\"\n", "neither `url` nor `hub`", "c.toml:1:1"),
        ("name = \"x\"\nurl = \"http://x\"\n", "does not begin with https://", "c.toml:1:1"),
        ("name = \"x\"\nurl = \"https://x\"\nsha256 = \"AB\"\n", "64 lower-case", "c.toml:1:1"),
    ] {
        fs::write(&path, head.to_owned() + text).unwrap();
        let shown = shown(&DataCatalogue::load(Some(&path)).unwrap_err());
        assert!(shown.contains(what) && shown.contains(place), "{shown}");
    }
}

#[test]
fn a_hub_file_comes_through_the_hub_client() {
    // the client asks for ranges in its own way: a server of its own
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let (mut request, mut byte) = (Vec::new(), [0]);
            while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
                request.push(byte[0]);
            }
            let request = String::from_utf8(request).unwrap();
            assert!(request.starts_with("GET /datasets/owner/set/resolve/abc123/data.json "), "{request}");
            let range = request
                .lines()
                .find_map(|l| l.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
            let (from, to) = range.as_deref().and_then(|r| r.split_once('-')).unwrap();
            let from: usize = from.parse().unwrap();
            let to = to.parse().map_or(BODY.len(), |to: usize| to + 1);
            let head = format!(
                "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {from}-{}/{}\r\n\
                 ETag: \"t\"\r\nx-repo-commit: abc123\r\nConnection: close\r\n\r\n",
                to - from,
                to - 1,
                BODY.len()
            );
            stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&BODY[from..to])).unwrap();
        }
    });
    let downloads = "[[mine.downloads]]\nname = \"data.json\"\n\
                     hub = { repo = \"owner/set\", revision = \"abc123\", file = \"data.json\" }\n";
    let nobody = Server { address: String::new(), log: Arc::default() };
    let machine = Machine { downloads: downloads.into(), hub: Some(address), ..Machine::new(&nobody, "") };
    let reports = machine.fetch().unwrap();
    assert_eq!((reports[0].file.as_str(), reports[0].state), ("data.json", State::Unchanged));
    assert_eq!(fs::read(machine.file("data.json")).unwrap(), BODY);
}
