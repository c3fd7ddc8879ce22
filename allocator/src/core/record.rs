//! [`Record`]: what the fragments of one range share.

use std::process;
use std::ptr::{self, NonNull};

use crate::stream::uses::Uses;
use crate::sync::acquire;
use crate::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// The count of a range's owners, its uses, and where it is entered. Made by the pool `P`, freed by whoever takes it off the retire
/// queue (R1).
#[derive(Debug)]
pub(crate) struct Record<P> {
    /// How many fragments point here.
    references: AtomicUsize,
    /// The retire queue's link.
    pub(super) next: AtomicPtr<Self>,
    /// The pool (R3). Not counted: threads that place and drop at the same time would share the count.
    pool: NonNull<P>,
    /// The shard in whose books it is entered; `None` for the pool's books (H1).
    shard: Option<u8>,
    /// The slot of its entry in those books.
    slot: usize,
    uses: Uses,
}

impl<P> Record<P> {
    /// The record of a range with one owner, in a box of its own.
    #[inline]
    pub(crate) fn leak(pool: &P, shard: Option<u8>, slot: usize, uses: Uses) -> NonNull<Self> {
        let (references, next) = (AtomicUsize::new(1), AtomicPtr::new(ptr::null_mut()));
        let record = Self { references, next, pool: NonNull::from(pool), shard, slot, uses };
        NonNull::from(Box::leak(Box::new(record)))
    }

    /// The pool, which lives as long as the record (R3).
    #[inline]
    pub(crate) fn pool(&self) -> NonNull<P> {
        self.pool
    }

    /// The shard in whose books it is entered.
    #[inline]
    pub(crate) fn shard(&self) -> Option<u8> {
        self.shard
    }

    #[inline]
    pub(crate) fn uses(&self) -> &Uses {
        &self.uses
    }

    /// The slot in the books, and the uses, of a record that was taken off the retire queue.
    pub(crate) fn into_parts(self) -> (usize, Uses) {
        (self.slot, self.uses)
    }

    /// How many owners there are. Other threads may change it at any time.
    #[inline]
    pub(crate) fn owners(&self) -> usize {
        self.references.load(Ordering::Relaxed)
    }

    /// Whether the caller is the only owner.
    #[inline]
    pub(crate) fn has_one_owner(&self) -> bool {
        // Acquire pairs with the Release of the drop that left this owner alone: its reads are over. No one can make a second owner
        // meanwhile, for that takes a reference to this one, which the callers borrow mutably.
        self.references.load(Ordering::Acquire) == 1
    }

    /// Counts another owner in.
    #[inline]
    pub(crate) fn add_owner(&self) {
        let before = self.references.fetch_add(1, Ordering::Relaxed);
        if before > isize::MAX as usize {
            // The count would wrap after 2^63 forgotten clones; as in `Arc`, there is no safe way on.
            process::abort();
        }
    }

    /// Counts an owner out, and returns whether it was the last one, so that no one else has the record any more.
    ///
    /// # Safety
    /// The caller is an owner of the record that has not been counted out, and gives its ownership up.
    #[inline]
    pub(crate) unsafe fn remove_owner(record: NonNull<Self>) -> bool {
        // Not by a reference to the record, which would have to be valid until this returns: where another owner remains, it may let the
        // record go before.
        // SAFETY: R1: the record lives until its last owner is counted out.
        let references = unsafe { &(*record.as_ptr()).references };
        // Release: what this owner did with the range happens before whoever acquires the count after it.
        if references.fetch_sub(1, Ordering::Release) != 1 {
            return false;
        }
        acquire(references);
        true
    }
}
