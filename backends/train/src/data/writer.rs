//! Writing one split.

use super::ids::{NumberWriter, Width};
use super::manifest::SplitInfo;
use crate::{Result, TrainError};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// A document's chunks as ids: the encoder's with its special tokens, the decoder's without.
pub(super) type ChunkIds = (Vec<u32>, Vec<u32>);

struct TextWriter {
    path: PathBuf,
    file: BufWriter<File>,
    len: u64,
}

impl TextWriter {
    fn create(path: PathBuf) -> Result<Self> {
        let file = BufWriter::new(File::create(&path).map_err(TrainError::io(&path))?);
        Ok(Self { path, file, len: 0 })
    }

    fn push(&mut self, text: &str) -> Result<()> {
        self.len += text.len() as u64;
        self.file.write_all(text.as_bytes()).map_err(TrainError::io(&self.path))
    }

    fn finish(mut self) -> Result<()> {
        let end = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        end.map_err(TrainError::io(&self.path))
    }
}

/// What the files of a split are called.
pub(super) const FILES: [&str; 8] = [
    "encoder.ids",
    "decoder.ids",
    "chunks.idx",
    "documents.idx",
    "documents.txt",
    "questions.idx",
    "questions.txt",
    "answers.ids",
];

/// The files of a split.
pub(super) struct SplitWriter {
    encoder: NumberWriter,
    decoder: NumberWriter,
    chunks: NumberWriter,
    documents: NumberWriter,
    names: TextWriter,
    questions: NumberWriter,
    instructions: TextWriter,
    answers: NumberWriter,
    info: SplitInfo,
}

impl SplitWriter {
    pub(super) fn create(folder: &Path, encoder: Width, decoder: Width) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(TrainError::io(folder))?;
        let [ids, own, chunks, documents, names, questions, instructions, answers] =
            FILES.map(|name| folder.join(name));
        Ok(Self {
            encoder: NumberWriter::create(ids, encoder)?,
            decoder: NumberWriter::create(own, decoder)?,
            chunks: NumberWriter::create(chunks, Width::Eight)?,
            documents: NumberWriter::create(documents, Width::Eight)?,
            names: TextWriter::create(names)?,
            questions: NumberWriter::create(questions, Width::Eight)?,
            instructions: TextWriter::create(instructions)?,
            answers: NumberWriter::create(answers, decoder)?,
            info: SplitInfo::default(),
        })
    }

    /// Adds a document; gives its number.
    pub(super) fn document(&mut self, hash: &str, name: &str, chunks: &[ChunkIds]) -> Result<u64> {
        self.documents.push(self.info.chunks)?;
        for (encoder, decoder) in chunks {
            self.chunks.push(self.encoder.len())?;
            self.chunks.push(self.decoder.len())?;
            self.encoder.extend(encoder)?;
            self.decoder.extend(decoder)?;
            self.info.chunks += 1;
        }
        let name: String = name.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        self.names.push(&format!("{hash} {name}\n"))?;
        self.info.documents += 1;
        Ok(self.info.documents - 1)
    }

    /// Adds a question about a document.
    pub(super) fn question(
        &mut self,
        document: u64,
        instruction: &str,
        tokens: usize,
        answer: &[u32],
    ) -> Result<()> {
        for value in [document, self.instructions.len, self.answers.len(), tokens as u64] {
            self.questions.push(value)?;
        }
        self.instructions.push(instruction)?;
        self.answers.extend(answer)?;
        self.info.questions += 1;
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<SplitInfo> {
        self.documents.push(self.info.chunks)?;
        self.chunks.push(self.encoder.len())?;
        self.chunks.push(self.decoder.len())?;
        self.info.encoder_tokens = self.encoder.len();
        self.info.decoder_tokens = self.decoder.len();
        self.info.answer_tokens = self.answers.len();
        self.info.instruction_bytes = self.instructions.len;
        let numbers = [self.encoder, self.decoder, self.chunks, self.documents, self.questions, self.answers];
        numbers.into_iter().try_for_each(NumberWriter::finish)?;
        self.names.finish()?;
        self.instructions.finish()?;
        Ok(self.info)
    }
}
