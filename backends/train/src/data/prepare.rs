//! From records to ids.

use super::ids::Width;
use super::manifest::{FORMAT, Manifest, SplitInfo};
use super::writer::{ChunkIds, FILES, SplitWriter};
use crate::order::generator;
use crate::{Result, Split, TrainError};
use e2llm_backend::Chunker;
use e2llm_backend::fingerprint::hex;
use e2llm_lm::{LmError, Tokenizer};
use rand_chacha::rand_core::Rng;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A question about a text, with its answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// Names the document; records of one document stay in one split. Without it the text itself is its name.
    pub document: Option<String>,
    /// The text.
    pub context: String,
    /// What is asked.
    pub instruction: String,
    /// What is to be answered.
    pub answer: String,
}

/// A record that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRecord {
    /// File and line.
    pub place: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Which split a record belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Assign {
    /// As the seed decides, by its document.
    BySeed,
    /// This one.
    To(Split),
}

/// A record on its way in.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// File and line.
    pub place: String,
    /// Where it goes.
    pub assign: Assign,
    /// The record, or what is wrong with the line.
    pub record: std::result::Result<Record, String>,
}

/// How records are prepared.
pub struct PrepareSettings<'a> {
    /// Cuts contexts.
    pub chunker: Chunker,
    /// Characters of a chunk, for the manifest.
    pub chunk_chars: usize,
    /// Overlap of chunks, for the manifest.
    pub chunk_overlap: f64,
    /// The encoder's tokenizer.
    pub encoder: &'a Tokenizer,
    /// Tokens it may read at once.
    pub encoder_window: usize,
    /// The decoder's tokenizer.
    pub decoder: &'a Tokenizer,
    /// Fraction of the documents that is kept for validation, where the seed decides.
    pub validation: f64,
    /// Seed of that.
    pub seed: u64,
    /// Fraction of the records that may be unusable.
    pub max_bad: f64,
}

/// What became of the records.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The manifest that was written.
    pub manifest: Manifest,
    /// The first unusable records.
    pub bad: Vec<BadRecord>,
}

/// Unusable records that are named; all are counted.
const NAMED: usize = 20;

/// Writes records as ids into `folder`, which must be new or empty. Records are streamed: what is held in memory is one
/// of them and 40 bytes for each document.
///
/// `progress` is called with the number of records so far; where it says no, preparation ends with an error.
///
/// # Errors
/// A folder with something in it; too many unusable records; a document in both splits; no usable record; text that
/// cannot be tokenised; anything that cannot be written.
pub fn prepare(
    records: impl Iterator<Item = Incoming>,
    folder: &Path,
    settings: &PrepareSettings<'_>,
    progress: &mut dyn FnMut(u64) -> bool,
) -> Result<Report> {
    std::fs::create_dir_all(folder).map_err(TrainError::io(folder))?;
    clear_unfinished(folder)?;
    let prepared = prepare_into(records, folder, settings, progress);
    if prepared.is_err() {
        // The error that matters is the first one.
        drop(clear_unfinished(folder));
    }
    prepared
}

/// Removes what a preparation left that did not come to its end: the files of both splits, and nothing that is not one of them.
fn clear_unfinished(folder: &Path) -> Result<()> {
    let splits = [Split::Train, Split::Validation].map(|split| folder.join(split.name()));
    let list = |folder: &Path| -> Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(folder).map_err(TrainError::io(folder))?;
        let paths: std::io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.path())).collect();
        paths.map_err(TrainError::io(folder))
    };
    let mut unfinished = Vec::new();
    for entry in list(folder)? {
        let inside = if splits.contains(&entry) && entry.is_dir() { list(&entry)? } else { vec![entry] };
        let foreign =
            |path: &&PathBuf| !path.file_name().is_some_and(|n| FILES.iter().any(|file| n == *file));
        if let Some(other) = inside.iter().find(foreign) {
            return Err(TrainError::Config(format!(
                "{} is not empty ({} is there): choose another folder (--out) or remove it",
                folder.display(),
                other.display()
            )));
        }
        unfinished.extend(inside);
    }
    for path in unfinished {
        std::fs::remove_file(&path).map_err(TrainError::io(&path))?;
    }
    for split in splits.iter().filter(|split| split.exists()) {
        std::fs::remove_dir(split).map_err(TrainError::io(split))?;
    }
    Ok(())
}

fn prepare_into(
    records: impl Iterator<Item = Incoming>,
    folder: &Path,
    settings: &PrepareSettings<'_>,
    progress: &mut dyn FnMut(u64) -> bool,
) -> Result<Report> {
    let (encoder, decoder) =
        (Width::of(settings.encoder.vocab_size()), Width::of(settings.decoder.vocab_size()));
    let mut preparation = Preparation {
        settings,
        train: SplitWriter::create(&folder.join("train"), encoder, decoder)?,
        validation: SplitWriter::create(&folder.join("validation"), encoder, decoder)?,
        documents: BTreeMap::new(),
        crossing: 0,
        bad_count: 0,
        bad: Vec::new(),
    };
    let mut count = 0;
    for incoming in records {
        count += 1;
        if count % 64 == 0 && !progress(count) {
            return Err(TrainError::Data("interrupted: nothing was kept".into()));
        }
        preparation.add(incoming)?;
    }
    progress(count);
    preparation.finish(folder, count, (encoder, decoder))
}

