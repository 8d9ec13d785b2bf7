//! Long texts for generated tasks: whole sentences, of text files or of built-in prose, with their lengths.

mod measure;
mod prose;
mod rng;
mod sentences;

use crate::{Error, Host, LogLevel, OptionInfo, Result, Source, TaskOptions};
use prose::Prose;
use std::path::{Path, PathBuf};

pub use measure::{Counter, Measure, Unit};
pub use rng::Rng;
pub use sentences::ends as sentence_ends;

/// The split that is generated.
pub const GENERATED: &str = "generated";

const HAYSTACK: &str = "haystack";

/// Whether a source is to be generated: by its split, or for want of a folder.
pub fn is_generated(source: &Source) -> bool {
    source.is_split(GENERATED) || (source.folder.is_none() && source.is_split("sample"))
}

/// The longest text that is made: far beyond any model's window, and no more than a machine's memory holds.
const LONGEST: u64 = 100_000_000;

/// Checks the lengths that a user asks for.
///
/// # Errors
/// One that no text is made of.
pub fn check_lengths(lengths: &[u64]) -> Result<()> {
    match lengths.iter().find(|l| **l > LONGEST) {
        Some(long) => {
            Err(Error::option("lengths", format!("{long} is more than {LONGEST}, the longest text made")))
        }
        None => Ok(()),
    }
}

/// The option `haystack` of a task with connected text.
pub fn folder_option(help: &str) -> OptionInfo {
    OptionInfo::new(HAYSTACK, "", help)
}

/// Reads it.
pub fn folder(options: &TaskOptions) -> Option<PathBuf> {
    options.text(HAYSTACK).filter(|s| !s.is_empty()).map(Into::into)
}

/// The files of a folder that the user names.
///
/// # Errors
/// A folder that is missing or has none.
pub fn asked_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let help = "a haystack is a folder of .txt files; without one, built-in prose is used";
    if !folder.is_dir() {
        return Err(Error::io(format!("no haystack folder {}", folder.display())).with_help(help));
    }
    let files = text_files(folder)?;
    if files.is_empty() {
        return Err(
            Error::io(format!("haystack folder {} has no .txt file", folder.display())).with_help(help)
        );
    }
    Ok(files)
}

/// A text of whole sentences.
#[derive(Debug, Default)]
pub struct Haystack {
    /// The text; ends with a sentence.
    text: String,
    /// Byte offset after each sentence.
    ends: Vec<usize>,
    /// Length up to and with each sentence.
    lengths: Vec<u64>,
}

impl Haystack {
    /// Adds the sentences of a text, as a paragraph. What follows its last sentence end is left out.
    fn grow(&mut self, more: &str, measure: &Measure) -> Result<()> {
        let more = more.trim_start_matches('\u{feff}').trim_start();
        let ends = sentences::ends(more);
        let Some(&last) = ends.last() else { return Ok(()) };
        if !self.text.is_empty() {
            self.text.push_str("\n\n");
        }
        let offset = self.text.len();
        self.text.push_str(&more[..last]);
        for end in ends {
            let start = self.ends.last().copied().unwrap_or(0);
            let end = offset + end;
            self.lengths.push(self.length() + measure.piece(&self.text[start..end])?);
            self.ends.push(end);
        }
        Ok(())
    }

    /// Built-in prose of at least `length`.
    ///
    /// # Errors
    /// A length that no story fills.
    pub fn told(seed: u64, length: u64, measure: &Measure) -> Result<Self> {
        let (mut hay, mut prose) = (Self::default(), Prose::new(seed)?);
        while hay.length() < length {
            let Some(episode) = prose.next_episode()? else {
                let have = format!("{} {}", hay.length(), measure.unit().name());
                return Err(Error::bad_request(format!(
                    "the built-in prose ends after {have}, {length} are needed"
                ))
                .with_help("take a folder of text files: haystack=DIR"));
            };
            hay.grow(&episode, measure)?;
        }
        Ok(hay)
    }

    /// The texts of `files`, in order, until there are at least `length`; from the first again where they are too
    /// short, with a warning.
    ///
    /// # Errors
    /// A file that cannot be read, and files without a sentence.
    pub fn read(
        files: &[PathBuf],
        length: u64,
        measure: &Measure,
        source: &Source,
        host: Host,
    ) -> Result<Self> {
        let mut hay = Self::default();
        let mut texts = Vec::new();
        for file in files {
            if hay.length() >= length {
                return Ok(hay);
            }
            source.note(file);
            let bytes =
                std::fs::read(file).map_err(|e| Error::io(format!("cannot read {}: {e}", file.display())))?;
            let text = String::from_utf8(bytes).map_err(|e| {
                Error::io(format!("{}: not UTF-8 at byte {}", file.display(), e.utf8_error().valid_up_to()))
            })?;
            let text = text.replace("\r\n", "\n");
            hay.grow(&text, measure)?;
            texts.push(text);
        }
        let once = hay.length();
        if once == 0 {
            let place = files.first().and_then(|f| f.parent()).unwrap_or(Path::new("."));
            return Err(Error::io(format!("the text files of {} hold no sentence", place.display())));
        }
        if once < length {
            let unit = measure.unit().name();
            let note = format!(
                "the haystack files have {once} {unit}; {length} are needed, so the text is repeated"
            );
            host.log(LogLevel::Warn, &note);
        }
        while hay.length() < length {
            for text in &texts {
                hay.grow(text, measure)?;
            }
        }
        Ok(hay)
    }

    /// Length of all sentences.
    pub fn length(&self) -> u64 {
        self.lengths.last().copied().unwrap_or(0)
    }

    /// Length of the first `n` sentences.
    pub fn length_of(&self, n: usize) -> u64 {
        n.checked_sub(1).map_or(0, |i| self.lengths[i])
    }

    /// How many sentences are within `length`.
    pub fn within(&self, length: u64) -> usize {
        self.lengths.partition_point(|&l| l <= length)
    }

    /// Sentences `from` to `to`, with the white space before them.
    pub fn slice(&self, from: usize, to: usize) -> &str {
        let end = |n: usize| n.checked_sub(1).map_or(0, |i| self.ends[i]);
        &self.text[end(from)..end(to)]
    }
}

/// All `.txt` files under a folder, sorted by their paths; licences and read-me files are none of the text.
///
/// # Errors
/// A folder that is missing or cannot be listed.
pub fn text_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(dir) = folders.pop() {
        let failed = |e: std::io::Error| Error::io(format!("cannot list {}: {e}", dir.display()));
        for entry in std::fs::read_dir(&dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            // a linked folder could lead in circles
            if path.is_dir() && !path.is_symlink() {
                folders.push(path);
            } else if path.is_file() && is_text(&path) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn is_text(path: &Path) -> bool {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_lowercase();
    let about = ["licen", "readme", "copying", "notice"];
    name.ends_with(".txt") && !about.iter().any(|a| name.starts_with(a))
}
