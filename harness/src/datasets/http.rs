//! Plain HTTPS downloads that go on where they ended.

use crate::models::ModelError;
use crate::models::install::{Expected, Failure, Target};
use crate::models::progress::Progress;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use ureq::Agent;
use ureq::http::{HeaderMap, Response, StatusCode, header};

/// How stubborn downloads are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Tries in a row that bring nothing new.
    pub tries: u32,
    /// Wait after the first of them; doubled after each further one.
    pub wait: Duration,
    /// Longest wait that a server may ask for.
    pub longest_wait: Duration,
    /// Longest time for connecting, and for the beginning of an answer.
    pub answer: Duration,
    /// Longest time for one answer's body; what came is kept, and the next try goes on from there.
    pub body: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            tries: 5,
            wait: Duration::from_secs(1),
            longest_wait: Duration::from_secs(60),
            answer: Duration::from_secs(30),
            body: Duration::from_secs(600),
        }
    }
}

/// How one request ended.
enum End {
    /// The file is whole, as far as the server says.
    Whole,
    /// Another try may do better, after so long where the server says.
    Again { why: String, after: Option<Duration>, progress: bool },
}

/// Downloads `url` to `part`, which may hold the beginning already; `part.tag` remembers which version it is of.
///
/// # Errors
/// An answer that no retry will change; too many tries without anything new; an interrupt; a full disk.
pub(super) fn download(
    url: &str,
    part: &Path,
    expected: Expected<'_>,
    target: &Target<'_>,
    patience: Patience,
    progress: Progress,
) -> Result<(), Failure> {
    let agent: Agent = Agent::config_builder()
        .https_only(url.starts_with("https://")) // also of redirects
        .http_status_as_error(false)
        .timeout_connect(Some(patience.answer))
        .timeout_recv_response(Some(patience.answer))
        .timeout_recv_body(Some(patience.body))
        .user_agent(concat!("e2llm-bench/", env!("CARGO_PKG_VERSION")))
        .build()
        .into();
    let transfer = Transfer { agent, url, part, tag: tag_of(part), expected, target };
    let meter = progress.meter(&format!("{} from {url}", expected.name), expected.size);
    let (mut idle, mut wait) = (0, patience.wait);
    loop {
        target.check_cancelled()?;
        let (why, after) = match transfer.once(&meter)? {
            End::Whole => return Ok(()),
            End::Again { why, after, progress } => {
                if progress {
                    (idle, wait) = (0, patience.wait);
                }
                (why, after)
            }
        };
        idle += 1;
        if idle >= patience.tries {
            return Err(Failure::Source(format!("{why} ({idle} tries)")));
        }
        let pause = after.unwrap_or(wait).min(patience.longest_wait);
        progress.say(&format!("{}: {why}; again in {:.1} s", expected.name, pause.as_secs_f64()));
        sleep(pause, target)?;
        wait *= 2;
    }
}

/// Where the version of an unfinished download is remembered.
pub(super) fn tag_of(part: &Path) -> PathBuf {
    let mut name = part.as_os_str().to_owned();
    name.push(".tag");
    name.into()
}

/// Waits, but no longer than until an interrupt.
fn sleep(pause: Duration, target: &Target<'_>) -> Result<(), Failure> {
    let mut left = pause;
    while !left.is_zero() {
        target.check_cancelled()?;
        let step = left.min(Duration::from_millis(100));
        std::thread::sleep(step);
        left -= step;
    }
    Ok(())
}

struct Transfer<'a> {
    agent: Agent,
    url: &'a str,
    part: &'a Path,
    tag: PathBuf,
    expected: Expected<'a>,
    target: &'a Target<'a>,
}

