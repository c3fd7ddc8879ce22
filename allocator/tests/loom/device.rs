//! A device whose work threads of a model do.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tensorhold_allocator::{Fence, MemoryError, OrderedStream};

/// A stream: work is a number that counts up, and ends when a thread has run it.
#[derive(Clone)]
pub(crate) struct Stream(Arc<State>);

struct State {
    id: u64,
    enqueued: AtomicUsize,
    done: loom::sync::atomic::AtomicUsize,
    /// Whoever waits for work waits here.
    ends: (loom::sync::Mutex<()>, loom::sync::Condvar),
    /// What the work that is run next comes after.
    after: Mutex<Vec<Arc<dyn Fence>>>,
    /// Its fences cannot be asked.
    broken: AtomicBool,
}

/// Passes when its stream has done that work.
struct At {
    stream: Stream,
    work: usize,
}

impl Stream {
    pub(crate) fn new(id: u64) -> Self {
        let (enqueued, done) = (AtomicUsize::new(0), loom::sync::atomic::AtomicUsize::new(0));
        let ends = (loom::sync::Mutex::new(()), loom::sync::Condvar::new());
        let (after, broken) = (Mutex::default(), AtomicBool::new(false));
        Self(Arc::new(State { id, enqueued, done, ends, after, broken }))
    }

    /// Enqueues work, which [`run`](Self::run) does.
    pub(crate) fn enqueue(&self) {
        self.0.enqueued.fetch_add(1, Ordering::Relaxed);
    }

    /// The device does the next work that is enqueued. Called once for each, in order.
    pub(crate) fn run(&self, work: impl FnOnce()) {
        let after = std::mem::take(&mut *self.0.after.lock().unwrap());
        for fence in after {
            fence.wait().unwrap();
        }
        work();
        self.0.done.fetch_add(1, Ordering::Release);
        drop(self.0.ends.0.lock().unwrap());
        self.0.ends.1.notify_all();
    }

    /// Waits until all that is enqueued has ended.
    pub(crate) fn synchronize(&self) {
        self.wait_until(self.0.enqueued.load(Ordering::Relaxed));
    }

    /// Its fences cannot be asked from now on.
    pub(crate) fn break_fences(&self) {
        self.0.broken.store(true, Ordering::Relaxed);
    }

    fn has_done(&self, work: usize) -> bool {
        self.0.done.load(Ordering::Acquire) >= work
    }

    fn wait_until(&self, work: usize) {
        let mut waiting = self.0.ends.0.lock().unwrap();
        while !self.has_done(work) {
            waiting = self.0.ends.1.wait(waiting).unwrap();
        }
    }
}

// SAFETY: O1: it has passed when the stream has done that work.
unsafe impl Fence for At {
    fn has_passed(&self) -> Result<bool, MemoryError> {
        if self.stream.0.broken.load(Ordering::Relaxed) {
            Err("the work failed".into())
        } else {
            Ok(self.stream.has_done(self.work))
        }
    }

    fn wait(&self) -> Result<(), MemoryError> {
        if self.stream.0.broken.load(Ordering::Relaxed) {
            return Err("the work failed".into());
        }
        self.stream.wait_until(self.work);
        Ok(())
    }
}

// SAFETY: O2: a model gives each stream an id of its own, and work is run in order. O3: `run` waits.
unsafe impl OrderedStream for Stream {
    fn id(&self) -> u64 {
        self.0.id
    }

    fn check(&self) -> Result<(), MemoryError> {
        Ok(())
    }

    fn record(&self) -> Result<Arc<dyn Fence>, MemoryError> {
        let work = self.0.enqueued.load(Ordering::Relaxed);
        Ok(Arc::new(At { stream: self.clone(), work }))
    }

    fn wait_for(&self, fence: &Arc<dyn Fence>) -> Result<(), MemoryError> {
        self.0.after.lock().unwrap().push(Arc::clone(fence));
        Ok(())
    }
}
