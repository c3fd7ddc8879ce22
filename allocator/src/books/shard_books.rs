//! [`ShardBooks`]: the books of a shard.

use std::mem;
use std::sync::Arc;

use slab::Slab;

use super::deferred::{Disposition, SortedRange};
use super::entry::{Entry, Location, RegionBlock};
use super::pool_books::Books;
use super::span::Span;
use crate::offsets::{Key, Policy, Request};
use crate::stream::uses::{RecordedUse, Uses};

/// So many exposed ranges are worth a pass of the reaper.
const MANY_EXPOSED: usize = 32;

/// The books of a shard, behind its lock.
#[derive(Debug, Default)]
pub(crate) struct ShardBooks {
    spans: Slab<Span>,
    /// H1.
    fragments: Slab<Entry>,
    /// Bytes in the fragments.
    live: u64,
    /// What the shard last reported of `live` to the pool's books: as much, or somewhat more.
    reported: u64,
    /// Ranges that wait until the memory is synchronized.
    exposed: Vec<Entry>,
    exposed_bytes: u64,
    /// As in [`Books`].
    stale_fences: Vec<RecordedUse>,
    /// The reaper was woken for the exposed ranges.
    reaper_called: bool,
    /// As in [`Books`].
    taken_back: bool,
}

impl ShardBooks {
    /// A block in the first span with room.
    #[inline]
    pub(crate) fn fit(&mut self, shard: u8, request: Request) -> Option<RegionBlock> {
        self.spans.iter_mut().find_map(|(slot, span)| span.fit(shard, slot, request))
    }

    /// Adds a span: a block of `bytes` that was taken from a region.
    pub(crate) fn add_span(&mut self, block: RegionBlock, bytes: u64, policy: Policy, granule: u64) {
        self.spans.insert(Span::new(block, bytes, policy, granule));
    }

    /// Enters a live fragment and returns its slot.
    #[inline]
    pub(crate) fn enter(&mut self, label: Arc<str>, bytes: u64, location: Location) -> usize {
        self.live += bytes;
        self.fragments.insert(Entry::new(label, bytes, Some(location)))
    }

    /// Whether the report to the pool's books is too low, or too high by more than `band` bytes.
    #[inline]
    pub(crate) fn must_report(&self, band: u64) -> bool {
        self.live > self.reported || self.reported - self.live > band
    }

    /// Reports the live bytes, and `margin` more, to the pool's books, for their high water.
    pub(crate) fn report(&mut self, books: &mut Books, margin: u64) {
        let live = self.live + margin;
        books.report_shard(self.reported, live);
        self.reported = live;
    }

    /// Removes a retired fragment. Frees its range if nothing can be using it; returns it if that is for the pool's books.
    pub(crate) fn retire(&mut self, slot: usize, uses: Uses, waits_for_devices: bool) -> Option<SortedRange> {
        let entry = self.fragments.try_remove(slot)?;
        self.live -= entry.bytes;
        let (exposed, uses) = uses.into_parts();
        match Disposition::of(&entry, exposed && waits_for_devices, uses, &mut self.stale_fences) {
            Disposition::Free if entry.is_in_span() => self.free(&entry),
            Disposition::Exposed => {
                self.exposed_bytes += entry.bytes;
                self.exposed.push(entry);
            }
            disposition => return Some(SortedRange { entry, disposition }),
        }
        None
    }

    /// Frees the range of an entry that was removed and lies in a span of this shard.
    pub(crate) fn free(&mut self, entry: &Entry) {
        let Some(location) = entry.location else { return };
        if let Some(span) = self.spans.get_mut(location.region) {
            let freed = span.space.free(location.key);
            debug_assert!(freed.is_ok());
        }
    }

    /// Whether the reaper should come now for the exposed ranges, and not only soon. True once for each time that it comes.
    pub(crate) fn calls_reaper(&mut self, span_bytes: u64) -> bool {
        let much = self.exposed_bytes > span_bytes / 4 || self.exposed.len() > MANY_EXPOSED;
        much && !mem::replace(&mut self.reaper_called, true)
    }

