//! How prepared data was made, and what is in it.

use crate::{Result, TrainError};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::Path;

pub(super) const FILE: &str = "manifest.json";
pub(super) const FORMAT: u32 = 1;

/// What a split holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitInfo {
    /// Documents.
    pub documents: u64,
    /// Questions about them.
    pub questions: u64,
    /// Chunks of all documents.
    pub chunks: u64,
    /// Encoder tokens of all chunks, special ones included.
    pub encoder_tokens: u64,
    /// Decoder tokens of all chunks.
    pub decoder_tokens: u64,
    /// Decoder tokens of all answers.
    pub answer_tokens: u64,
    /// Bytes of all instructions.
    pub instruction_bytes: u64,
}

/// The content of `manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub(super) format: u32,
    /// Seed of the split.
    pub seed: u64,
    /// Characters of a chunk at most.
    pub chunk_chars: usize,
    /// Fraction of a chunk that the next one repeats.
    pub chunk_overlap: f64,
    /// Tokens the encoder reads at most; longer chunks were cut.
    pub encoder_window: usize,
    /// Of the encoder's tokenizer: what [`Manifest::tokenizer_id`] gives.
    pub encoder_tokenizer: String,
    /// Of the decoder's tokenizer.
    pub decoder_tokenizer: String,
    pub(super) encoder_id_bytes: usize,
    pub(super) decoder_id_bytes: usize,
    /// To learn from.
    pub train: SplitInfo,
    /// To measure on.
    pub validation: SplitInfo,
    /// Records that could not be used.
    pub bad_records: u64,
    /// Records left out of training because their document is in the validation split.
    pub crossing_records: u64,
}

impl Manifest {
    /// Reads a folder's manifest.
    ///
    /// # Errors
    /// A file that is missing, damaged or of another format.
    pub fn of(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        if !path.exists() {
            let at = folder.display();
            return Err(TrainError::Config(format!(
                "no prepared data in {at}: make it with `e2llm-bench prepare --out {at}`"
            )));
        }
        let text = std::fs::read_to_string(&path).map_err(TrainError::io(&path))?;
        let manifest: Self = serde_json::from_str(&text).map_err(|e| TrainError::file(&path, e))?;
        if manifest.format != FORMAT {
            let message = format!("format {}, expected {FORMAT}: prepare the data again", manifest.format);
            return Err(TrainError::file(&path, message));
        }
        Ok(manifest)
    }

    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(FILE);
        let text = serde_json::to_string_pretty(self).map_err(|e| TrainError::file(&path, e))?;
        std::fs::write(&path, text + "\n").map_err(TrainError::io(&path))
    }

    /// A hash of everything above and of the documents, for resuming on the same data only.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn fingerprint(&self, folder: &Path) -> Result<String> {
        let mut hash = Sha256::new();
        for file in [FILE, "train/documents.txt", "validation/documents.txt", "train/questions.idx"] {
            let path = folder.join(file);
            hash.update(std::fs::read(&path).map_err(TrainError::io(&path))?);
        }
        Ok(e2llm_backend::fingerprint::hex(&hash.finalize()))
    }

    /// Identifies a tokenizer by what it makes of a text with all that tokenizers differ in, and by its size.
    ///
    /// # Errors
    /// A tokenizer that refuses the text.
    pub fn tokenizer_id(tokenizer: &e2llm_lm::Tokenizer) -> Result<String> {
        const TEXT: &str = "The Quick brown-fox's 12345 jumps; na\u{ef}ve \u{65e5}\u{672c}\u{2603}\n\n  tabs\tand <s>[MASK]</s> spaces  ";
        let ids = tokenizer.encode(TEXT, true)?;
        let mut hash = Sha256::new();
        hash.update((tokenizer.vocab_size() as u64).to_le_bytes());
        for id in ids {
            hash.update(id.to_le_bytes());
        }
        Ok(e2llm_backend::fingerprint::hex(&hash.finalize()))
    }
}
