//! [`RetireQueue`]: where the last drop of a range leaves its record.
//!
//! Any number of threads push; whoever holds the lock of the books that the queue belongs to takes everything at once. The list is
//! intrusive (a record carries its own `next`), so a push allocates nothing, and since single nodes are never popped there is
//! no ABA problem: a node that is in the list stays there until the whole list is taken.
//!
//! # Waking
//! The head says whether the reaper sleeps: it marks each queue that it finds empty before it parks. The push that takes a mark
//! away wakes it; no other push need, since a reaper that is awake looks at every queue before it sleeps. If that push comes
//! between the mark and the parking, its wake leaves a token and `park` returns at once.

use std::ptr::{self, NonNull};
use std::sync::Arc;

use super::record::Record;
use crate::sync::Parker;
use crate::sync::atomic::{AtomicPtr, Ordering};

/// A queue of records of the pool `P`.
#[derive(Debug)]
pub(crate) struct RetireQueue<P> {
    head: AtomicPtr<Record<P>>,
}

/// The head of an empty queue while the reaper sleeps. No record has this address.
fn asleep<P>() -> *mut Record<P> {
    ptr::without_provenance_mut(1)
}

impl<P> Default for RetireQueue<P> {
    fn default() -> Self {
        Self { head: AtomicPtr::new(asleep()) }
    }
}

impl<P> RetireQueue<P> {
    /// Pushes a record. Returns the reaper if it sleeps: the caller wakes it.
    ///
    /// The pool, with this queue, may be gone before this returns (R3). So the reaper comes by its address: a reference would have
    /// to be valid until the end. That to the queue need not, since the queue is nothing but an atomic.
    ///
    /// # Safety
    /// `record` is live, is in no queue, and belongs to the caller, who gives it up: after this call only whoever takes it off
    /// the queue may touch it (R1). `reaper` is valid for as long as it is not given up.
    pub(super) unsafe fn push(
        &self,
        record: NonNull<Record<P>>,
        reaper: *const Arc<Parker>,
    ) -> Option<Arc<Parker>> {
        let mut head = self.head.load(Ordering::Relaxed);
        let mut sleeper = None;
        loop {
            let sleeps = head == asleep();
            if sleeps && sleeper.is_none() {
                // SAFETY: R3: the pool lives, since the record is the caller's until it has been pushed.
                sleeper = Some(Arc::clone(unsafe { &*reaper }));
            }
            let next = if sleeps { ptr::null_mut() } else { head };
            // SAFETY: the record is the caller's until the exchange below succeeds.
            unsafe { record.as_ref() }.next.store(next, Ordering::Relaxed);
            // Release: whoever takes the record sees it as the dropping thread left it.
            match self.head.compare_exchange_weak(head, record.as_ptr(), Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => return sleeper.filter(|_| sleeps),
                Err(current) => head = current,
            }
        }
    }

    /// Takes all that has been pushed, newest first. Under the lock of the books, so that no two take at once.
    pub(crate) fn take_all(&self) -> Retired<P> {
        let head = self.head.load(Ordering::Relaxed);
        // A mark stays: the next push is to wake the reaper.
        let empty = head.is_null() || head == asleep();
        let next = if empty { ptr::null_mut() } else { self.head.swap(ptr::null_mut(), Ordering::Acquire) };
        Retired { next }
    }

    /// Marks the queue, if it is empty: the next push wakes the reaper. Under the lock of the books.
    pub(crate) fn fall_asleep(&self) -> bool {
        let marked =
            self.head.compare_exchange(ptr::null_mut(), asleep(), Ordering::Relaxed, Ordering::Relaxed);
        marked.is_ok() || marked == Err(asleep())
    }
}

/// Records taken from the queue. They belong to whoever iterates.
#[derive(Debug)]
pub(crate) struct Retired<P> {
    next: *mut Record<P>,
}

impl<P> Iterator for Retired<P> {
    type Item = Record<P>;

    fn next(&mut self) -> Option<Record<P>> {
        if self.next.is_null() {
            return None;
        }
        // SAFETY: records are made by `Box::leak`; R1: this one was retired, so no fragment points to it, and
        // `take_all` gave it to this iterator alone.
        let record = *unsafe { Box::from_raw(self.next) };
        self.next = record.next.load(Ordering::Relaxed);
        Some(record)
    }
}
