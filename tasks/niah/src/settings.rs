//! The options, and the grid they span.

use crate::needle::{Custom, Kind};
use e2llm_plugin::haystack::{self, Unit};
use e2llm_plugin::{Error, OptionInfo, Result, TaskOptions};
use std::path::PathBuf;

/// The user's choices.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) lengths: Option<Vec<u64>>,
    pub(crate) depths: Option<Vec<f64>>,
    pub(crate) needles: usize,
    pub(crate) repeats: u64,
    pub(crate) haystack: Option<PathBuf>,
    pub(crate) buffer: u64,
    pub(crate) unit: Option<Unit>,
    pub(crate) kind: Kind,
}

/// A point of the grid.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Cell {
    /// Length, the buffer included.
    pub(crate) length: u64,
    /// Percent of the haystack before the first needle.
    pub(crate) depth: f64,
    /// Which of several samples.
    pub(crate) repeat: u64,
}

impl Cell {
    /// Seeds of everything drawn for this cell: they do not depend on the rest of the grid.
    pub(crate) fn seeds(&self, seed: u64) -> [u64; 4] {
        [seed, self.length, self.depth.to_bits(), self.repeat]
    }
}

/// Lengths and depths where a folder of data is given.
const GRID: (&[u64], &[f64]) = (&[1000, 2000, 4000, 8000], &[0.0, 25.0, 50.0, 75.0, 100.0]);
/// The same for the embedded sample.
const SAMPLE: (&[u64], &[f64]) = (&[1500, 2500], &[0.0, 50.0, 100.0]);

impl Default for Settings {
    fn default() -> Self {
        Self {
            lengths: None,
            depths: None,
            needles: 1,
            repeats: 1,
            haystack: None,
            buffer: 200,
            unit: None,
            kind: Kind::Number,
        }
    }
}

/// The options, for help and checks.
pub(crate) fn options() -> Vec<OptionInfo> {
    [
        (
            "lengths",
            "1000,2000,4000,8000",
            "lengths of the texts, the buffer included (sample: 1500,2500 words)",
        ),
        ("depths", "0,25,50,75,100", "depths of the first needle in percent of the text (sample: 0,50,100)"),
        ("needles", "1", "needles per text; those after the first divide the rest of it evenly"),
        ("repeats", "1", "samples per length and depth, each with its own draws"),
        ("buffer", "200", "part of the length that is kept free for question and answer"),
        ("kind", "number", "`number` (seven digits) or `city` (an activity)"),
        ("needle", "", "your own needle; {key} and {value} in it are drawn"),
        ("question", "", "the question for your own needle; may name {key}"),
        ("answer", "", "the answer in your own needle, where it has no {value}"),
    ]
    .map(|(name, default, help)| OptionInfo::new(name, default, help))
    .into_iter()
    .chain([
        haystack::folder_option("folder of .txt files; else those of the data folder, else built-in prose"),
        Unit::option(),
    ])
    .collect()
}

impl Settings {
    /// Reads and checks the options.
    ///
    /// # Errors
    /// An option that is unknown or makes no sense, named.
    pub(crate) fn read(options: &TaskOptions) -> Result<Self> {
        options.only(&self::options())?;
        let defaults = Self::default();
        let settings = Self {
            lengths: options.list("lengths")?,
            depths: options.list("depths")?,
            needles: options.parse("needles")?.unwrap_or(defaults.needles),
            repeats: options.parse("repeats")?.unwrap_or(defaults.repeats),
            haystack: haystack::folder(options),
            buffer: options.parse("buffer")?.unwrap_or(defaults.buffer),
            unit: Unit::read(options)?,
            kind: kind(options)?,
        };
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<()> {
        let bounds = [("needles", self.needles as u64, 64), ("repeats", self.repeats, 10_000)];
        for (name, value, most) in bounds {
            if !(1..=most).contains(&value) {
                return Err(Error::option(name, format!("{value} is not between 1 and {most}")));
            }
        }
        if let Some(lengths) = &self.lengths {
            distinct("lengths", lengths)?;
            haystack::check_lengths(lengths)?;
            if let Some(short) = lengths.iter().find(|l| **l <= self.buffer) {
                return Err(Error::option(
                    "lengths",
                    format!("{short} leaves nothing after the buffer of {}", self.buffer),
                ));
            }
        }
        if let Some(depths) = &self.depths {
            distinct("depths", depths)?;
            if let Some(odd) = depths.iter().find(|d| !(0.0..=100.0).contains(*d)) {
                return Err(Error::option("depths", format!("{odd} is not between 0 and 100 percent")));
            }
        }
        let Kind::Custom(custom) = &self.kind else { return Ok(()) };
        if self.needles > 1 && !custom.sentence.contains("{value}") {
            return Err(Error::option("needles", "several needles of one wording need {value} in it"));
        }
        Ok(())
    }

    /// All cells, the repeats of a cell together, for the embedded sample or for a grid of the user's.
    ///
    /// # Errors
    /// A default length that the buffer exceeds.
    pub(crate) fn cells(&self, sample: bool) -> Result<Vec<Cell>> {
        let (lengths, depths) = if sample { SAMPLE } else { GRID };
        let lengths = self.lengths.as_deref().unwrap_or(lengths);
        let depths = self.depths.as_deref().unwrap_or(depths);
        if let Some(short) = lengths.iter().find(|l| **l <= self.buffer) {
            return Err(Error::option(
                "buffer",
                format!("{} leaves nothing of a length of {short}", self.buffer),
            ));
        }
        let at = |length: u64| {
            depths
                .iter()
                .flat_map(move |&depth| (0..self.repeats).map(move |repeat| Cell { length, depth, repeat }))
        };
        Ok(lengths.iter().flat_map(|&l| at(l)).collect())
    }
}

fn distinct<T: PartialEq + std::fmt::Display>(option: &str, items: &[T]) -> Result<()> {
    if items.is_empty() {
        return Err(Error::option(option, "the list is empty"));
    }
    let twice = items.iter().enumerate().find(|(i, item)| items[..*i].contains(item));
    twice.map_or(Ok(()), |(_, item)| Err(Error::option(option, format!("{item} is there twice"))))
}

fn kind(options: &TaskOptions) -> Result<Kind> {
    let own = |name: &str| options.text(name).filter(|s| !s.trim().is_empty());
    let Some(sentence) = own("needle") else {
        if let Some(name) = ["question", "answer"].into_iter().find(|n| own(n).is_some()) {
            return Err(Error::option(name, "it belongs to a needle of your own, option `needle`"));
        }
        return match options.text("kind").as_deref() {
            None | Some("number") => Ok(Kind::Number),
            Some("city") => Ok(Kind::City),
            Some(other) => Err(Error::option("kind", format!("`{other}` is none of number, city"))),
        };
    };
    let Some(question) = own("question") else {
        return Err(Error::option("needle", "a needle of your own needs a `question`"));
    };
    let answer = own("answer");
    match &answer {
        None if !sentence.contains("{value}") => {
            return Err(Error::option("needle", "without {value} in it, it needs an `answer`"));
        }
        Some(_) if sentence.contains("{value}") => {
            return Err(Error::option("answer", "the needle has {value}, which is the answer"));
        }
        Some(answer) if !sentence.to_lowercase().contains(&answer.to_lowercase()) => {
            return Err(Error::option("answer", format!("`{answer}` is not in the needle")));
        }
        _ => {}
    }
    Ok(Kind::Custom(Custom { sentence: sentence.trim().to_owned(), question, answer }))
}
