//! The policies as spaces of a fixed capacity.

use super::policy::Policy;
use crate::offsets::{BestFit, Bump, Key, Request, Segregated};

/// What a replay asks of a space.
pub(super) trait ReplaySpace {
    /// Takes a range; `None` when it has no room.
    fn allocate(&mut self, request: Request) -> Option<(u64, Handle)>;

    /// Frees a range.
    fn free(&mut self, handle: Handle);

    /// Divides a range into parts that begin at these offsets in it. Empty where it cannot be.
    fn carve(&mut self, handle: Handle, offsets: &[u64]) -> Vec<Handle>;

    fn capacity(&self) -> u64;

    fn is_empty(&self) -> bool;

    fn free_bytes(&self) -> u64;

    fn largest_free(&self) -> u64;
}

/// A live range, in the space that it is from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Handle {
    key: Option<Key>,
    /// Where there is no key: its length, rounding included.
    bytes: u64,
}

/// An empty space with that policy.
pub(super) fn new(policy: Policy, capacity: u64, granule: u64) -> Box<dyn ReplaySpace> {
    match policy {
        Policy::BestFit => Box::new(BestFit::new(capacity, granule)),
        Policy::Segregated => Box::new(Segregated::new(capacity, granule)),
        Policy::Planned => {
            Box::new(Arena { bump: Bump::new(capacity), capacity, granule, live: 0, count: 0 })
        }
    }
}

/// Spaces that find ranges again by keys all have the same methods.
macro_rules! searched {
    ($space:ty) => {
        impl ReplaySpace for $space {
            fn allocate(&mut self, request: Request) -> Option<(u64, Handle)> {
                let taken = <$space>::allocate(self, request)?;
                Some((taken.offset, Handle { key: Some(taken.key), bytes: 0 }))
            }

            fn free(&mut self, handle: Handle) {
                let freed = handle.key.map(|key| <$space>::free(self, key));
                debug_assert!(matches!(freed, Some(Ok(_))));
            }

            fn carve(&mut self, handle: Handle, offsets: &[u64]) -> Vec<Handle> {
                let keys = handle.key.and_then(|key| <$space>::carve(self, key, offsets).ok());
                keys.into_iter().flatten().map(|key| Handle { key: Some(key), bytes: 0 }).collect()
            }

            fn capacity(&self) -> u64 {
                <$space>::capacity(self)
            }

            fn is_empty(&self) -> bool {
                <$space>::is_empty(self)
            }

            fn free_bytes(&self) -> u64 {
                <$space>::free_bytes(self)
            }

            fn largest_free(&self) -> u64 {
                <$space>::largest_free(self)
            }
        }
    };
}

searched!(BestFit);
searched!(Segregated);

/// A bump that counts what is live. What is freed counts as free and is in no free block: it is not used again.
struct Arena {
    bump: Bump,
    capacity: u64,
    granule: u64,
    live: u64,
    count: u64,
}

impl ReplaySpace for Arena {
    fn allocate(&mut self, request: Request) -> Option<(u64, Handle)> {
        let start = self.bump.used();
        let offset = self.bump.place(Request::new(request.size, request.align.max(self.granule)))?;
        // What was skipped to align it goes with it.
        let bytes = self.bump.used() - start;
        (self.live, self.count) = (self.live + bytes, self.count + 1);
        Some((offset, Handle { key: None, bytes }))
    }

    fn free(&mut self, handle: Handle) {
        (self.live, self.count) = (self.live - handle.bytes, self.count - 1);
    }

    fn carve(&mut self, handle: Handle, offsets: &[u64]) -> Vec<Handle> {
        self.count = self.count - 1 + offsets.len() as u64;
        // The first part has what was skipped before the block; ends count from there, and so do the others' offsets.
        let ends = offsets.iter().skip(1).copied().chain([handle.bytes]);
        let part = |(&offset, end): (&u64, u64)| Handle { key: None, bytes: end.saturating_sub(offset) };
        offsets.iter().zip(ends).map(part).collect()
    }

    fn capacity(&self) -> u64 {
        self.capacity
    }

    fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn free_bytes(&self) -> u64 {
        self.capacity - self.live
    }

    fn largest_free(&self) -> u64 {
        self.capacity - self.bump.used()
    }
}
