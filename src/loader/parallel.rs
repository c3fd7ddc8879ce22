//! Running work on several threads.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crate::fork::OfProcess;

/// Work on fewer tensors than this takes less time than starting a thread.
const WORTH_A_THREAD: usize = 2000;

/// Work on a thread of its own. Its drop joins the thread, so that nothing is left behind (I4). A forked
/// child does not have the thread, and does not wait.
#[derive(Debug)]
pub(super) struct BackgroundTask<T>(Option<OfProcess<JoinHandle<T>>>);

impl<T: Send + 'static> BackgroundTask<T> {
    /// Starts the work; `None` if no thread can be started.
    pub(super) fn spawn(name: &str, work: impl FnOnce() -> T + Send + 'static) -> Option<Self> {
        let thread = thread::Builder::new().name(name.into()).spawn(work);
        thread.ok().map(|thread| Self(Some(OfProcess::new(thread))))
    }
}

impl<T> BackgroundTask<T> {
    /// Waits for the result. `None` if it was taken before, or the work panicked.
    pub(super) fn join(&mut self) -> Option<T> {
        self.0.take().and_then(OfProcess::into_inner)?.join().ok()
    }
}

impl<T> Drop for BackgroundTask<T> {
    fn drop(&mut self) {
        // A panic of the work is dropped with its result.
        let _ = self.join();
    }
}

/// Whether a thread is the current one, which cannot wait for itself. It may be if the thread calls the
/// caller's callback.
pub(super) fn is_current<T>(thread: &JoinHandle<T>) -> bool {
    thread.thread().id() == thread::current().id()
}

/// Runs both functions. Runs `there` on another thread if there are many tensors and a thread can be started.
pub(super) fn join<A: Send, B>(
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

/// Calls `work` for each of `0..count`, on at most `threads` threads including this one, and returns the
/// results in order. Threads that cannot be started only cost speed.
pub(super) fn parallel_map<T: Send>(
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

    use super::BackgroundTask;

    #[test]
    fn a_background_task_is_joined_once_or_dropped_with_its_owner() {
        let mut task = BackgroundTask::spawn("ahead", || 7).unwrap();
        assert_eq!((task.join(), task.join()), (Some(7), None));

        let ended = Arc::new(AtomicBool::new(false));
        let (go, told) = mpsc::channel::<()>();
        let ends = Arc::clone(&ended);
        let task = BackgroundTask::spawn("ahead", move || {
            let _ = told.recv();
            ends.store(true, Ordering::Relaxed);
        });
        drop(go);
        drop(task);
        assert!(ended.load(Ordering::Relaxed));
    }
}
