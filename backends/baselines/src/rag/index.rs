//! A context's chunks in a form that can be ranked: what its text makes of it on any thread, and what the encoder adds.

use super::{Rag, Retriever, bm25::Bm25};
use crate::decoder::Decoder;
use e2llm_backend::{BackendError, Chunker};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// A context's chunks as its text makes them.
pub(super) struct Cut {
    context: String,
    /// Bytes of each chunk.
    pub(super) chunks: Vec<Range<usize>>,
    /// The encoder's ids of each, where there is one.
    passages: Vec<Vec<u32>>,
    pub(super) words: Option<Bm25>,
}

/// A context and its chunks' embeddings.
type Embedded = (Arc<Cut>, Arc<Vec<Vec<f32>>>);

/// The last context: questions about one document come one after another.
#[derive(Default)]
pub(super) struct Latest {
    cut: Mutex<Option<Arc<Cut>>>,
    embedded: Mutex<Option<Embedded>>,
}

impl Rag {
    /// The chunks of a context, none beyond the encoder's window.
    fn chunks(&self, context: &str) -> Result<Vec<Range<usize>>, BackendError> {
        let parts = |bytes: Range<usize>| {
            let mut parts = Vec::new();
            match &self.encoder {
                Some(encoder) => fit(context, bytes, encoder.model.window(), &mut parts, &|text| {
                    Ok(encoder.model.passage_len(text)?)
                })?,
                None => parts.push(bytes),
            }
            Ok(parts)
        };
        let all: Result<Vec<_>, BackendError> =
            self.chunker.chunks(context).into_par_iter().map(|chunk| parts(chunk.bytes)).collect();
        Ok(all?.concat())
    }

    /// What a context's text makes of it, or what it made the last time.
    pub(super) fn cut(&self, context: &str) -> Result<Arc<Cut>, BackendError> {
        let lock = || self.latest.cut.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cut) = lock().as_ref().filter(|cut| cut.context == context) {
            return Ok(Arc::clone(cut));
        }
        // Nobody waits for this: several threads cut contexts, and some may be cut twice.
        let chunks = self.chunks(context)?;
        let texts: Vec<&str> = chunks.iter().map(|bytes| &context[bytes.clone()]).collect();
        let passages = match &self.encoder {
            Some(encoder) => texts.par_iter().map(|text| encoder.model.passage_ids(text)).collect(),
            None => Ok(Vec::new()),
        };
        let needs_words = self.retriever != Retriever::Dense;
        let words = needs_words.then(|| Bm25::new(texts.iter().copied(), self.k1, self.b));
        let cut = Arc::new(Cut { context: context.to_owned(), chunks, passages: passages?, words });
        *lock() = Some(Arc::clone(&cut));
        Ok(cut)
    }

    /// Embeddings of a context's chunks, or those of the last time.
    pub(super) fn embeddings(
        &self,
        cut: &Arc<Cut>,
        decoder: &Decoder,
    ) -> Result<Arc<Vec<Vec<f32>>>, BackendError> {
        let mut latest = self.latest.embedded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = latest.as_ref().filter(|(known, _)| known.context == cut.context) {
            return Ok(Arc::clone(known));
        }
        let cancelled = || decoder.cancel.is_cancelled();
        let embeddings = match &self.encoder {
            Some(encoder) => encoder.model.embeddings(&cut.passages, self.wave, &cancelled)?,
            None => Vec::new(),
        };
        let embeddings = Arc::new(embeddings);
        *latest = Some((Arc::clone(cut), Arc::clone(&embeddings)));
        Ok(embeddings)
    }
}

/// Adds a chunk, in as many parts as the window needs.
fn fit(
    context: &str,
    bytes: Range<usize>,
    window: usize,
    out: &mut Vec<Range<usize>>,
    tokens: &impl Fn(&str) -> Result<usize, BackendError>,
) -> Result<(), BackendError> {
    let text = &context[bytes.clone()];
    let half = text.chars().count().div_ceil(2);
    let halves = Chunker::new(half.max(1), 0.0).map(|c| c.chunks(text)).unwrap_or_default();
    if tokens(text)? <= window || halves.len() < 2 {
        out.push(bytes);
        return Ok(());
    }
    let shift = |r: Range<usize>| bytes.start + r.start..bytes.start + r.end;
    halves.into_iter().try_for_each(|half| fit(context, shift(half.bytes), window, out, tokens))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_beyond_the_window_is_halved_and_nothing_is_lost() {
        let text = "abcdefghij. klmnopqrs";
        let mut out = Vec::new();
        fit(text, 2..text.len(), 6, &mut out, &|t| Ok(t.len())).unwrap();
        assert!(
            out.iter().all(|r| r.len() <= 6) && out[0].start == 2 && out[out.len() - 1].end == text.len()
        );
        assert!(out.windows(2).all(|w| w[0].end == w[1].start), "{out:?}");
        let mut one = Vec::new();
        fit("日", 0..3, 1, &mut one, &|t| Ok(t.len())).unwrap();
        assert!(one.len() == 1 && one[0] == (0..3), "a single character stays: {one:?}");
    }
}
