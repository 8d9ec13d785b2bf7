//! The options.

use crate::subtasks::{SUBTASKS, Subtask, subtask};
use e2llm_plugin::haystack::{self, Unit};
use e2llm_plugin::{Error, OptionInfo, Result, TaskOptions};
use std::path::PathBuf;

/// The user's choices.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Those asked for; none for all that can be made.
    pub(crate) tasks: Option<Vec<Subtask>>,
    pub(crate) lengths: Vec<u64>,
    pub(crate) samples: usize,
    pub(crate) haystack: Option<PathBuf>,
    pub(crate) reserve: u64,
    pub(crate) unit: Option<Unit>,
    /// Whether the user chose anything of what is made.
    pub(crate) asked: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tasks: None,
            lengths: vec![4096],
            samples: 20,
            haystack: None,
            reserve: 64,
            unit: None,
            asked: false,
        }
    }
}

/// The options, for help and checks.
pub(crate) fn options() -> Vec<OptionInfo> {
    let names = SUBTASKS.map(|s| s.name).join(", ");
    [
        ("tasks", "all that can be made", format!("of RULER's tasks: {names}")),
        (
            "lengths",
            "4096",
            "lengths of the prompts with their answers, e.g. 4k,8k,16k,32k,64k,128k".to_owned(),
        ),
        ("samples", "20", "samples per task and length (RULER's own figures are of 500)".into()),
        ("reserve", "64", "part of the length that is kept free for the model's chat template".into()),
    ]
    .map(|(name, default, help)| OptionInfo::new(name, default, help))
    .into_iter()
    .chain([
        haystack::folder_option("folder of .txt files for tasks with connected text; else built-in prose"),
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
            tasks: tasks(options)?,
            lengths: match options.list::<String>("lengths")? {
                Some(all) => all.iter().map(|l| length(l)).collect::<Result<_>>()?,
                None => defaults.lengths,
            },
            samples: options.parse("samples")?.unwrap_or(defaults.samples),
            haystack: haystack::folder(options),
            reserve: options.parse("reserve")?.unwrap_or(defaults.reserve),
            asked: ["tasks", "lengths", "samples", "haystack"].iter().any(|o| options.text(o).is_some()),
            unit: Unit::read(options)?,
        };
        if settings.lengths.is_empty() {
            return Err(Error::option("lengths", "the list is empty"));
        }
        haystack::check_lengths(&settings.lengths)?;
        if !(1..=10_000).contains(&settings.samples) {
            return Err(Error::option("samples", format!("{} is not between 1 and 10000", settings.samples)));
        }
        Ok(settings)
    }
}

fn tasks(options: &TaskOptions) -> Result<Option<Vec<Subtask>>> {
    let Some(names) = options.list::<String>("tasks")? else { return Ok(None) };
    let find = |name: &String| {
        subtask(name).ok_or_else(|| {
            Error::option("tasks", format!("RULER has no `{name}`"))
                .with_help(format!("they are: {}", SUBTASKS.map(|s| s.name).join(", ")))
        })
    };
    let mut found: Vec<Subtask> = Vec::new();
    for task in names.iter().map(find) {
        let task = task?;
        if !found.iter().any(|f| f.name == task.name) {
            found.push(task);
        }
    }
    if found.is_empty() { Err(Error::option("tasks", "the list is empty")) } else { Ok(Some(found)) }
}

/// A length; `k` stands for 1024.
fn length(text: &str) -> Result<u64> {
    let (digits, times) = match text.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1024),
        None => (text, 1),
    };
    let number: Option<u64> = digits.parse().ok();
    number
        .and_then(|n| n.checked_mul(times))
        .filter(|n| *n > 0)
        .ok_or_else(|| Error::option("lengths", format!("`{text}` is no length such as 4096 or 4k")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_checked() {
        let read = |name: &str, value: &str| {
            Settings::read(&TaskOptions([(name.to_owned(), value.into())].into_iter().collect()))
        };
        assert_eq!(read("lengths", "4k,1000,128K").unwrap().lengths, [4096, 1000, 131_072]);
        assert_eq!(read("tasks", "vt,cwe,vt").unwrap().tasks.unwrap().len(), 2);
        for (name, value, what) in [
            ("lengths", "4m", "`4m` is no length"),
            ("lengths", "0", "`0` is no length"),
            ("lengths", "4k,99999999999999", "99999999999999 is more than 100000000"),
            ("lengths", "", "the list is empty"),
            ("tasks", "niah", "RULER has no `niah`"),
            ("samples", "0", "0 is not between"),
            ("unit", "letters", "`letters` is none of"),
            ("depth", "1", "unknown task option `depth`"),
        ] {
            let error = read(name, value).unwrap_err();
            assert!(error.message.contains(what), "{error}");
        }
    }
}
