//! Several things at a time.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crate::fork::OfProcess;

/// Walks over fewer tensors than this are shorter than a thread's start.
const WORTH_A_THREAD: usize = 2000;

/// Something that is being done on a thread of its own, and is waited for when this goes: nothing is left behind (I4). A forked child does not have the
/// thread, and does not wait.
#[derive(Debug)]
pub(super) struct Ahead<T>(Option<OfProcess<JoinHandle<T>>>);

impl<T: Send + 'static> Ahead<T> {
    /// Begins; `None` where no thread can be had.
    pub(super) fn begin(name: &str, work: impl FnOnce() -> T + Send + 'static) -> Option<Self> {
        let thread = thread::Builder::new().name(name.into()).spawn(work);
        thread.ok().map(|thread| Self(Some(OfProcess::new(thread))))
    }
}

impl<T> Ahead<T> {
    /// Waits for what comes of it; `None` when that has been taken, or it panicked.
    pub(super) fn take(&mut self) -> Option<T> {
        self.0.take().and_then(OfProcess::into_inner)?.join().ok()
    }
}

impl<T> Drop for Ahead<T> {
    fn drop(&mut self) {
        // What it panicked with is no one's any more.
        let _ = self.take();
    }
}

/// Whether it is this very thread, which calls a function of the caller's and cannot wait for itself.
pub(super) fn is_own<T>(thread: &JoinHandle<T>) -> bool {
    thread.thread().id() == thread::current().id()
}

/// Does both, for so many tensors: the first on a thread of its own if that is worth it and can be had.
pub(super) fn beside<A: Send, B>(
    tensors: usize,
    name: &str,
    there: impl Fn() -> A + Sync,
    here: impl FnOnce() -> B,
) -> (A, B) {
    if tensors < WORTH_A_THREAD {
        return (there(), here());
    }
    thread::scope(|scope| match thread::Builder::new().name(name.into()).spawn_scoped(scope, &there) {
        Ok(other) => {
            let here = here();
            (other.join().unwrap_or_else(|panic| resume_unwind(panic)), here)
        }
        Err(_) => (there(), here()),
    })
}

/// What `work` makes of each of `0..count`, in that order, done by at most so many threads, of which this is one. The others are
/// help: one that cannot be started is not missed.
pub(super) fn each<T: Send>(
    count: usize,
    threads: usize,
    name: &str,
    work: impl Fn(usize) -> T + Sync,
) -> Vec<T> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(count)));
    let help = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return;
            }
            let result = work(index);
            done.lock().unwrap_or_else(PoisonError::into_inner).push((index, result));
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads.min(count) {
            if thread::Builder::new().name(name.into()).spawn_scoped(scope, help).is_err() {
                break;
            }
        }
        help();
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;

    use super::Ahead;

    #[test]
    fn what_goes_on_ahead_is_taken_once_or_ended_with_its_owner() {
        let mut ahead = Ahead::begin("ahead", || 7).unwrap();
        assert_eq!((ahead.take(), ahead.take()), (Some(7), None));

        let ended = Arc::new(AtomicBool::new(false));
        let (go, told) = mpsc::channel::<()>();
        let ends = Arc::clone(&ended);
        let ahead = Ahead::begin("ahead", move || {
            let _ = told.recv();
            ends.store(true, Ordering::Relaxed);
        });
        drop(go);
        drop(ahead);
        assert!(ended.load(Ordering::Relaxed));
    }
}
