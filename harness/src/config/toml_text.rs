//! Reading TOML so that a mistake is shown where it is.

use crate::failure::{Failure, Result, did_you_mean};
use serde::de::DeserializeOwned;

/// Reads `text`; `what` and `name` say in messages what it is and where it comes from. Types that refuse unknown
/// fields get a did-you-mean.
///
/// # Errors
/// No TOML, or other fields or values than the type has; with line and column.
pub(crate) fn parse_toml<T: DeserializeOwned>(what: &str, name: &str, text: &str) -> Result<T> {
    toml::from_str(text).map_err(|e| {
        let message = e.message().trim_end().replace('\n', " ");
        let failure = Failure::usage(format!("{what} {name}: {message}")).help(meant(&message));
        match e.span() {
            Some(span) => failure.at(name, text, span),
            None => failure,
        }
    })
}

/// What was probably meant, out of serde's "unknown field `x`, expected one of `a`, `b`".
fn meant(message: &str) -> String {
    if !message.starts_with("unknown") {
        return String::new();
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    quoted.next().map(|given| did_you_mean(given, quoted)).unwrap_or_default()
}
