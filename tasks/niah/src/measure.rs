//! Lengths of texts, in one unit throughout.

use e2llm_plugin::{Error, Host, Result};
use std::sync::Arc;

/// Tokens of a text, where there is a tokenizer.
pub(crate) type Counter = Arc<dyn Fn(&str) -> Option<u64> + Send + Sync>;

/// The tokenizer of the backend under test.
pub(crate) fn tokenizer(host: Host) -> Counter {
    Arc::new(move |text| host.count_tokens(text))
}

/// What lengths are counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Tokens of the backend's tokenizer.
    Tokens,
    /// Runs of characters between white space.
    Words,
}

impl Unit {
    /// As it stands in `meta.length_unit`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tokens => "tokens",
            Self::Words => "words",
        }
    }
}

/// Counts in one unit.
#[derive(Clone)]
pub(crate) struct Measure {
    unit: Unit,
    counter: Counter,
    /// What the tokenizer adds to every text, such as a begin-of-text token.
    overhead: u64,
}

impl Measure {
    /// A measure in `unit`; without one, tokens where there is a tokenizer and words where there is none.
    ///
    /// # Errors
    /// Tokens asked for without a tokenizer.
    pub(crate) fn new(unit: Option<Unit>, counter: Counter) -> Result<Self> {
        let overhead = if unit == Some(Unit::Words) { None } else { counter("") };
        let unit = unit.unwrap_or(if overhead.is_some() { Unit::Tokens } else { Unit::Words });
        if unit == Unit::Tokens && overhead.is_none() {
            return Err(Error::bad_request(
                "task option `unit`: this backend has no tokenizer to count tokens with",
            )
            .with_help("use unit=words, or a backend with a tokenizer"));
        }
        Ok(Self { unit, counter, overhead: overhead.unwrap_or(0) })
    }

    /// The unit.
    pub(crate) fn unit(&self) -> Unit {
        self.unit
    }

    /// Length of a whole text.
    ///
    /// # Errors
    /// A tokenizer that fails: the unit never changes half-way.
    pub(crate) fn whole(&self, text: &str) -> Result<u64> {
        match self.unit {
            Unit::Words => Ok(text.split_whitespace().count() as u64),
            Unit::Tokens => (self.counter)(text)
                .ok_or_else(|| Error::plugin("the backend's tokenizer failed to count a text")),
        }
    }

    /// Length of a piece of a text. The lengths of pieces add up to that of the whole, for tokens only nearly.
    ///
    /// # Errors
    /// As [`Measure::whole`].
    pub(crate) fn piece(&self, text: &str) -> Result<u64> {
        Ok(self.whole(text)?.saturating_sub(self.overhead))
    }
}
