//! Base weights that several models have in common: read once, held once.

use crate::Result;
use crate::linear::Weight;
use candle_core::Device;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

thread_local! {
    /// The store that models built on this thread share, if any.
    static CURRENT: RefCell<Option<TensorStore>> = const { RefCell::new(None) };
}

/// Tensors by the file they are from, their name, how they are held and where. Clones are the same store.
///
/// A store is entered ([`TensorStore::share`]) and not handed over: every method that loads base weights through this
/// crate shares them without knowing of it. Tensors are never changed in place, so sharing cannot be noticed; what a
/// model makes out of them, such as weights with a merged adapter, is its own.
#[derive(Debug, Clone, Default)]
pub struct TensorStore(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
struct Held {
    weights: BTreeMap<Key, Weight>,
    counts: StoreCounts,
}

/// How often a store was asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreCounts {
    /// Tensors read from their files.
    pub read: u64,
    /// Tensors that were there already.
    pub shared: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    files: Arc<[File]>,
    name: String,
    /// Element type, or `quantised`.
    held: String,
    device: String,
}

/// A file as it was when it was read: one that has changed is another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct File {
    path: PathBuf,
    bytes: u64,
    modified: Option<std::time::SystemTime>,
}

impl TensorStore {
    /// Runs `build`. Base weights that it loads on this thread are taken from the store, or put there.
    pub fn share<T>(&self, build: impl FnOnce() -> T) -> T {
        struct Restore(Option<TensorStore>);
        impl Drop for Restore {
            fn drop(&mut self) {
                CURRENT.set(self.0.take());
            }
        }
        let _restore = Restore(CURRENT.replace(Some(self.clone())));
        build()
    }

    /// Lets go of everything that is not of a file at or below one of these paths.
    pub fn keep_only(&self, paths: &[&Path]) {
        let paths: Vec<_> = paths.iter().map(|p| p.canonicalize().unwrap_or_else(|_| (*p).into())).collect();
        let wanted = |file: &File| paths.iter().any(|p| file.path.starts_with(p));
        self.held(|held| held.weights.retain(|key, _| key.files.iter().any(wanted)));
    }

    /// How often it was asked so far.
    pub fn counts(&self) -> StoreCounts {
        self.held(|held| held.counts)
    }

    fn held<T>(&self, f: impl FnOnce(&mut Held) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// This thread's store and the files whose tensors are looked for in it.
pub(crate) struct SharedFiles {
    store: TensorStore,
    files: Arc<[File]>,
}

impl SharedFiles {
    /// `None` where nothing is shared, or the weights are of no file.
    pub(crate) fn current(files: &[PathBuf]) -> Option<Self> {
        let store = CURRENT.with_borrow(Clone::clone)?;
        let file = |path: &PathBuf| {
            let path = path.canonicalize().ok()?;
            let about = path.metadata().ok()?;
            Some(File { bytes: about.len(), modified: about.modified().ok(), path })
        };
        let files: Arc<[File]> = files.iter().map(file).collect::<Option<Vec<_>>>()?.into();
        (!files.is_empty()).then_some(Self { store, files })
    }

    /// A tensor out of the store; `load` is asked where it is not there yet.
    pub(crate) fn get(
        &self,
        name: &str,
        held: &str,
        device: &Device,
        load: impl FnOnce() -> Result<Weight>,
    ) -> Result<Weight> {
        let device = format!("{:?}", device.location());
        let key = Key { files: Arc::clone(&self.files), name: name.into(), held: held.into(), device };
        let known = self.store.held(|all| {
            let known = all.weights.get(&key).cloned();
            all.counts.shared += u64::from(known.is_some());
            known
        });
        if let Some(known) = known {
            return Ok(known);
        }
        let weight = load()?;
        self.store.held(|all| {
            all.counts.read += 1;
            all.weights.insert(key, weight.clone());
        });
        Ok(weight)
    }
}
