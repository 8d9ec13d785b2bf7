//! Lengths of texts, in one unit throughout.

use crate::{Error, Host, OptionInfo, Result, TaskOptions};
use std::sync::Arc;

/// Tokens of a text, where there is a tokenizer; by default there is none.
#[derive(Clone, Default)]
pub struct Counter(Option<Arc<Count>>);

type Count = dyn Fn(&str) -> Option<u64> + Send + Sync;

impl Counter {
    /// Counts with a function.
    pub fn new(count: impl Fn(&str) -> Option<u64> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(count)))
    }

    /// The tokenizer of the backend under test.
    pub fn of(host: Host) -> Self {
        Self::new(move |text| host.count_tokens(text))
    }

    fn count(&self, text: &str) -> Option<u64> {
        self.0.as_ref()?(text)
    }
}

/// What lengths are counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Tokens of the backend's tokenizer.
    Tokens,
    /// Runs of characters between white space.
    Words,
}

impl Unit {
    /// The option `unit` of a task whose texts have a length.
    pub fn option() -> OptionInfo {
        let help = "`tokens` of the backend, `words`, or `auto`: tokens where it has a tokenizer";
        OptionInfo::new("unit", "auto", help)
    }

    /// Reads the option; `None` for `auto`.
    ///
    /// # Errors
    /// Another unit.
    pub fn read(options: &TaskOptions) -> Result<Option<Self>> {
        match options.text("unit").as_deref() {
            None | Some("auto") => Ok(None),
            Some("tokens") => Ok(Some(Self::Tokens)),
            Some("words") => Ok(Some(Self::Words)),
            Some(other) => Err(Error::option("unit", format!("`{other}` is none of auto, tokens, words"))),
        }
    }

    /// As it stands in `meta.length_unit`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tokens => "tokens",
            Self::Words => "words",
        }
    }
}

/// Counts in one unit.
#[derive(Clone)]
pub struct Measure {
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
    pub fn new(unit: Option<Unit>, counter: Counter) -> Result<Self> {
        let overhead = if unit == Some(Unit::Words) { None } else { counter.count("") };
        let unit = unit.unwrap_or(if overhead.is_some() { Unit::Tokens } else { Unit::Words });
        if unit == Unit::Tokens && overhead.is_none() {
            return Err(Error::option("unit", "this backend has no tokenizer to count tokens with")
                .with_help("use unit=words, or a backend with a tokenizer"));
        }
        Ok(Self { unit, counter, overhead: overhead.unwrap_or(0) })
    }

    /// The unit.
    pub fn unit(&self) -> Unit {
        self.unit
    }

    /// Length of a whole text.
    ///
    /// # Errors
    /// A tokenizer that fails: the unit never changes half-way.
    pub fn whole(&self, text: &str) -> Result<u64> {
        match self.unit {
            Unit::Words => Ok(text.split_whitespace().count() as u64),
            Unit::Tokens => self
                .counter
                .count(text)
                .ok_or_else(|| Error::plugin("the backend's tokenizer failed to count a text")),
        }
    }

    /// Length of a piece of a text. The lengths of pieces add up to that of the whole, for tokens only nearly.
    ///
    /// # Errors
    /// As [`Measure::whole`].
    pub fn piece(&self, text: &str) -> Result<u64> {
        Ok(self.whole(text)?.saturating_sub(self.overhead))
    }
}
