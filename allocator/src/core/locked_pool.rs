//! The books of the pool and of its shards, all locked: for whoever wants to see, or change, all at once.

use smallvec::SmallVec;

use crate::core::pool_core::{Books, Entry, Shared};
use crate::core::shard::Local;
use crate::sync::MutexGuard;

/// All that a pool knows.
pub(crate) struct Whole<'a> {
    /// By the shards' numbers.
    pub(crate) shards: SmallVec<[MutexGuard<'a, Local>; 1]>,
    pub(crate) books: MutexGuard<'a, Books>,
}

impl Shared {
    /// Locks all books.
    pub(crate) fn whole(&self) -> Whole<'_> {
        loop {
            let shards: SmallVec<[_; 1]> = self.shards().map(|(_, shard)| shard.local()).collect();
            let books = self.books();
            // They may have come before the books were locked.
            if !shards.is_empty() || self.shards.get().is_none() {
                return Whole { shards, books };
            }
        }
    }
}

impl<'a> Whole<'a> {
    /// As [`Books::free`], wherever the entry's range lies.
    pub(crate) fn free(&mut self, entry: &Entry) {
        let shard = entry.home.and_then(|home| home.shard);
        match shard.and_then(|shard| self.shards.get_mut(shard as usize)) {
            Some(shard) => {
                shard.free(entry);
                self.books.made_room += 1;
            }
            None => self.books.free(entry),
        }
    }

    /// All live fragments, in the order of the books.
    pub(crate) fn fragments(&self) -> impl Iterator<Item = &Entry> {
        let shards = self.shards.iter().flat_map(|shard| shard.fragments.iter());
        self.books.fragments.iter().chain(shards).map(|(_, entry)| entry)
    }

    /// Whether there is a live fragment.
    pub(crate) fn holds_fragments(&self) -> bool {
        self.fragments().next().is_some()
    }

    /// Bytes of what was dropped and is not free yet.
    pub(crate) fn pending_bytes(&self) -> u64 {
        self.books.dropped.bytes + self.shards.iter().map(|shard| shard.exposed_bytes).sum::<u64>()
    }

    /// Keeps the books locked, which all that gives something back locks last.
    pub(crate) fn into_books(self) -> MutexGuard<'a, Books> {
        self.books
    }
}
