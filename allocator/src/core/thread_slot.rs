//! [`ThreadSlot`]: which thread this is, and in which shard it places.

use std::cell::Cell;

use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{global, per_thread};

global! {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
}

per_thread! {
    static SLOT: Cell<ThreadSlot> = Cell::new(ThreadSlot { thread: 0, shard: 0 });
}

/// A thread's number, and the number of its shard in any pool. Threads begin in consecutive shards; one that meets another thread in
/// its shard advances to the next, so that threads spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ThreadSlot {
    /// From 1; no two threads have the same.
    pub(crate) thread: usize,
    /// Modulo the number of shards.
    pub(crate) shard: usize,
}

impl ThreadSlot {
    /// This thread's.
    #[inline]
    pub(crate) fn current() -> Self {
        let slot = SLOT.with(Cell::get);
        if slot.thread > 0 { slot } else { Self::first() }
    }

    #[cold]
    fn first() -> Self {
        let before = THREADS.fetch_add(1, Ordering::Relaxed);
        let slot = Self { thread: before + 1, shard: before };
        SLOT.with(|cell| cell.set(slot));
        slot
    }

    /// Moves this thread to the next shard.
    pub(crate) fn advance(self) -> Self {
        let slot = Self { shard: self.shard.wrapping_add(1), ..self };
        SLOT.with(|cell| cell.set(slot));
        slot
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_has_one_number_and_moves_from_shard_to_shard() {
        let slot = ThreadSlot::current();
        assert_eq!(ThreadSlot::current(), slot);
        slot.advance();
        assert_eq!(ThreadSlot::current(), ThreadSlot { shard: slot.shard + 1, ..slot });
        let other = std::thread::spawn(ThreadSlot::current).join().ok();
        assert!(other.is_some_and(|other| other.thread != slot.thread));
    }
}
