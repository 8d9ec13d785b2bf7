//! Official prompts: wordings that come with a benchmark's own files. They are not ours to ship, so they are read at
//! run time from the user's copy.
//!
//! Every task takes the standard option `prompt` (`run --prompt`): `e2llm`, our own wording, or another that the task
//! has. One deviation from the official scripts is common to all: they put values into a template one after another,
//! so that a document that contains the next placeholder is rewritten; here all are put in in a single pass.

mod longbench;
mod template;
mod zeroscrolls;

use crate::json_lines::open_text;
use crate::{Error, Example, OptionInfo, Prompt, Result, Source, TaskOptions};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

pub use longbench::LongBench;
pub use template::Template;
pub(crate) use template::fill;
pub use zeroscrolls::{ZEROSCROLLS, ZeroScrolls};

/// The option's name.
pub const PROMPT: &str = "prompt";
/// Our own wording, the default.
pub const OURS: &str = "e2llm";
/// The wording of the benchmark's own files.
pub const OFFICIAL: &str = "official";
/// SCROLLS' inputs, see [`scrolls`].
pub const SCROLLS: &str = "scrolls";

const TEMPLATES: &str = "templates";

/// Where official files are looked for inside a folder: as data sets and repositories keep them.
const PLACES: [&str; 5] = ["", "prompts", "config", "raw", "raw/prompts"];

/// The wording a task's prompts have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wording {
    style: String,
    templates: Option<PathBuf>,
}

impl Default for Wording {
    fn default() -> Self {
        Self { style: OURS.into(), templates: None }
    }
}

impl Wording {
    /// The option `prompt` of a task that has `styles` besides our own.
    pub fn option(styles: &[&str]) -> OptionInfo {
        let all = [&[OURS], styles].concat().join(", ");
        OptionInfo {
            name: PROMPT.into(),
            default: OURS.into(),
            help: format!("wording of the prompts: {all}"),
        }
    }

    /// The option `templates` of a task that reads official files.
    pub fn templates_option() -> OptionInfo {
        OptionInfo {
            name: TEMPLATES.into(),
            default: String::new(),
            help: "folder of the official prompt files; else the data folder".into(),
        }
    }

    /// Reads the two options.
    ///
    /// # Errors
    /// A style that is neither ours nor among `styles`; the message names those there are.
    pub fn read(options: &TaskOptions, styles: &[&str]) -> Result<Self> {
        let style = options.text(PROMPT).unwrap_or_else(|| OURS.into());
        if style != OURS && !styles.contains(&style.as_str()) {
            let all = [&[OURS], styles].concat().join(", ");
            return Err(Error::bad_request(format!("this task has no prompts of style `{style}`"))
                .with_help(format!("it has: {all}")));
        }
        let templates = options.text(TEMPLATES).filter(|t| !t.is_empty()).map(Into::into);
        Ok(Self { style, templates })
    }

    /// The style.
    pub fn style(&self) -> &str {
        &self.style
    }

    /// Whether it is `style`.
    pub fn is(&self, style: &str) -> bool {
        self.style == style
    }

    /// The text of an official file, which is noted for the run's manifest, and its path.
    ///
    /// # Errors
    /// A file that is missing: the message names it and where it belongs.
    pub fn file(&self, source: &Source, name: &str) -> Result<(String, PathBuf)> {
        let missing = |what: &str| {
            Err(Error::io(format!(
                "prompt style `{}` needs {name}, a file of the official release; {what}",
                self.style
            ))
            .with_help(format!(
                "put {name} into the task's data folder (--data), or name its folder with the task's option `templates`"
            )))
        };
        let Some(folder) = self.templates.as_deref().or(source.folder.as_deref()) else {
            return missing("the embedded sample comes without it");
        };
        let Some(path) = PLACES.map(|p| folder.join(p).join(name)).into_iter().find(|p| p.is_file()) else {
            let tried = "neither in it nor in its folders prompts, config, raw, raw/prompts";
            return missing(&format!("it is not in {} ({tried})", folder.display()));
        };
        source.note(&path);
        Ok((read_text(&path)?, path))
    }
}

fn read_text(path: &Path) -> Result<String> {
    let mut text = String::new();
    open_text(path)?
        .read_to_string(&mut text)
        .map_err(|e| Error::io(format!("cannot read {}: {e}", path.display())))?;
    Ok(text)
}

/// A prompt as SCROLLS forms its inputs: the question (and its options), an empty line, the document; raw, as it is
/// meant for models that were trained on it.
///
/// Source: Shaham et al., SCROLLS, EMNLP 2022, section 3.
pub fn scrolls(example: &Example, max_new_tokens: usize) -> Prompt {
    let template = "{instruction}\n\n{context}";
    Prompt { style: SCROLLS.into(), chat: false, ..Prompt::new(example, template, max_new_tokens) }
}

