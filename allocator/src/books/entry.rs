//! Live fragments as the books know them, and where they lie.

use std::ptr::NonNull;
use std::sync::Arc;

use crate::offsets::Key;

/// A live fragment, or one that was dropped and whose range is not free yet.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) label: Arc<str>,
    pub(crate) bytes: u64,
    /// `None` for an empty fragment, which takes no memory.
    pub(crate) location: Option<Location>,
    /// Number in the event log, if there is one.
    pub(super) number: u64,
}

/// A live block: in a region of the pool, or in a span of a shard.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Location {
    /// The shard whose span it lies in; `None` for a region of the pool.
    pub(crate) shard: Option<u8>,
    /// Slot of the region or span.
    pub(crate) region: usize,
    /// Offset in the region or span, in bytes.
    pub(crate) offset: u64,
    pub(crate) key: Key,
}

/// A block that was taken from a region or span and is not entered as a fragment yet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RegionBlock {
    pub(crate) location: Location,
    pub(crate) address: NonNull<u8>,
}

impl Entry {
    #[inline]
    pub(crate) fn new(label: Arc<str>, bytes: u64, location: Option<Location>) -> Self {
        Self { label, bytes, location, number: 0 }
    }

    /// Whether it lies in a span of a shard.
    pub(crate) fn is_in_span(&self) -> bool {
        self.location.is_some_and(|location| location.shard.is_some())
    }
}

impl RegionBlock {
    /// Address and location of the fragment at `offset` of this block, as it was carved under `key`. The fragment lies within the
    /// block.
    pub(crate) fn part(&self, offset: u64, key: Key) -> (NonNull<u8>, Location) {
        // SAFETY: the caller checked that the fragment lies within the block, which lies within its region (M1).
        let address = unsafe { self.address.add(offset as usize) };
        (address, Location { offset: self.location.offset + offset, key, ..self.location })
    }
}
