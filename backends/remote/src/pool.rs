//! Jobs on a few threads, given up at once when the user says so.

use e2llm_backend::{BackendError, CancelFlag, ErrorKind};
use std::collections::VecDeque;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How often waiting looks at the cancel flag.
const TICK: Duration = Duration::from_millis(20);

/// Something to do on another thread.
pub(crate) type Job<T> = Box<dyn FnOnce() -> Result<T, BackendError> + Send>;

/// Does `jobs`, at most `concurrency` at once, and gives their results in order. On cancelling it does not wait for
/// those under way: their threads end by themselves, and what they bring is thrown away.
pub(crate) fn run<T: Send + 'static>(
    jobs: Vec<Job<T>>,
    concurrency: usize,
    cancel: &CancelFlag,
) -> Vec<Result<T, BackendError>> {
    let n = jobs.len();
    let mut results: Vec<Option<Result<T, BackendError>>> = (0..n).map(|_| None).collect();
    let queue: Arc<Mutex<VecDeque<_>>> = Arc::new(Mutex::new(jobs.into_iter().enumerate().collect()));
    let (sender, receiver) = channel();
    for _ in 0..concurrency.min(n) {
        let (queue, sender, cancel) = (Arc::clone(&queue), sender.clone(), cancel.clone());
        std::thread::spawn(move || {
            while !cancel.is_cancelled() {
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                let Some((i, job)) = next else { return };
                if sender.send((i, job())).is_err() {
                    return;
                }
            }
        });
    }
    drop(sender);
    let mut missing = n;
    while missing > 0 && !cancel.is_cancelled() {
        match receiver.recv_timeout(TICK) {
            Ok((i, result)) => {
                results[i] = Some(result);
                missing -= 1;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break, // a job panicked
        }
    }
    let lost = || match cancel.check() {
        Err(cancelled) => cancelled,
        Ok(()) => BackendError::new(ErrorKind::Failed, "the request's thread panicked"),
    };
    results.into_iter().map(|r| r.unwrap_or_else(|| Err(lost()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn results_are_in_order_and_few_jobs_run_at_once() {
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let jobs = (0..20).map(|i| -> Job<usize> {
            let (now, most) = (Arc::clone(&now), Arc::clone(&most));
            Box::new(move || {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::yield_now();
                now.fetch_sub(1, Ordering::SeqCst);
                if i == 3 { Err(BackendError::new(ErrorKind::Failed, "three")) } else { Ok(i) }
            })
        });
        let results = run(jobs.collect(), 4, &CancelFlag::default());
        assert!(results.iter().enumerate().all(|(i, r)| if i == 3 { r.is_err() } else { *r == Ok(i) }));
        assert!((1..=4).contains(&most.load(Ordering::SeqCst)));
        assert!(run::<()>(Vec::new(), 4, &CancelFlag::default()).is_empty());
    }

    #[test]
    fn cancelling_waits_for_nobody_and_a_panic_is_an_error_of_its_own() {
        let cancel = CancelFlag::default();
        let (sender, blocked) = channel::<()>();
        let flag = cancel.clone();
        let jobs: Vec<Job<()>> = vec![
            Box::new(move || {
                flag.cancel();
                let _ = blocked.recv(); // for ever, as far as the pool can tell
                Ok(())
            }),
            Box::new(|| Ok(())),
        ];
        let results = run(jobs, 1, &cancel);
        assert!(results.iter().all(|r| matches!(r, Err(e) if e.kind == ErrorKind::Cancelled)));
        drop(sender);
        let results = run::<()>(vec![Box::new(|| panic!("of this test"))], 1, &CancelFlag::default());
        assert!(results[0].as_ref().is_err_and(|e| e.message.contains("panicked")));
    }
}
