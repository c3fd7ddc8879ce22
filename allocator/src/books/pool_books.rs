//! [`Books`]: the books of a pool.

use std::sync::Arc;

use slab::Slab;

use super::contention::Contention;
use super::deferred::{DeferredFrees, PendingRange};
use super::entry::{Entry, Location, RegionBlock};
use super::journal::Journal;
use super::passes::Passes;
use super::regions::{Region, RegionTable, UnusedPart};
use super::usage::{ByteCounts, Usage};
use crate::events::{Header, Recorder};
use crate::offsets::{Key, Placement, Request};
use crate::stream::uses::RecordedUse;

/// The books of a pool, behind its lock.
///
/// Its methods stand here (placing), in `reservations` (regions) and in `frees` (giving back); only they see the fields that have to agree.
/// Between two calls the byte counts agree with the entries: `live` is the sum of the entries' bytes, and `reserved` that of the
/// regions and of those being reserved or released.
#[derive(Debug, Default)]
pub(crate) struct Books {
    pub(super) regions: RegionTable,
    pub(super) fragments: Slab<Entry>,
    pub(super) deferred: DeferredFrees,
    /// Fences that no one asks any more. Dropping one runs the driver's code: the reaper does it, without a lock.
    pub(super) stale_fences: Vec<RecordedUse>,
    pub(super) unused_parts: Vec<UnusedPart>,
    pub(super) usage: Usage,
    /// Counts what makes room for a placement: frees, releases and new regions.
    pub(super) room_changes: u64,
    /// Regions that are being reserved.
    pub(super) reservations: usize,
    pub(crate) passes: Passes,
    pub(crate) contention: Contention,
    /// A placement took something back since the reaper last looked; the rest may be for the reaper.
    pub(super) taken_back: bool,
    pub(super) journal: Journal,
}

impl Books {
    pub(crate) fn new(recorder: Option<Recorder>) -> Self {
        Self { journal: Journal::new(recorder), ..Self::default() }
    }

    /// Describes the pool in its log.
    pub(crate) fn begin_log(&mut self, header: Header) {
        self.journal.begin(header);
    }

    /// A block in the first region with room, by the pool's policy within the region.
    #[inline]
    pub(crate) fn fit(&mut self, request: Request) -> Option<RegionBlock> {
        self.regions.fit(request)
    }

    /// Enters a single fragment and returns its slot.
    pub(crate) fn enter(
        &mut self,
        label: Arc<str>,
        bytes: u64,
        align: u64,
        location: Option<Location>,
    ) -> usize {
        self.insert(label, bytes, location, |journal, entry| journal.alloc(entry, align))
    }

    /// A block was taken for a planned batch.
    pub(crate) fn enter_block(&mut self, label: &Arc<str>, request: Request, block: &RegionBlock) {
        self.journal.take(label, request, block);
    }

    /// Makes room for the entries of so many fragments.
    pub(crate) fn expect_fragments(&mut self, count: usize) {
        self.fragments.reserve(count);
    }

    /// Enters a fragment of a planned batch and returns its slot. [`end_batch`](Self::end_batch) follows the last one under the same
    /// lock.
    pub(crate) fn enter_planned(
        &mut self,
        label: Arc<str>,
        location: Option<Location>,
        placement: &Placement,
    ) -> usize {
        self.insert(label, placement.bytes, location, |journal, entry| journal.part(entry, placement))
    }

    /// The fragments entered before have replaced these blocks.
    pub(crate) fn end_batch<'a>(&mut self, blocks: impl Iterator<Item = &'a RegionBlock>) {
        self.journal.cut(blocks);
    }

    /// Enters a block that was never cut as a fragment, and returns its slot.
    pub(crate) fn enter_uncut(&mut self, label: Arc<str>, bytes: u64, location: Location) -> usize {
        self.insert(label, bytes, Some(location), Journal::uncut)
    }

    #[inline]
    fn insert(
        &mut self,
        label: Arc<str>,
        bytes: u64,
        location: Option<Location>,
        log: impl FnOnce(&mut Journal, &mut Entry),
    ) -> usize {
        self.usage.enter(bytes);
        let mut entry = Entry::new(label, bytes, location);
        log(&mut self.journal, &mut entry);
        self.fragments.insert(entry)
    }

    /// Cuts a block into consecutive parts that start at `offsets`.
    pub(crate) fn carve(&mut self, block: &RegionBlock, offsets: &[u64]) -> Result<Vec<Key>, String> {
        self.regions.carve(block, offsets)
    }

    /// Claims the smallest pending range that holds the request, unless it lies in a region that is backed in parts; ranges used on this
    /// stream alone come first.
    pub(crate) fn claim_pending(&mut self, request: Request, stream: u64) -> Option<PendingRange> {
        let Self { deferred, regions, .. } = self;
        deferred.claim(request, stream, |location| regions.shared_address(location))
    }

    /// As [`RegionTable::split`].
    pub(crate) fn split(
        &mut self,
        entry: &Entry,
        request: Request,
        granule: u64,
    ) -> Result<(RegionBlock, Option<Entry>), String> {
        self.regions.split(entry, request, granule)
    }

    /// A claimed range was divided into other entries. In the log it is reaped, and they are new. The remainder, if there is one,
    /// waits for the same fences as before; otherwise they are returned, to be dropped without the lock.
    pub(crate) fn reuse(&mut self, range: PendingRange, remainder: Option<Entry>) -> Vec<RecordedUse> {
        let PendingRange { entry, uses, .. } = range;
        self.deferred.end_claim(&entry);
        self.journal.reap(&entry, true);
        self.journal.end_pass();
        match remainder {
            None => uses,
            Some(mut remainder) => {
                self.journal.remainder(&mut remainder);
                self.deferred.wait_for(remainder, uses);
                Vec::new()
            }
        }
    }

    /// A claimed range was not used, and waits again.
    pub(crate) fn return_claim(&mut self, range: PendingRange) {
        self.deferred.return_claim(range);
    }

    pub(crate) fn fragments(&self) -> impl Iterator<Item = &Entry> {
        self.fragments.iter().map(|(_, entry)| entry)
    }

    pub(crate) fn fragment_count(&self) -> usize {
        self.fragments.len()
    }

    /// The regions, by their slots.
    pub(crate) fn regions(&self) -> impl Iterator<Item = (usize, &Region)> {
        self.regions.iter()
    }

    pub(crate) fn region_count(&self) -> usize {
        self.regions.len()
    }

    /// Bytes in free blocks of regions that can be placed in.
    pub(crate) fn free_bytes(&self) -> u64 {
        self.regions.free_bytes()
    }

    /// The largest free block, in bytes.
    pub(crate) fn largest_free(&self) -> u64 {
        self.regions.largest_free()
    }

    /// Bytes of dropped ranges that are not free yet, without those of the shards.
    pub(crate) fn pending_bytes(&self) -> u64 {
        self.deferred.bytes()
    }

    pub(crate) fn byte_counts(&self) -> ByteCounts {
        ByteCounts {
            reserved: self.usage.reserved(),
            live: self.usage.live(),
            free: self.free_bytes(),
            largest_free: self.largest_free(),
            high_water: self.usage.high_water(),
            lost: self.usage.lost(),
        }
    }
}
