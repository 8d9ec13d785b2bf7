//! Prompts on their way from a request to the decoder: what their text makes of them is made ahead, on other threads.

use e2llm_backend::{BackendError, Usage};
use e2llm_lm::Segment;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Makes the answer's text of what the decoder wrote.
pub(crate) type Finishing = Arc<dyn Fn(&str) -> Result<String, BackendError> + Send + Sync>;

/// A prompt as the decoder reads it, and what became of its context.
pub(crate) struct Prepared {
    pub(crate) segments: Vec<Segment>,
    pub(crate) usage: Usage,
    pub(crate) finish: Option<Finishing>,
}

impl Prepared {
    /// A prompt whose answer is what the decoder writes.
    pub(crate) fn new(segments: Vec<Segment>, usage: Usage) -> Self {
        Self { segments, usage, finish: None }
    }
}

/// A prompt as far as its text makes it.
pub(crate) enum Draft<'a> {
    /// All of it.
    Ready(Prepared),
    /// What a model has to add, for one prompt after another in the order of their queue.
    Rest(Box<dyn FnOnce() -> Result<Prepared, BackendError> + Send + 'a>),
}

impl<'a> Draft<'a> {
    /// A draft that `rest` finishes.
    pub(crate) fn rest(rest: impl FnOnce() -> Result<Prepared, BackendError> + Send + 'a) -> Self {
        Self::Rest(Box::new(rest))
    }

    /// The whole prompt.
    pub(crate) fn finish(self) -> Result<Prepared, BackendError> {
        match self {
            Self::Ready(prepared) => Ok(prepared),
            Self::Rest(rest) => rest(),
        }
    }
}

impl From<Prepared> for Draft<'_> {
    fn from(prepared: Prepared) -> Self {
        Self::Ready(prepared)
    }
}

/// Things of a queue that are made by whoever comes first, so that nobody waits for a thread that does not run.
pub(crate) struct Ahead<T, F> {
    places: Vec<Mutex<Place<T>>>,
    make: F,
}

enum Place<T> {
    Open,
    Made(T),
    Taken,
}

impl<T, F: Fn(usize) -> T> Ahead<T, F> {
    /// `n` things, made by `make`.
    pub(crate) fn new(n: usize, make: F) -> Self {
        Self { places: (0..n).map(|_| Mutex::new(Place::Open)).collect(), make }
    }

    /// Makes a thing unless it was made or somebody is at it. This never waits: a thread of a pool that did could do so for
    /// one whose work waits for the pool.
    pub(crate) fn make(&self, i: usize) {
        if let Ok(mut place) = self.places[i].try_lock()
            && matches!(*place, Place::Open)
        {
            *place = Place::Made((self.make)(i));
        }
    }

    /// Takes a thing, which is made now unless somebody has.
    pub(crate) fn take(&self, i: usize) -> T {
        let mut place: MutexGuard<'_, _> = self.places[i].lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *place, Place::Taken) {
            Place::Made(made) => made,
            Place::Open | Place::Taken => (self.make)(i),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::channel;

    #[test]
    fn each_is_made_once_whoever_comes_first() {
        let made: Vec<AtomicUsize> = (0..200).map(|_| AtomicUsize::new(0)).collect();
        let ahead = Ahead::new(made.len(), |i| {
            made[i].fetch_add(1, Ordering::Relaxed);
            i * i
        });
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| (0..made.len()).for_each(|i| ahead.make(i)));
            }
            for i in 0..made.len() {
                assert_eq!(ahead.take(i), i * i);
            }
        });
        assert!(made.iter().all(|n| n.load(Ordering::Relaxed) == 1));
    }

    #[test]
    fn nobody_waits_for_what_is_being_made() {
        let ((begun, has_begun), (go_on, may_go_on)) = (channel(), channel());
        let ends = Mutex::new((begun, may_go_on));
        let ahead = Ahead::new(1, |i| {
            let ends = ends.lock().unwrap();
            ends.0.send(()).unwrap();
            ends.1.recv().unwrap();
            i + 7
        });
        std::thread::scope(|scope| {
            scope.spawn(|| ahead.make(0));
            has_begun.recv().unwrap();
            ahead.make(0);
            go_on.send(()).unwrap();
            assert_eq!(ahead.take(0), 7);
        });
    }
}
