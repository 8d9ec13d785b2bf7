//! The contexts of a batch, read by all cores before the first is encoded.

use crate::cache::ContextKey;
use crate::text::encoder_chunks;
use e2llm_backend::{BackendError, Chunker};
use e2llm_lm::Tokenizer;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How many tokens a context has for the decoder's tokenizer. Only its usage tells, so it is counted beside the work.
#[derive(Debug, Clone, Default)]
pub(crate) struct TokenCount(Arc<OnceLock<usize>>);

impl TokenCount {
    /// Counts `context`, unless somebody has. Text the tokenizer refuses is counted by its bytes: no token is shorter.
    pub(crate) fn of(&self, context: &str, tokenizer: &Tokenizer) -> usize {
        *self.0.get_or_init(|| tokenizer.encode(context, false).map_or(context.len(), |ids| ids.len()))
    }
}

/// A context as ids of the encoder.
#[derive(Debug, Clone)]
pub(crate) struct Text<'a> {
    pub(crate) context: &'a str,
    /// Ids of each chunk.
    pub(crate) chunks: Result<Vec<Vec<u32>>, BackendError>,
    /// How long that took.
    pub(crate) time: Duration,
    pub(crate) count: TokenCount,
}

/// From a context to its chunks' ids.
pub(crate) struct Reader<'a> {
    pub(crate) chunker: &'a Chunker,
    pub(crate) tokenizer: &'a Tokenizer,
    /// Tokens that the encoder reads at most.
    pub(crate) window: usize,
}

impl Reader<'_> {
    /// One context.
    pub(crate) fn read<'a>(&self, context: &'a str) -> Text<'a> {
        let start = Instant::now();
        let chunks = encoder_chunks(context, self.chunker, self.tokenizer, self.window);
        let chunks = chunks.map_err(BackendError::from);
        Text { context, chunks, time: start.elapsed(), count: TokenCount::default() }
    }

    /// Many contexts side by side.
    pub(crate) fn read_all<'a>(
        &self,
        contexts: BTreeMap<ContextKey, &'a str>,
    ) -> BTreeMap<ContextKey, Text<'a>> {
        contexts.into_par_iter().map(|(key, context)| (key, self.read(context))).collect()
    }
}
