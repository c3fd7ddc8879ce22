//! Placing in shards.

use std::sync::Arc;

use crate::books::{Location, RegionBlock, ShardBooks};
use crate::core::{PoolCore, Shard, ThreadSlot};
use crate::error::Result;
use crate::offsets::Request;
use crate::reclaim::{take_back_for_placement, take_back_in_shard};
use crate::sync::MutexGuard;

/// The largest fragment placed in a span is this part of it.
const FRAGMENTS_PER_SPAN: u64 = 4;

/// Shards that are tried before a placement waits for a lock.
const ATTEMPTS: usize = 4;

/// A shard that is locked for a placement.
pub(super) struct OpenShard<'a> {
    core: &'a PoolCore,
    number: u8,
    books: MutexGuard<'a, ShardBooks>,
}

impl<'a> OpenShard<'a> {
    /// Locks a shard for a placement, unless the pool is closed; `None` if there are no shards, or they do not serve such a request. The
    /// pool cannot end while the lock is held. What was dropped there and nothing can be using is free.
    #[inline]
    pub(super) fn open(core: &'a PoolCore, label: &str, request: Request) -> Result<Option<Self>> {
        let Some(shards) = core.shard_slice() else { return Ok(None) };
        let config = core.config();
        // Spans are aligned to granules.
        if request.size > config.span_bytes() / FRAGMENTS_PER_SPAN || request.align > config.granule {
            return Ok(None);
        }
        core.check_process("place")?;
        let (number, shard, mut books) = lock_own(shards);
        core.check_open(label)?;
        if take_back_in_shard(core, shard, &mut books) {
            books.note_taken_back();
            if books.calls_reaper(config.span_bytes()) {
                core.wake_reaper();
            }
        }
        Ok(Some(Self { core, number, books }))
    }

    pub(super) fn number(&self) -> u8 {
        self.number
    }

    /// A block in the first span with room, or in a new one. `None` if the regions have no span to spare.
    #[inline]
    pub(super) fn fit(&mut self, request: Request) -> Option<RegionBlock> {
        self.books.fit(self.number, request).or_else(|| {
            self.take_span()?;
            self.books.fit(self.number, request)
        })
    }

    #[cold]
    fn take_span(&mut self) -> Option<()> {
        let (core, config) = (self.core, self.core.config());
        let mut books = core.books();
        take_back_for_placement(core, &mut books);
        let bytes = config.span_bytes();
        // Where room is scarce, free ranges are kept together.
        if books.free_bytes() / 4 < bytes {
            return None;
        }
        let block = books.fit(Request::new(bytes, config.granule))?;
        self.books.add_span(block, bytes, config.policy, config.granule);
        Some(())
    }

    /// Enters a live fragment and returns its slot.
    #[inline]
    pub(super) fn enter(&mut self, label: Arc<str>, bytes: u64, location: Location) -> usize {
        let slot = self.books.enter(label, bytes, location);
        let band = self.core.config().span_bytes();
        if self.books.must_report(band) {
            self.books.report(&mut self.core.books(), band / 4);
        }
        slot
    }
}

/// Locks the shard of this thread, or one where it meets no other. Returns the shard and its number.
fn lock_own(shards: &[Shard]) -> (u8, &Shard, MutexGuard<'_, ShardBooks>) {
    let mut slot = ThreadSlot::current();
    let number = |slot: ThreadSlot| slot.shard % shards.len();
    let mut free = None;
    for _ in 0..ATTEMPTS {
        let shard = &shards[number(slot)];
        free = shard.try_books();
        // If no other thread places there, the reaper has the lock, for a short time.
        if free.is_some() || shard.is_of(slot.thread) {
            break;
        }
        slot = slot.advance();
    }
    let shard = &shards[number(slot)];
    let books = free.unwrap_or_else(|| shard.books());
    shard.set_thread(slot.thread);
    (number(slot) as u8, shard, books)
}
