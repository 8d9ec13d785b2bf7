//! Reading prepared data.

use super::ids::{Bytes, Numbers, Width};
use super::manifest::{Manifest, SplitInfo};
use crate::{Result, Split, TrainError};
use std::ops::Range;
use std::path::Path;

/// Numbers of a question's entry.
const ENTRY: usize = 4;

/// A question about a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The document's number.
    pub document: usize,
    /// What is asked.
    pub instruction: String,
    /// Its length in decoder tokens.
    pub instruction_tokens: usize,
    /// Decoder ids of the answer, without an end-of-sequence token.
    pub answer: Vec<u32>,
}

/// One split of prepared data, mapped into memory.
pub struct Dataset {
    encoder: Numbers,
    decoder: Numbers,
    chunks: Numbers,
    documents: Numbers,
    names: Vec<String>,
    questions: Numbers,
    instructions: Bytes,
    answers: Numbers,
    info: SplitInfo,
}

impl Dataset {
    /// Opens a split of `folder`.
    ///
    /// # Errors
    /// Files that are missing or not as long as the manifest says; entries that point nowhere.
    pub fn open(folder: &Path, split: Split) -> Result<Self> {
        let manifest = Manifest::of(folder)?;
        let info = match split {
            Split::Train => manifest.train.clone(),
            Split::Validation => manifest.validation.clone(),
        };
        let folder = folder.join(split.name());
        let width = |bytes: usize| {
            Width::from_bytes(bytes).ok_or_else(|| TrainError::file(&folder, format!("ids of {bytes} bytes")))
        };
        let (encoder, decoder) = (width(manifest.encoder_id_bytes)?, width(manifest.decoder_id_bytes)?);
        let numbers = |name: &str, width, len| Numbers::open(&folder.join(name), width, len);
        let path = folder.join("documents.txt");
        let names = std::fs::read_to_string(&path).map_err(TrainError::io(&path))?;
        let dataset = Self {
            encoder: numbers("encoder.ids", encoder, info.encoder_tokens)?,
            decoder: numbers("decoder.ids", decoder, info.decoder_tokens)?,
            chunks: numbers("chunks.idx", Width::Eight, 2 * (info.chunks + 1))?,
            documents: numbers("documents.idx", Width::Eight, info.documents + 1)?,
            names: names.lines().map(str::to_owned).collect(),
            questions: numbers("questions.idx", Width::Eight, ENTRY as u64 * info.questions)?,
            instructions: Bytes::open(&folder.join("questions.txt"))?,
            answers: numbers("answers.ids", decoder, info.answer_tokens)?,
            info,
        };
        dataset.check().map_err(|what| TrainError::file(&folder, what))?;
        Ok(dataset)
    }

    /// Looks at every entry once, so that no reading can go beyond a file later.
    fn check(&self) -> std::result::Result<(), String> {
        let rising = |what: &str, mut values: Box<dyn Iterator<Item = u64> + '_>, end: u64| {
            let mut last = 0;
            match values.all(|v| std::mem::replace(&mut last, v) <= v && v <= end) && last == end {
                true => Ok(()),
                false => Err(format!("the index of {what} is damaged: prepare the data again")),
            }
        };
        let (chunks, documents) = (self.info.chunks as usize, self.info.documents as usize);
        let chunk = |i: usize| move |c: usize| self.chunks.at(2 * c + i);
        rising("encoder ids", Box::new((0..=chunks).map(chunk(0))), self.info.encoder_tokens)?;
        rising("decoder ids", Box::new((0..=chunks).map(chunk(1))), self.info.decoder_tokens)?;
        rising("documents", Box::new((0..=documents).map(|d| self.documents.at(d))), self.info.chunks)?;
        let question = |i: usize| move |q: usize| self.questions.at(ENTRY * q + i);
        let questions = self.questions();
        let bytes = self.instructions.get().len() as u64;
        for (what, i, end) in [("instructions", 1, bytes), ("answers", 2, self.info.answer_tokens)] {
            rising(what, Box::new((0..questions).map(question(i)).chain([end])), end)?;
        }
        if bytes != self.info.instruction_bytes || self.names.len() != documents {
            return Err("texts are not as long as the manifest says: prepare the data again".into());
        }
        match (0..questions).map(question(0)).find(|d| *d >= self.info.documents) {
            Some(d) => Err(format!("a question about document {d}, which there is not")),
            None => Ok(()),
        }
    }

    /// What it holds.
    pub fn info(&self) -> &SplitInfo {
        &self.info
    }

    /// Documents.
    pub fn documents(&self) -> usize {
        self.info.documents as usize
    }

    /// Questions.
    pub fn questions(&self) -> usize {
        self.info.questions as usize
    }

    /// A document's hash and name.
    pub fn name(&self, document: usize) -> &str {
        self.names.get(document).map_or("", String::as_str)
    }

    /// Numbers of a document's chunks.
    pub fn chunks(&self, document: usize) -> Range<usize> {
        self.documents.at(document) as usize..self.documents.at(document + 1) as usize
    }

    /// The document that a chunk belongs to.
    pub fn document_of_chunk(&self, chunk: usize) -> usize {
        let (mut low, mut high) = (0, self.documents());
        while high - low > 1 {
            let middle = low.midpoint(high);
            if self.documents.at(middle) as usize <= chunk { low = middle } else { high = middle }
        }
        low
    }

    /// Encoder tokens of a chunk.
    pub fn encoder_len(&self, chunk: usize) -> usize {
        self.encoder_range(chunk).len()
    }

    /// Decoder tokens of a chunk.
    pub fn decoder_len(&self, chunk: usize) -> usize {
        self.decoder_range(chunk).len()
    }

    /// Encoder ids of a chunk, special tokens included.
    pub fn encoder_ids(&self, chunk: usize) -> Vec<u32> {
        self.encoder.ids(self.encoder_range(chunk))
    }

    /// Decoder ids of a chunk.
    pub fn decoder_ids(&self, chunk: usize) -> Vec<u32> {
        self.decoder.ids(self.decoder_range(chunk))
    }

    /// Document, instruction tokens and answer tokens of a question.
    pub fn question_size(&self, question: usize) -> (usize, usize, usize) {
        let at = |i: usize| self.questions.at(ENTRY * question + i) as usize;
        (at(0), at(3), self.answer_range(question).len())
    }

    /// A question.
    pub fn question(&self, question: usize) -> Question {
        let (document, instruction_tokens, _) = self.question_size(question);
        let end = self.next(question, 1, self.info.instruction_bytes);
        let start = self.questions.at(ENTRY * question + 1) as usize;
        Question {
            document,
            instruction: String::from_utf8_lossy(&self.instructions.get()[start..end]).into_owned(),
            instruction_tokens,
            answer: self.answers.ids(self.answer_range(question)),
        }
    }

    fn answer_range(&self, question: usize) -> Range<usize> {
        self.questions.at(ENTRY * question + 2) as usize..self.next(question, 2, self.info.answer_tokens)
    }

    /// Where the next question's part begins, which is where this one's ends.
    fn next(&self, question: usize, part: usize, end: u64) -> usize {
        let next = question + 1;
        (if next < self.questions() { self.questions.at(ENTRY * next + part) } else { end }) as usize
    }

    fn encoder_range(&self, chunk: usize) -> Range<usize> {
        self.chunks.at(2 * chunk) as usize..self.chunks.at(2 * chunk + 2) as usize
    }

    fn decoder_range(&self, chunk: usize) -> Range<usize> {
        self.chunks.at(2 * chunk + 1) as usize..self.chunks.at(2 * chunk + 3) as usize
    }
}
