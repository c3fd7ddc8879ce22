//! Closing a pool, and what is found then.

use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::bytes::Bytes;
use crate::core::locked_pool::Whole;
use crate::core::pool_core::{Books, Fences, Shared};
use crate::pool::Pool;
use crate::sync::MutexGuard;
use crate::sync::atomic::Ordering;

/// What closing found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Closed {
    /// Bytes that were given back by the time the call returned.
    pub released_bytes: u64,
    /// What others still hold; its memory goes back when they drop it.
    pub held: Vec<Held>,
    /// Bytes of the regions that stay reserved, for what is held or pending.
    pub pinned_bytes: u64,
    /// Bytes that no one holds and that a device may still be using: they go back when it has ended.
    pub pending_bytes: u64,
}

/// A fragment or tensor that outlived a close.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Held {
    /// Its label or name.
    pub name: Arc<str>,
    /// Its size in bytes; 0 for an empty one.
    pub bytes: u64,
}

/// Something that was not closed, since it is in use: itself, and what keeps it open.
#[derive(Debug)]
#[non_exhaustive]
pub struct StillHeld<T> {
    /// What is open still, as it was.
    pub open: T,
    /// What others hold.
    pub held: Vec<Held>,
    /// Bytes of the regions that are reserved for it.
    pub pinned_bytes: u64,
}

impl<T> StillHeld<T> {
    /// `open`, and what keeps it so.
    pub fn new(open: T, held: Vec<Held>, pinned_bytes: u64) -> Self {
        Self { open, held, pinned_bytes }
    }
}

impl<T> fmt::Display for StillHeld<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = Bytes(self.held.iter().fold(0, |sum, held| sum.saturating_add(held.bytes)));
        write!(f, "close: {} of {bytes} are still held", self.held.len())?;
        if let Some(first) = self.held.first() {
            write!(f, ", {:?} for one", first.name)?;
        }
        f.write_str("; drop them, or close without waiting for them")
    }
}

impl<T: fmt::Debug> std::error::Error for StillHeld<T> {}

impl Pool {
    /// Closes the pool for all its handles: nothing more is placed, what is free goes back now, and the rest when its
    /// last fragment is dropped.
    ///
    /// Waits for the reaper. `released_bytes` are those of regions given back to the memory by this call. In a forked child it does
    /// nothing, and finds nothing.
    pub fn close(self) -> Closed {
        self.close_within(Duration::ZERO)
    }

    /// As [`close`](Self::close), and waits for so long for what is held to be dropped.
    pub fn close_within(self, patience: Duration) -> Closed {
        let (shared, started) = (self.shared(), Instant::now());
        if shared.is_forked_child() {
            return Closed::default();
        }
        let before = shared.books().reserved;
        shared.closing.store(true, Ordering::Release);
        shared.settle(Fences::Leave);
        let mut whole = shared.whole();
        // Each pass of the reaper that takes something back is followed by a notice, under the lock of the books.
        while whole.holds_fragments() {
            let Some(left) = patience.checked_sub(started.elapsed()).filter(|left| !left.is_zero()) else {
                break;
            };
            drop(wait(shared, whole.into_books(), left));
            whole = shared.whole();
        }
        if !patience.is_zero() {
            // What was dropped meanwhile is on its way back.
            drop(whole);
            shared.settle(Fences::Leave);
            whole = shared.whole();
        }
        let (pinned_bytes, pending_bytes) = (whole.books.reserved, whole.pending_bytes());
        let released_bytes = before.saturating_sub(pinned_bytes);
        Closed { released_bytes, held: whole.held(), pinned_bytes, pending_bytes }
    }

    /// Closes the pool if nothing is held, and gives it back as it is otherwise; what is free goes back to the memory in
    /// either case. In a forked child it does as [`close`](Self::close).
    ///
    /// # Errors
    /// When a fragment is held or being placed.
    pub fn try_close(self) -> Result<Closed, StillHeld<Self>> {
        let shared = self.shared();
        if shared.is_forked_child() {
            return Ok(Closed::default());
        }
        let before = shared.books().reserved;
        shared.settle(Fences::Leave);
        let whole = shared.whole();
        let books = &whole.books;
        // What is in no region yet is being placed.
        let placing = books.reserved != books.regions.iter().map(|(_, region)| region.reserved).sum::<u64>();
        let (held, pinned_bytes) = (whole.held(), books.reserved);
        if placing || !held.is_empty() {
            drop(whole);
            return Err(StillHeld::new(self, held, pinned_bytes));
        }
        // Under the locks, under which a placement asks for it.
        shared.closing.store(true, Ordering::Release);
        drop(whole);
        shared.settle(Fences::Leave);
        let whole = shared.whole();
        let (pinned_bytes, pending_bytes) = (whole.books.reserved, whole.pending_bytes());
        let released_bytes = before.saturating_sub(pinned_bytes);
        Ok(Closed { released_bytes, held: Vec::new(), pinned_bytes, pending_bytes })
    }
}

impl Whole<'_> {
    /// What is held.
    fn held(&self) -> Vec<Held> {
        self.fragments().map(|entry| Held { name: Arc::clone(&entry.label), bytes: entry.bytes }).collect()
    }
}

fn wait<'a>(shared: &Shared, books: MutexGuard<'a, Books>, patience: Duration) -> MutexGuard<'a, Books> {
    shared.passed.wait_timeout(books, patience).unwrap_or_else(PoisonError::into_inner).0
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_can_be_told_however_much_it_is() {
        let held = vec![Held { name: "t".into(), bytes: u64::MAX }; 2];
        assert!(StillHeld::new((), held, 0).to_string().starts_with("close: 2 of "));
    }
}
