//! Encoded contexts, so that many questions of one document encode it once.

use crate::texts::TokenCount;
use candle_core::Tensor;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// A context as the decoder reads it.
#[derive(Debug, Clone)]
pub(crate) struct EncodedContext {
    /// Soft tokens in the order of the text, `[n, D]`.
    pub(crate) soft: Tensor,
    /// How long it is for the decoder.
    pub(crate) count: TokenCount,
}

impl EncodedContext {
    fn bytes(&self) -> usize {
        self.soft.elem_count() * self.soft.dtype().size_in_bytes()
    }
}

/// Identifies a context: two equal texts share their soft tokens, whatever document they are said to be of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ContextKey([u8; 32]);

impl ContextKey {
    pub(crate) fn new(context: &str) -> Self {
        Self(Sha256::digest(context.as_bytes()).into())
    }
}

/// The most recently used contexts of one model, up to a number of bytes. The last one is always kept, however
/// large, because the next request is likely to be about it again.
#[derive(Debug)]
pub(crate) struct ContextCache {
    capacity: usize,
    used: usize,
    clock: u64,
    entries: BTreeMap<ContextKey, (u64, EncodedContext)>,
}

impl ContextCache {
    /// An empty cache of at most `capacity` bytes.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity, used: 0, clock: 0, entries: BTreeMap::new() }
    }

    pub(crate) fn has(&self, key: &ContextKey) -> bool {
        self.entries.contains_key(key)
    }

    pub(crate) fn get(&mut self, key: &ContextKey) -> Option<EncodedContext> {
        self.clock += 1;
        let (last_used, context) = self.entries.get_mut(key)?;
        *last_used = self.clock;
        Some(context.clone())
    }

    pub(crate) fn insert(&mut self, key: ContextKey, context: EncodedContext) {
        self.clock += 1;
        self.used += context.bytes();
        if let Some((_, replaced)) = self.entries.insert(key, (self.clock, context)) {
            self.used -= replaced.bytes();
        }
        while self.used > self.capacity && self.entries.len() > 1 {
            let oldest = self.entries.iter().min_by_key(|(_, (last_used, _))| *last_used).map(|(k, _)| *k);
            if let Some((_, evicted)) = oldest.and_then(|k| self.entries.remove(&k)) {
                self.used -= evicted.bytes();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    fn context(rows: usize) -> EncodedContext {
        let soft = Tensor::zeros((rows, 1), DType::F32, &Device::Cpu).unwrap();
        EncodedContext { soft, count: TokenCount::default() }
    }

    fn key(i: usize) -> ContextKey {
        ContextKey::new(&i.to_string())
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut cache = ContextCache::new(3 * 4);
        (0..3).for_each(|i| cache.insert(key(i), context(1)));
        assert!(cache.get(&key(0)).is_some());
        cache.insert(key(3), context(1));
        let kept: Vec<_> = (0..4).map(|i| cache.get(&key(i)).is_some()).collect();
        assert_eq!(kept, [true, false, true, true]);
        assert_eq!(cache.used, 12);
    }

    #[test]
    fn one_context_too_large_for_the_cache_is_kept_alone() {
        let mut cache = ContextCache::new(8);
        cache.insert(key(0), context(1));
        cache.insert(key(1), context(100));
        assert!(cache.get(&key(0)).is_none());
        assert_eq!(cache.get(&key(1)).unwrap().soft.dims(), [100, 1]);
        cache.insert(key(2), context(2));
        assert!(cache.get(&key(1)).is_none());
        assert_eq!(cache.used, 8);
        cache.insert(key(2), context(1));
        assert_eq!(cache.used, 4);
    }
}
