//! [`LockedPool`]: the books of a pool and of its shards, all locked, for whoever reads or changes all at once.

use smallvec::SmallVec;

use super::pool_core::PoolCore;
use crate::books::{Books, Entry, Location, ShardBooks, Span};
use crate::sync::MutexGuard;

/// All books of a pool.
pub(crate) struct LockedPool<'a> {
    /// By the shards' numbers.
    shards: SmallVec<[MutexGuard<'a, ShardBooks>; 1]>,
    books: MutexGuard<'a, Books>,
}

impl<'a> LockedPool<'a> {
    /// Locks all books.
    pub(crate) fn lock(core: &'a PoolCore) -> Self {
        loop {
            let shards: SmallVec<[_; 1]> = core.shards().map(|(_, shard)| shard.books()).collect();
            let books = core.books();
            // Shards may have been made before the books were locked.
            if !shards.is_empty() || core.shard_slice().is_none() {
                return Self { shards, books };
            }
        }
    }

    pub(crate) fn books(&self) -> &Books {
        &self.books
    }

    pub(crate) fn books_mut(&mut self) -> &mut Books {
        &mut self.books
    }

    pub(crate) fn shards(&self) -> impl Iterator<Item = &ShardBooks> {
        self.shards.iter().map(|shard| &**shard)
    }

    /// As [`Books::free`], wherever the entry's range lies.
    pub(crate) fn free(&mut self, entry: &Entry) {
        let shard = entry.location.and_then(|location| location.shard);
        match shard.and_then(|shard| self.shards.get_mut(shard as usize)) {
            Some(shard) => {
                shard.free(entry);
                self.books.note_room();
            }
            None => self.books.free(entry),
        }
    }

    /// All live fragments, in the order of the books.
    pub(crate) fn fragments(&self) -> impl Iterator<Item = &Entry> {
        self.books.fragments().chain(self.shards().flat_map(ShardBooks::fragments))
    }

    pub(crate) fn spans(&self) -> impl Iterator<Item = &Span> {
        self.shards().flat_map(ShardBooks::spans)
    }

    /// Slot of the region, and offset there, of a location.
    pub(crate) fn region_offset(&self, location: Location) -> Option<(usize, u64)> {
        let Some(shard) = location.shard else { return Some((location.region, location.offset)) };
        let span = self.shards.get(shard as usize)?.span(location.region)?.location;
        Some((span.region, span.offset + location.offset))
    }

    /// Whether there is a live fragment.
    pub(crate) fn has_fragments(&self) -> bool {
        self.fragments().next().is_some()
    }

    /// Whether there is a fragment or a region, also one that is being reserved or holds dropped ranges (R2).
    pub(crate) fn holds_anything(&self) -> bool {
        self.has_fragments() || self.books.region_count() > 0 || self.books.reserved_bytes() > 0
    }

    /// Bytes that were dropped and are not free yet.
    pub(crate) fn pending_bytes(&self) -> u64 {
        self.books.pending_bytes() + self.shards().map(ShardBooks::exposed_bytes).sum::<u64>()
    }

    /// Unlocks all but the pool's books, whose lock comes last in the order.
    pub(crate) fn into_books(self) -> MutexGuard<'a, Books> {
        self.books
    }
}
