//! The key of a server: sent, never shown.

use crate::settings::bad_option;
use e2llm_backend::BackendError;
use std::fmt;

/// Where the key is where no variable is named.
pub(crate) const DEFAULT_VARIABLE: &str = "OPENAI_API_KEY";

/// A key out of an environment variable, or none.
#[derive(Clone)]
pub(crate) struct Key {
    value: Option<String>,
    variable: String,
}

impl Key {
    /// The key in the variable `named`, else in `OPENAI_API_KEY`; the latter need not be set.
    ///
    /// # Errors
    /// A named variable that is not set; a value that no HTTP header can hold.
    pub(crate) fn read(
        named: &str,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, BackendError> {
        let variable = if named.is_empty() { DEFAULT_VARIABLE } else { named };
        let value = environment(variable).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        if value.is_none() && !named.is_empty() {
            return Err(bad_option("key_env", &format!("the environment variable `{named}` is not set")));
        }
        if value.as_ref().is_some_and(|v| !v.bytes().all(|b| b.is_ascii_graphic())) {
            let what = format!("the value of `{variable}` has characters that no key has");
            return Err(bad_option("key_env", &what));
        }
        Ok(Self { value, variable: variable.to_owned() })
    }

    /// No key.
    pub(crate) fn none() -> Self {
        Self { value: None, variable: DEFAULT_VARIABLE.to_owned() }
    }

    /// Whether there is one.
    pub(crate) fn is_some(&self) -> bool {
        self.value.is_some()
    }

    /// The variable it is looked for in.
    pub(crate) fn variable(&self) -> &str {
        &self.variable
    }

    /// The value of the header `Authorization`.
    pub(crate) fn authorization(&self) -> Option<String> {
        self.value.as_ref().map(|v| format!("Bearer {v}"))
    }

    /// Whether `text` contains the key.
    pub(crate) fn is_in(&self, text: &str) -> bool {
        self.value.as_ref().is_some_and(|v| text.contains(v.as_str()))
    }

    /// `text` without the key.
    pub(crate) fn redact(&self, text: &str) -> String {
        match &self.value {
            Some(value) => text.replace(value.as_str(), "[redacted]"),
            None => text.to_owned(),
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.is_some() { "redacted" } else { "not set" };
        write!(f, "Key([{state}] {})", self.variable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_sent_but_never_shown() {
        let key =
            Key::read("", &|name| (name == DEFAULT_VARIABLE).then(|| " sk-secret-1 \n".into())).unwrap();
        assert_eq!(key.authorization().unwrap(), "Bearer sk-secret-1");
        assert!(!format!("{key:?} {key:#?}").contains("sk-secret"));
        assert_eq!(key.redact("bad key sk-secret-1!"), "bad key [redacted]!");
        assert!(key.is_in("{\"k\":\"sk-secret-1\"}"));
    }

    #[test]
    fn a_named_variable_must_be_set() {
        let none = |_: &str| None;
        assert!(!Key::read("", &none).unwrap().is_some());
        let error = Key::read("MY_KEY", &none).unwrap_err();
        assert!(error.message.contains("`MY_KEY` is not set"), "{error}");
        let error = Key::read("MY_KEY", &|_| Some("two\nlines-of-secret".into())).unwrap_err();
        assert!(!error.message.contains("secret"), "{error}");
    }
}
