//! [`Shard`]: books of their own for threads that contend for those of the pool.

use std::sync::{PoisonError, TryLockError};

use super::retire_queue::RetireQueue;
use crate::books::ShardBooks;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// A shard of the pool `P`. It has cache lines of its own.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Shard<P> {
    /// Of the fragments in its books.
    pub(crate) retired: RetireQueue<P>,
    /// The thread that placed last.
    last_thread: AtomicUsize,
    books: Mutex<ShardBooks>,
}

impl<P> Default for Shard<P> {
    fn default() -> Self {
        Self { retired: RetireQueue::default(), last_thread: AtomicUsize::default(), books: Mutex::default() }
    }
}

impl<P> Shard<P> {
    pub(crate) fn books(&self) -> MutexGuard<'_, ShardBooks> {
        // As for the pool's books.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its books, if no one else has locked them.
    pub(crate) fn try_books(&self) -> Option<MutexGuard<'_, ShardBooks>> {
        match self.books.try_lock() {
            Ok(books) => Some(books),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Whether this thread placed here last.
    #[inline]
    pub(crate) fn is_of(&self, thread: usize) -> bool {
        self.last_thread.load(Ordering::Relaxed) == thread
    }

    /// This thread places here now.
    #[inline]
    pub(crate) fn set_thread(&self, thread: usize) {
        if !self.is_of(thread) {
            self.last_thread.store(thread, Ordering::Relaxed);
        }
    }
}
