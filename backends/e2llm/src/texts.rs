//! The contexts of a queue, read by all cores ahead of their encoding.

use crate::cache::ContextKey;
use crate::text::encoder_chunks;
use e2llm_backend::{BackendError, Chunker};
use e2llm_lm::Tokenizer;
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
#[derive(Debug)]
pub(crate) struct Chunks {
    /// Ids of each chunk.
    pub(crate) ids: Result<Vec<Vec<u32>>, BackendError>,
    /// How long that took.
    pub(crate) time: Duration,
}

/// A context, read by whoever needs it first.
#[derive(Debug)]
pub(crate) struct Text<'a> {
    pub(crate) context: &'a str,
    chunks: OnceLock<Chunks>,
    pub(crate) count: TokenCount,
}

impl<'a> Text<'a> {
    pub(crate) fn new(context: &'a str) -> Self {
        Self { context, chunks: OnceLock::new(), count: TokenCount::default() }
    }

    /// Its chunks, which are read now unless somebody has.
    pub(crate) fn chunks(&self, reader: &Reader) -> &Chunks {
        self.chunks.get_or_init(|| reader.read(self.context))
    }
}

/// Contexts, each once, in the order in which they are needed.
#[derive(Debug, Default)]
pub(crate) struct Texts<'a> {
    texts: Vec<Text<'a>>,
    places: BTreeMap<ContextKey, usize>,
}

impl<'a> Texts<'a> {
    /// Adds a context that is not there yet.
    pub(crate) fn add(&mut self, key: ContextKey, context: &'a str) {
        let next = self.texts.len();
        if *self.places.entry(key).or_insert(next) == next {
            self.texts.push(Text::new(context));
        }
    }

    pub(crate) fn get(&self, key: &ContextKey) -> Option<&Text<'a>> {
        self.places.get(key).map(|&place| &self.texts[place])
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Text<'a>> {
        self.texts.iter()
    }
}

/// From a context to its chunks' ids.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) chunker: Chunker,
    pub(crate) tokenizer: Tokenizer,
    /// Tokens that the encoder reads at most.
    pub(crate) window: usize,
}

impl Reader {
    fn read(&self, context: &str) -> Chunks {
        let start = Instant::now();
        let ids = encoder_chunks(context, &self.chunker, &self.tokenizer, self.window);
        Chunks { ids: ids.map_err(BackendError::from), time: start.elapsed() }
    }
}
