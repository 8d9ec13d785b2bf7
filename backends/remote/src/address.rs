//! Where a server is.

use crate::settings::bad_option;
use e2llm_backend::BackendError;
use std::net::IpAddr;
use ureq::http::Uri;

/// A server's base URL, e.g. `http://127.0.0.1:8000/v1`: no credentials, no query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    scheme: String,
    host: String,
    authority: String,
    path: String,
}

impl Address {
    /// Reads a base URL.
    ///
    /// # Errors
    /// No `http` or `https` URL; credentials or a query in it, which would end up in a run's manifest; the URL of an
    /// endpoint instead of what all of them begin with.
    pub(crate) fn parse(text: &str) -> Result<Self, BackendError> {
        let bad = |what: &str| bad_option("base_url", what);
        // Before anything is quoted: what stands before the @ may be a password.
        if text.contains('@') {
            return Err(bad("it has credentials in it; the key is read from the environment only (key_env)"));
        }
        let expected = "expected something like http://127.0.0.1:8000/v1";
        let uri: Uri = text.parse().map_err(|e| bad(&format!("`{text}` is no URL ({e}): {expected}")))?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(bad(&format!("`{text}` has no scheme or no host: {expected}")));
        };
        if !matches!(scheme, "http" | "https") {
            return Err(bad(&format!("`{text}` is neither http nor https")));
        }
        if uri.query().is_some() {
            return Err(bad("it has a query (`?...`), which endpoints cannot be put behind"));
        }
        let path = uri.path().trim_end_matches('/').to_owned();
        if let Some(endpoint) = ["/chat/completions", "/completions"].into_iter().find(|e| path.ends_with(e))
        {
            return Err(bad(&format!("`{text}` is one endpoint: leave out `{endpoint}`")));
        }
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        Ok(Self { scheme: scheme.to_owned(), host, authority: authority.to_string(), path })
    }

    /// The URL of an endpoint, e.g. `models`.
    pub(crate) fn url(&self, endpoint: &str) -> String {
        format!("{}://{}{}/{endpoint}", self.scheme, self.authority, self.path)
    }

    /// Host and port, for reports.
    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }

    /// Whether the server is this machine.
    pub(crate) fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// Whether what is sent can be read on its way.
    pub(crate) fn is_open(&self) -> bool {
        self.scheme == "http" && !self.is_loopback()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_endpoints() {
        let address = Address::parse("http://127.0.0.1:8000/v1/").unwrap();
        assert_eq!(address.url("chat/completions"), "http://127.0.0.1:8000/v1/chat/completions");
        assert_eq!(address.authority(), "127.0.0.1:8000");
        assert!(address.is_loopback() && !address.is_open());
        assert!(Address::parse("http://[::1]:1/v1").unwrap().is_loopback());
        assert!(Address::parse("http://gpu-box/v1").unwrap().is_open());
        let hosted = Address::parse("https://api.example.com").unwrap();
        assert_eq!(hosted.url("models"), "https://api.example.com/models");
        assert!(!hosted.is_open());
    }

    #[test]
    fn what_is_no_base_url_is_refused_and_credentials_are_not_repeated() {
        for (text, why) in [
            ("http://user:pass-word@host/v1", "credentials"),
            ("https://host/v1?api-key=x", "query"),
            ("ftp://host", "neither http nor https"),
            ("host:8000", "http://127.0.0.1:8000/v1"),
            ("http://host/v1/chat/completions", "leave out"),
            ("", "no URL"),
        ] {
            let error = Address::parse(text).unwrap_err();
            assert!(error.message.contains(why), "{text}: {error}");
            assert!(!error.message.contains("pass-word"), "{error}");
        }
    }
}
