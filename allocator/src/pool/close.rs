//! Closing a pool, and the report of it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::handle::Pool;
use crate::bytes::Bytes;
use crate::core::{FenceMode, LockedPool};

/// The result of closing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Closed {
    /// Bytes released to the memory by the call.
    pub released_bytes: u64,
    /// Fragments that others still own; their memory is released when they drop them.
    pub held: Vec<Held>,
    /// Bytes of the regions that stay reserved, for held fragments and pending ranges.
    pub pinned_bytes: u64,
    /// Bytes without owners that a device may still use: they are released when its work has ended.
    pub pending_bytes: u64,
}

/// A fragment or tensor that outlives a close.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Held {
    /// Its label or name.
    pub name: Arc<str>,
    /// Its size in bytes; 0 for an empty one.
    pub bytes: u64,
}

/// A value that was not closed because parts of it are in use.
#[derive(Debug)]
#[non_exhaustive]
pub struct StillHeld<T> {
    /// The value, still open and unchanged.
    pub open: T,
    /// Fragments or tensors that others own.
    pub held: Vec<Held>,
    /// Bytes of the regions reserved for it.
    pub pinned_bytes: u64,
}

impl<T> StillHeld<T> {
    /// `open` with what keeps it open.
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
    /// Closes the pool for all its handles: later placements fail, empty regions are released now, and the others with their
    /// last fragments.
    ///
    /// Waits for a pass of the reaper. In a forked child it does nothing and returns an empty report.
    pub fn close(self) -> Closed {
        self.close_within(Duration::ZERO)
    }

    /// As [`close`](Self::close), but waits up to `patience` for held fragments to be dropped.
    pub fn close_within(self, patience: Duration) -> Closed {
        let (core, started) = (self.core(), Instant::now());
        if core.is_forked_child() {
            return Closed::default();
        }
        let before = core.books().reserved_bytes();
        core.start_closing();
        core.settle(FenceMode::Leave);
        let mut locked = LockedPool::lock(core);
        // Each pass of the reaper that takes something back is followed by a notice, under the lock of the books.
        while locked.has_fragments() {
            let Some(left) = patience.checked_sub(started.elapsed()).filter(|left| !left.is_zero()) else {
                break;
            };
            drop(core.wait_for_pass_timeout(locked.into_books(), left));
            locked = LockedPool::lock(core);
        }
        if patience.is_zero() {
            return Closed::now(&locked, before);
        }
        // What was dropped meanwhile is on its way back.
        drop(locked);
        core.settle(FenceMode::Leave);
        Closed::now(&LockedPool::lock(core), before)
    }

    /// Closes the pool if no fragment is held, and returns it unchanged otherwise. Empty regions are released in either case. In a
    /// forked child it does as [`close`](Self::close).
    ///
    /// # Errors
    /// When a fragment is held or being placed.
    pub fn try_close(self) -> Result<Closed, StillHeld<Self>> {
        let core = self.core();
        if core.is_forked_child() {
            return Ok(Closed::default());
        }
        let before = core.books().reserved_bytes();
        core.settle(FenceMode::Leave);
        let locked = LockedPool::lock(core);
        // Of a region in transit, a fragment is being placed.
        let (is_placing, held) = (locked.books().is_in_transit(), held(&locked));
        if is_placing || !held.is_empty() {
            let pinned_bytes = locked.books().reserved_bytes();
            drop(locked);
            return Err(StillHeld::new(self, held, pinned_bytes));
        }
        // Under the locks under which a placement checks it.
        core.start_closing();
        drop(locked);
        core.settle(FenceMode::Leave);
        Ok(Closed { held: Vec::new(), ..Closed::now(&LockedPool::lock(core), before) })
    }
}

impl Closed {
    /// The state of a pool at its close. `before` is the number of bytes that it had reserved when the close began.
    fn now(locked: &LockedPool<'_>, before: u64) -> Self {
        let (pinned_bytes, pending_bytes) = (locked.books().reserved_bytes(), locked.pending_bytes());
        let released_bytes = before.saturating_sub(pinned_bytes);
        Self { released_bytes, held: held(locked), pinned_bytes, pending_bytes }
    }
}

/// The live fragments.
fn held(locked: &LockedPool<'_>) -> Vec<Held> {
    locked.fragments().map(|entry| Held { name: Arc::clone(&entry.label), bytes: entry.bytes }).collect()
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