/// The wordings of a data set that LongBench and the two SCROLLS benchmarks have taken up: `official` is LongBench's.
#[derive(Debug, Default)]
pub struct Published {
    wording: Wording,
    longbench: Loaded<LongBench>,
}

impl Published {
    /// Reads the options; `styles` are those the task has besides ours.
    ///
    /// # Errors
    /// As [`Wording::read`].
    pub fn read(options: &TaskOptions, styles: &[&str]) -> Result<Self> {
        Ok(Self { wording: Wording::read(options, styles)?, longbench: Loaded::default() })
    }

    /// Whether the wording is `style`.
    pub fn is(&self, style: &str) -> bool {
        self.wording.is(style)
    }

    /// Reads the files that the wording needs.
    ///
    /// # Errors
    /// As [`LongBench::read`].
    pub fn open(&self, source: &Source) -> Result<()> {
        if self.wording.is(OFFICIAL) {
            self.longbench.set(LongBench::read(&self.wording, source)?);
        }
        Ok(())
    }

    /// The prompt of an example, of LongBench's `dataset`; `None` where the wording is ours. SCROLLS' answers have
    /// `max_new_tokens` at most.
    ///
    /// # Errors
    /// An example without a prompt in this style.
    pub fn prompt(&self, example: &Example, dataset: &str, max_new_tokens: usize) -> Result<Option<Prompt>> {
        Ok(Some(match self.wording.style() {
            OFFICIAL => self.longbench.get()?.prompt(dataset, &example.context, &example.instruction)?,
            SCROLLS => scrolls(example, max_new_tokens),
            ZEROSCROLLS => ZeroScrolls::prompt(example, max_new_tokens)?,
            _ => return Ok(None),
        }))
    }
}

/// What a task reads when it is opened and needs for its prompts, which are made from an example alone.
#[derive(Debug)]
pub struct Loaded<T>(Mutex<Option<Arc<T>>>);

impl<T> Default for Loaded<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T> Loaded<T> {
    /// Keeps what the last opened source has.
    pub fn set(&self, value: T) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(value));
    }

    /// What was read.
    ///
    /// # Errors
    /// Nothing was opened yet.
    pub fn get(&self) -> Result<Arc<T>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        kept.ok_or_else(|| Error::bad_request("an official prompt was asked for before its data was opened"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(pairs: &[(&str, &str)]) -> TaskOptions {
        TaskOptions(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).into())).collect())
    }

    #[test]
    fn a_style_that_is_not_there_is_named_with_those_that_are() {
        assert!(Wording::read(&options(&[]), &[]).unwrap().is(OURS));
        assert!(Wording::read(&options(&[("prompt", "official")]), &[OFFICIAL]).unwrap().is(OFFICIAL));
        let error = Wording::read(&options(&[("prompt", "offical")]), &[OFFICIAL, "cot"]).unwrap_err();
        assert_eq!(error.message, "this task has no prompts of style `offical`");
        assert_eq!(error.help, "it has: e2llm, official, cot");
        // a task that does not know the option has our wording
        options(&[("prompt", "e2llm")]).only(&[]).unwrap();
        let error = options(&[("prompt", "official")]).only(&[]).unwrap_err();
        assert_eq!(
            (error.message.as_str(), error.help.as_str()),
            ("this task has no prompts of style `official`", "it has: e2llm")
        );
    }

    #[test]
    fn files_are_found_and_noted_or_named() {
        let dir = tempfile::tempdir().unwrap();
        let wording = Wording::read(&options(&[("prompt", "official")]), &[OFFICIAL]).unwrap();
        let source = Source::folder(dir.path(), "test");
        let error = wording.file(&source, "0shot.txt").unwrap_err();
        assert!(error.message.contains("needs 0shot.txt") && error.help.contains("--data"), "{error}");
        assert!(
            wording.file(&Source::sample(), "0shot.txt").unwrap_err().message.contains("embedded sample")
        );
        std::fs::create_dir_all(dir.path().join("raw/prompts")).unwrap();
        std::fs::write(dir.path().join("raw/prompts/0shot.txt"), "a\nb").unwrap();
        assert_eq!(wording.file(&source, "0shot.txt").unwrap().0, "a\nb");
        assert_eq!(source.opened_files(), [dir.path().join("raw/prompts/0shot.txt")]);
        let elsewhere = dir.path().join("raw").display().to_string();
        let wording =
            Wording::read(&options(&[("prompt", "official"), ("templates", &elsewhere)]), &[OFFICIAL]);
        assert_eq!(wording.unwrap().file(&Source::sample(), "0shot.txt").unwrap().0, "a\nb");
    }
}
