//! The retire queue: where the last drop of a range leaves it for the reaper.
//!
//! Any number of threads push; one thread, the reaper, takes everything at once. The list is intrusive (a record
//! carries its own `next`), so a push allocates nothing, and since single nodes are never popped there is no ABA
//! problem: a node that is in the list stays there until the whole list is taken.
//!
//! # Waking
//! A push onto an empty queue wakes the reaper; a push onto a queue that is not empty need not, since whoever made it
//! non-empty did, and the reaper takes everything at once. If the reaper finds the queue empty and is about to park
//! while the first push happens, the wake leaves it a token and `park` returns at once.

use std::ptr::{self, NonNull};

use crate::fragment::Record;
use crate::sync::atomic::{AtomicPtr, Ordering};

#[derive(Debug)]
pub(crate) struct RetireQueue {
    head: AtomicPtr<Record>,
}

impl Default for RetireQueue {
    fn default() -> Self {
        Self { head: AtomicPtr::new(ptr::null_mut()) }
    }
}

impl RetireQueue {
    /// Pushes a record, and says whether the queue was empty, in which case the caller wakes the reaper.
    ///
    /// # Safety
    /// `record` is live, is in no queue, and belongs to the caller, who gives it up: after this call only whoever takes it off
    /// the queue may touch it (R1).
    pub(crate) unsafe fn push(&self, record: NonNull<Record>) -> bool {
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            // SAFETY: the record is the caller's until the exchange below succeeds.
            unsafe { record.as_ref() }.next.store(head, Ordering::Relaxed);
            // Release: the reaper sees the record as the dropping thread left it.
            match self.head.compare_exchange_weak(head, record.as_ptr(), Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => return head.is_null(),
                Err(current) => head = current,
            }
        }
    }

    /// Takes all that has been pushed, newest first.
    pub(crate) fn take_all(&self) -> Retired {
        Retired { next: self.head.swap(ptr::null_mut(), Ordering::Acquire) }
    }
}

/// Records taken from the queue. They belong to whoever iterates.
#[derive(Debug)]
pub(crate) struct Retired {
    next: *mut Record,
}

impl Iterator for Retired {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        if self.next.is_null() {
            return None;
        }
        // SAFETY: records are made by `Box::into_raw`; R1: this one was retired, so no fragment points to it, and
        // `take_all` gave it to this iterator alone.
        let record = *unsafe { Box::from_raw(self.next) };
        self.next = record.next.load(Ordering::Relaxed);
        Some(record)
    }
}
