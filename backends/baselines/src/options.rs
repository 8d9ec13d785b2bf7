//! Reading options whose values have a range.

use e2llm_backend::{BackendError, ErrorKind, Options};

/// The error of an option's value.
pub(crate) fn bad_option(name: &str, what: &str) -> BackendError {
    BackendError::new(ErrorKind::BadRequest, format!("backend option `{name}`: {what}"))
}

/// A finite number above 0.
pub(crate) fn positive(options: &Options, name: &str) -> Result<f64, BackendError> {
    match options.parse::<f64>(name)? {
        Some(value) if value.is_finite() && value > 0.0 => Ok(value),
        _ => Err(bad_option(name, &format!("`{}`: it must be a number above 0", options.text(name)))),
    }
}

/// A whole number of at least `least`.
pub(crate) fn at_least(options: &Options, name: &str, least: usize) -> Result<usize, BackendError> {
    match options.parse::<usize>(name)? {
        Some(value) if value >= least => Ok(value),
        _ => {
            let what = format!("`{}`: it must be a whole number of at least {least}", options.text(name));
            Err(bad_option(name, &what))
        }
    }
}
