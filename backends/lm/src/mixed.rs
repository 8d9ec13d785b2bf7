//! Sequences of tokens and soft tokens as a decoder reads them.

use crate::Llama;
use candle_core::{Result, Tensor, bail};
use e2llm_kernels::{IGNORED, gather_rows, gather_rows_onto};
use std::ops::Range;

/// A part of a sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Token ids.
    Ids(Vec<u32>),
    /// Rows of the table of soft tokens, each of which is used once at most.
    Soft(Range<usize>),
}

impl Part {
    fn len(&self) -> usize {
        match self {
            Self::Ids(ids) => ids.len(),
            Self::Soft(rows) => rows.len(),
        }
    }
}

impl Llama {
    /// Embeddings of sequences, padded on the right, `[B, T, D]`, and their lengths. `soft` is `[N, D]`; gradients reach
    /// it.
    ///
    /// # Errors
    /// A sequence of no position, soft tokens that are not there or used twice, ids beyond the vocabulary.
    pub fn embed_parts(
        &self,
        sequences: &[Vec<Part>],
        soft: Option<&Tensor>,
    ) -> Result<(Tensor, Vec<usize>)> {
        let lengths: Vec<usize> = sequences.iter().map(|s| s.iter().map(Part::len).sum()).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        if lengths.contains(&0) || longest == 0 {
            bail!("a batch or a sequence without tokens");
        }
        // For each position its token and its soft token, of which it has one or, where padded, neither.
        let total = sequences.len() * longest;
        let (mut ids, mut tokens, mut softs) = (Vec::new(), vec![IGNORED; total], vec![IGNORED; total]);
        for (i, sequence) in sequences.iter().enumerate() {
            let mut at = i * longest;
            for part in sequence {
                match part {
                    Part::Ids(own) => {
                        for (j, id) in own.iter().enumerate() {
                            tokens[at + j] = ids.len() as u32;
                            ids.push(*id);
                        }
                    }
                    Part::Soft(rows) => {
                        for (j, row) in rows.clone().enumerate() {
                            softs[at + j] = row as u32;
                        }
                    }
                }
                at += part.len();
            }
        }
        let tokens =
            if ids.is_empty() { None } else { Some(gather_rows(&self.embed(&ids)?.squeeze(0)?, &tokens)?) };
        let has_soft = softs.iter().any(|s| *s != IGNORED);
        let soft = match soft {
            Some(soft) if has_soft => Some(soft.to_dtype(self.dtype())?),
            None if has_soft => bail!("a sequence with soft tokens, and there are none"),
            _ => None,
        };
        let all = match (tokens, soft) {
            (Some(tokens), Some(soft)) => gather_rows_onto(&tokens, &soft, &softs)?,
            (Some(tokens), None) => tokens,
            (None, Some(soft)) => gather_rows(&soft, &softs)?,
            (None, None) => bail!("a batch without tokens"),
        };
        Ok((all.reshape((sequences.len(), longest, ()))?, lengths))
    }
}