struct Preparation<'a> {
    settings: &'a PrepareSettings<'a>,
    train: SplitWriter,
    validation: SplitWriter,
    /// By hash of the text: split and number there.
    documents: BTreeMap<[u8; 32], (Split, u64)>,
    crossing: u64,
    bad_count: u64,
    bad: Vec<BadRecord>,
}

impl Preparation<'_> {
    fn add(&mut self, incoming: Incoming) -> Result<()> {
        let Incoming { place, assign, record } = incoming;
        let checked = record.and_then(|r| usable(&r).map(|()| r));
        let record = match checked {
            Ok(record) => record,
            Err(reason) => return self.refuse(place, reason),
        };
        let s = self.settings;
        let answer = s.decoder.encode(record.answer.trim(), false)?;
        if answer.is_empty() {
            return self.refuse(place, "the answer is no token for the decoder".into());
        }
        let hash: [u8; 32] = Sha256::digest(record.context.as_bytes()).into();
        let split = match assign {
            Assign::To(split) => split,
            Assign::BySeed => self.by_seed(&record, &hash),
        };
        let document = match self.documents.get(&hash) {
            Some((known, number)) if *known == split => *number,
            Some((Split::Validation, _)) => {
                self.crossing += 1;
                return Ok(());
            }
            Some((Split::Train, _)) => {
                let message =
                    format!("{place}: its document is to be validated on, but was already trained on");
                return Err(TrainError::Data(message + "; give validation files first"));
            }
            None => {
                let chunks = chunk_ids(&record.context, s)?;
                if chunks.is_empty() {
                    return self.refuse(place, "the context is no token for the encoder".into());
                }
                let name = record.document.as_deref().unwrap_or(&place);
                let number = self.writer(split).document(&hex(&hash), name, &chunks)?;
                self.documents.insert(hash, (split, number));
                number
            }
        };
        let tokens = s.decoder.encode(&record.instruction, false)?.len();
        self.writer(split).question(document, &record.instruction, tokens, &answer)
    }

    fn writer(&mut self, split: Split) -> &mut SplitWriter {
        match split {
            Split::Train => &mut self.train,
            Split::Validation => &mut self.validation,
        }
    }

    fn by_seed(&self, record: &Record, hash: &[u8; 32]) -> Split {
        let name = record.document.clone().unwrap_or_else(|| hex(hash));
        let draw = generator(self.settings.seed, &name, 0).next_u64() as f64 / u64::MAX as f64;
        if draw < self.settings.validation { Split::Validation } else { Split::Train }
    }

    fn refuse(&mut self, place: String, reason: String) -> Result<()> {
        self.bad_count += 1;
        if self.bad.len() < NAMED {
            self.bad.push(BadRecord { place, reason });
        }
        Ok(())
    }

    fn finish(self, folder: &Path, count: u64, width: (Width, Width)) -> Result<Report> {
        let s = self.settings;
        if self.bad_count as f64 > s.max_bad * count as f64 {
            let named: Vec<_> = self.bad.iter().map(|b| format!("{}: {}", b.place, b.reason)).collect();
            let n = self.bad_count;
            let message = format!("{n} of {count} records cannot be used:\n{}", named.join("\n"));
            return Err(TrainError::Data(message));
        }
        let (train, validation): (SplitInfo, SplitInfo) = (self.train.finish()?, self.validation.finish()?);
        if train.questions + validation.questions == 0 {
            return Err(TrainError::Data(format!("no usable record among {count}")));
        }
        let manifest = Manifest {
            format: FORMAT,
            seed: s.seed,
            chunk_chars: s.chunk_chars,
            chunk_overlap: s.chunk_overlap,
            encoder_window: s.encoder_window,
            encoder_tokenizer: Manifest::tokenizer_id(s.encoder)?,
            decoder_tokenizer: Manifest::tokenizer_id(s.decoder)?,
            encoder_id_bytes: width.0.bytes(),
            decoder_id_bytes: width.1.bytes(),
            train,
            validation,
            bad_records: self.bad_count,
            crossing_records: self.crossing,
        };
        // Last: a folder without a manifest is unfinished.
        manifest.write(folder)?;
        Ok(Report { manifest, bad: self.bad })
    }
}

fn usable(record: &Record) -> std::result::Result<(), String> {
    for (name, text) in
        [("context", &record.context), ("instruction", &record.instruction), ("answer", &record.answer)]
    {
        if text.trim().is_empty() {
            return Err(format!("the {name} is empty"));
        }
    }
    Ok(())
}

/// Ids of the chunks of a text, cut again where the encoder's window is too small for one.
fn chunk_ids(context: &str, s: &PrepareSettings<'_>) -> Result<Vec<ChunkIds>> {
    let chunks = s.chunker.chunks(context);
    let ids = |text: &str| -> std::result::Result<Vec<ChunkIds>, LmError> {
        let parts = e2llm::encoder_parts(text, s.encoder, s.encoder_window)?;
        parts.into_iter().map(|(part, ids)| Ok((ids, s.decoder.encode(part, false)?))).collect()
    };
    let all: std::result::Result<Vec<_>, _> = chunks.par_iter().map(|c| ids(c.text(context))).collect();
    Ok(all?.concat())
}