impl Transfer<'_> {
    /// One request, and whatever it brings.
    fn once(&self, meter: &crate::models::progress::Meter) -> Result<End, Failure> {
        let tag = fs::read_to_string(&self.tag).unwrap_or_default();
        let mut have = fs::metadata(self.part).map_or(0, |m| m.len());
        if have > 0 && (tag.is_empty() || self.expected.size.is_some_and(|size| have > size)) {
            self.forget();
            have = 0;
        }
        // compressed on the way, its length and ranges would be of something else
        let mut request = self.agent.get(self.url).header(header::ACCEPT_ENCODING, "identity");
        if have > 0 {
            request = request.header(header::RANGE, format!("bytes={have}-")).header(header::IF_RANGE, &tag);
        }
        let again = |why: String| Ok(End::Again { why, after: None, progress: false });
        let response = match request.call() {
            Ok(response) => response,
            Err(
                e @ (ureq::Error::BadUri(_)
                | ureq::Error::RequireHttpsOnly(_)
                | ureq::Error::TooManyRedirects),
            ) => {
                return Err(Failure::Source(e.to_string()));
            }
            Err(e) => return again(e.to_string()),
        };
        let status = response.status();
        match status {
            StatusCode::PARTIAL_CONTENT if range_start(response.headers()) == Some(have) => {
                self.body(response, have, meter)
            }
            // a server without ranges, or another version of the file: from the start
            StatusCode::OK => {
                let ignored = have > 0;
                self.forget();
                self.remember(response.headers())?;
                match self.body(response, 0, meter)? {
                    // where nothing can be continued, a longer try is no progress
                    End::Again { why, after, .. } if ignored => {
                        Ok(End::Again { why, after, progress: false })
                    }
                    end => Ok(end),
                }
            }
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                self.forget();
                again(format!("the server does not continue the download (status {status})"))
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
                let after = retry_after(response.headers());
                Ok(End::Again { why: format!("the server answers {status}"), after, progress: false })
            }
            status if status.is_server_error() => {
                let after = retry_after(response.headers());
                Ok(End::Again { why: format!("the server answers {status}"), after, progress: false })
            }
            status => Err(Failure::Source(format!("the server answers {status}"))),
        }
    }

    fn body(
        &self,
        response: Response<ureq::Body>,
        have: u64,
        meter: &crate::models::progress::Meter,
    ) -> Result<End, Failure> {
        let length = number(response.headers(), header::CONTENT_LENGTH.as_str()).map(|n| n + have);
        if let (Some(length), Some(size)) = (length, self.expected.size)
            && length != size
        {
            self.forget();
            return Err(Failure::Source(format!("the server's file has {length} bytes, not {size}")));
        }
        if let Some(total) = length {
            meter.set_total(total);
        }
        let fail = |e| ModelError::io("write", self.part, self.expected.size.unwrap_or(0), e);
        let mut file = OpenOptions::new().create(true).append(true).open(self.part).map_err(fail)?;
        let mut reader = response.into_body().into_reader();
        let mut buffer = vec![0; 1 << 16];
        let mut at = have;
        let why = loop {
            self.target.check_cancelled()?;
            match reader.read(&mut buffer) {
                Ok(0) => break None,
                Ok(n) => {
                    file.write_all(&buffer[..n]).map_err(fail)?;
                    at += n as u64;
                    meter.set(at);
                }
                Err(e) => break Some(format!("the connection was lost after {at} bytes: {e}")),
            }
        };
        file.sync_all().map_err(fail)?;
        let short = length.filter(|length| at < *length);
        let why =
            why.or_else(|| short.map(|all| format!("the connection was closed after {at} of {all} bytes")));
        Ok(match why {
            None => End::Whole,
            Some(why) => End::Again { why, after: None, progress: at > have },
        })
    }

    /// Keeps what tells this version of the file from others; without it a download is never continued.
    fn remember(&self, headers: &HeaderMap) -> Result<(), Failure> {
        let text = |name| headers.get(name).and_then(|v| v.to_str().ok());
        let strong = text(header::ETAG).filter(|tag| !tag.starts_with("W/"));
        let Some(tag) = strong.or_else(|| text(header::LAST_MODIFIED)) else { return Ok(()) };
        let mut file = File::create(&self.tag).map_err(|e| ModelError::io("create", &self.tag, 0, e))?;
        file.write_all(tag.as_bytes()).map_err(|e| ModelError::io("write", &self.tag, 0, e))?;
        Ok(())
    }

    fn forget(&self) {
        let _ = fs::remove_file(self.part);
        let _ = fs::remove_file(&self.tag);
    }
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

/// The first byte of `Content-Range: bytes 10-99/100`.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    range.trim().strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

/// `Retry-After` in seconds; its other form, a date, is not used.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    number(headers, header::RETRY_AFTER.as_str()).map(Duration::from_secs)
}