    /// How many ranges wait until the memory is synchronized. The reaper has come for them.
    pub(crate) fn answer_call(&mut self) -> usize {
        self.reaper_called = false;
        self.exposed.len()
    }

    /// Removes the first `count` of these.
    pub(crate) fn take_exposed(&mut self, count: usize) -> Vec<Entry> {
        let taken: Vec<Entry> = self.exposed.drain(..count).collect();
        self.exposed_bytes -= taken.iter().map(|entry| entry.bytes).sum::<u64>();
        taken
    }

    pub(crate) fn has_exposed(&self) -> bool {
        !self.exposed.is_empty()
    }

    /// As [`Books::take_stale_fences`].
    pub(crate) fn take_stale_fences(&mut self) -> Vec<RecordedUse> {
        mem::take(&mut self.stale_fences)
    }

    /// As [`Books::note_taken_back`].
    pub(crate) fn note_taken_back(&mut self) {
        self.taken_back = true;
    }

    /// As [`Books::was_taken_back`].
    pub(crate) fn was_taken_back(&mut self) -> bool {
        mem::take(&mut self.taken_back)
    }

    /// Whether a span is empty, or the report to the pool's books not exact.
    pub(crate) fn has_surplus(&self) -> bool {
        self.reported != self.live || self.spans.iter().any(|(_, span)| span.space.is_empty())
    }

    /// Gives empty spans back to their regions, and reports exactly.
    pub(crate) fn give_back_surplus(&mut self, books: &mut Books) {
        self.spans.retain(|_, span| {
            let is_empty = span.space.is_empty();
            if is_empty {
                books.free_block(&span.location, span.bytes());
            }
            !is_empty
        });
        self.report(books, 0);
    }

    pub(crate) fn has_spans(&self) -> bool {
        !self.spans.is_empty()
    }

    /// Makes the blocks of all spans blocks of the pool's regions. Entries that lie in them, here and in the pool's books, move.
    pub(crate) fn dissolve(&mut self, shard: u8, books: &mut Books) {
        let spans: Vec<(usize, Vec<(u64, Key)>)> =
            self.spans.iter().filter_map(|(slot, span)| Some((slot, books.adopt(span)?))).collect();
        let relocate = |entry: &mut Entry| {
            let Some(from) = entry.location.filter(|location| location.shard == Some(shard)) else { return };
            let Ok(at) = spans.binary_search_by_key(&from.region, |(slot, _)| *slot) else { return };
            let Some(span) = self.spans.get(from.region) else { return };
            let blocks = &spans[at].1;
            if let Ok(block) = blocks.binary_search_by_key(&from.offset, |(offset, _)| *offset) {
                let (region, offset) = (span.location.region, span.location.offset + from.offset);
                entry.location = Some(Location { shard: None, region, offset, key: blocks[block].1 });
            }
        };
        self.fragments.iter_mut().map(|(_, entry)| entry).chain(&mut self.exposed).for_each(relocate);
        books.deferred_entries_mut().for_each(relocate);
        for (slot, _) in spans {
            self.spans.try_remove(slot);
        }
    }

    pub(crate) fn fragments(&self) -> impl Iterator<Item = &Entry> {
        self.fragments.iter().map(|(_, entry)| entry)
    }

    pub(crate) fn fragment_count(&self) -> usize {
        self.fragments.len()
    }

    pub(crate) fn spans(&self) -> impl Iterator<Item = &Span> {
        self.spans.iter().map(|(_, span)| span)
    }

    pub(crate) fn span(&self, slot: usize) -> Option<&Span> {
        self.spans.get(slot)
    }

    /// Bytes in live fragments.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.live
    }

    /// Bytes that wait until the memory is synchronized.
    pub(crate) fn exposed_bytes(&self) -> u64 {
        self.exposed_bytes
    }
}
