//! When to ask again.

use e2llm_backend::Fingerprint;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::time::{Duration, SystemTime};
use ureq::http::HeaderMap;

/// The first wait, doubled with every attempt.
const FIRST: Duration = Duration::from_millis(500);
/// The longest wait that nobody asked for.
const LONGEST: Duration = Duration::from_secs(60);

/// How often, and after what waits, a request is sent again.
#[derive(Debug, Clone)]
pub(crate) struct Retry {
    /// Attempts after the first.
    pub(crate) retries: u32,
    /// The longest wait that a server may ask for.
    pub(crate) longest_asked: Duration,
    /// Seed of the jitter.
    pub(crate) seed: u64,
}

impl Retry {
    /// The wait after a failed attempt (the first is 0) of the request `id`.
    ///
    /// Exponential, half of it at random so that requests that failed together do not come back together. What the
    /// server asks for is waited in full; `None` where that is longer than allowed.
    pub(crate) fn wait(&self, id: &str, attempt: u32, asked: Option<Duration>) -> Option<Duration> {
        let jitter = self.jitter(id, attempt);
        match asked {
            Some(asked) if asked > self.longest_asked => None,
            Some(asked) => Some(asked + FIRST.mul_f64(jitter)),
            None => {
                let full = FIRST.saturating_mul(1 << attempt.min(16)).min(LONGEST);
                Some(full.mul_f64(0.5 + 0.5 * jitter))
            }
        }
    }

    /// A number from 0 to 1 that depends on seed, request and attempt only.
    fn jitter(&self, id: &str, attempt: u32) -> f64 {
        let mut hash = Fingerprint::new("retry", &self.seed.to_string());
        let hash = hash.text(id, &attempt.to_string()).finish();
        let seed = u64::from_str_radix(&hash[..16], 16).unwrap_or_default();
        f64::from(ChaCha8Rng::seed_from_u64(seed).next_u32()) / f64::from(u32::MAX)
    }
}

/// Whether a status may be another one the next time.
pub(crate) fn is_passing(status: u16) -> bool {
    matches!(status, 408 | 409 | 425 | 429 | 500 | 502..=504 | 520..=524 | 529)
}

/// How long a server asks to wait: `retry-after-ms`, or `Retry-After` in seconds or as a date.
pub(crate) fn asked(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let seconds = |s: f64| Duration::try_from_secs_f64(s).ok();
    if let Some(ms) = text("retry-after-ms").and_then(|t| t.parse::<f64>().ok()) {
        return seconds(ms / 1000.0);
    }
    let after = text("retry-after")?;
    match after.parse::<f64>() {
        Ok(s) => seconds(s),
        Err(_) => Some(httpdate::parse_http_date(after).ok()?.duration_since(now).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETRY: Retry = Retry { retries: 5, longest_asked: Duration::from_secs(30), seed: 7 };

    #[test]
    fn waits_double_up_to_a_minute_and_repeat() {
        for attempt in 0..12 {
            let full = Duration::from_millis(500 << attempt).min(LONGEST);
            let wait = RETRY.wait("a", attempt, None).unwrap();
            assert!(wait >= full / 2 && wait <= full, "{attempt}: {wait:?}");
            assert_eq!(RETRY.wait("a", attempt, None), Some(wait));
        }
        assert_ne!(RETRY.wait("a", 3, None), RETRY.wait("b", 3, None));
        assert_ne!(RETRY.wait("a", 3, None), Retry { seed: 8, ..RETRY }.wait("a", 3, None));
        assert!(RETRY.wait("a", u32::MAX, None).unwrap() <= LONGEST);
    }

    #[test]
    fn what_a_server_asks_for_is_waited_or_refused_never_shortened() {
        let asked = Duration::from_secs(20);
        let wait = RETRY.wait("a", 0, Some(asked)).unwrap();
        assert!(wait >= asked && wait <= asked + FIRST);
        assert_eq!(RETRY.wait("a", 0, Some(Duration::from_secs(31))), None);
    }

    #[test]
    fn the_header_has_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let of = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            asked(&headers, now)
        };
        assert_eq!(of("retry-after", "7"), Some(Duration::from_secs(7)));
        assert_eq!(of("retry-after", "0.5"), Some(Duration::from_millis(500)));
        assert_eq!(of("retry-after-ms", "250"), Some(Duration::from_millis(250)));
        let later = httpdate::fmt_http_date(now + Duration::from_secs(90));
        assert_eq!(of("retry-after", &later), Some(Duration::from_secs(90)));
        let past = httpdate::fmt_http_date(now - Duration::from_secs(90));
        assert_eq!(of("retry-after", &past), Some(Duration::ZERO));
        for nonsense in ["soon", "-3", "inf"] {
            assert_eq!(of("retry-after", nonsense), None, "{nonsense}");
        }
        assert_eq!(asked(&HeaderMap::new(), now), None);
    }
}
