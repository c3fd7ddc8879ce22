//! Regions that come and go, and their parts.

use std::mem;
use std::sync::Arc;

use super::entry::RegionBlock;
use super::pool_books::Books;
use super::regions::{Region, UnusedPart};
use super::span::Span;
use crate::backing::Backing;
use crate::memory::RawRegion;
use crate::offsets::{Key, Request, Space};

impl Books {
    /// A region of `bytes` is about to be reserved: it counts as reserved from here on, so that the limit holds.
    pub(crate) fn begin_reservation(&mut self, bytes: u64) {
        self.usage.reserve(bytes);
        self.reservations += 1;
    }

    /// The region was not reserved.
    pub(crate) fn cancel_reservation(&mut self, bytes: u64) {
        self.reservations -= 1;
        self.usage.release(bytes);
    }

    /// The region was reserved: adds it and returns its slot. Bytes that are in no part of its backing are given back already.
    pub(crate) fn end_reservation(
        &mut self,
        raw: RawRegion,
        bytes: u64,
        space: Space,
        backing: Option<Arc<Backing>>,
    ) -> usize {
        self.reservations -= 1;
        self.room_changes += 1;
        let gaps = backing.as_ref().map_or(0, |backing| bytes.saturating_sub(backing.parts_bytes()));
        let region = self.regions.insert(Region { raw, space, reserved: bytes - gaps, backing });
        self.journal.grow(region, bytes);
        if gaps > 0 {
            self.usage.release(gaps);
            self.journal.release_part(region, gaps);
        }
        region
    }

    /// Whether regions are being reserved.
    pub(crate) fn has_reservations(&self) -> bool {
        self.reservations > 0
    }

    /// Whether bytes count as reserved that are in no region: of one that is being reserved or released.
    pub(crate) fn is_in_transit(&self) -> bool {
        self.usage.reserved() != self.regions.iter().map(|(_, region)| region.reserved).sum::<u64>()
    }

    /// Bytes that count as reserved.
    pub(crate) fn reserved_bytes(&self) -> u64 {
        self.usage.reserved()
    }

    /// A block in this region.
    pub(crate) fn fit_in(&mut self, region: usize, request: Request) -> Option<RegionBlock> {
        self.regions.fit_in(region, request)
    }

    /// The backing of a region that is backed in parts.
    pub(crate) fn backing(&self, region: usize) -> Option<&Arc<Backing>> {
        self.regions.get(region)?.backing.as_ref()
    }

    /// No fragment lies in these parts of a region any more: the reaper gives them back.
    pub(crate) fn queue_unused_parts(&mut self, region: usize, backing: &Arc<Backing>, parts: Vec<usize>) {
        let unused = |part| UnusedPart { region, part, backing: Arc::clone(backing) };
        self.unused_parts.extend(parts.into_iter().map(unused));
    }

    /// Removes the queued parts.
    pub(crate) fn take_unused_parts(&mut self) -> Vec<UnusedPart> {
        mem::take(&mut self.unused_parts)
    }

    /// A part of a region was given back, or is lost.
    pub(crate) fn end_part(&mut self, region: usize, bytes: u64, lost: bool) {
        self.usage.release(bytes);
        self.room_changes += 1;
        // It is there, since it is not released before its parts are gone (J2).
        if let Some(region) = self.regions.get_mut(region) {
            region.reserved -= bytes;
        }
        self.journal.release_part(region, bytes);
        if lost {
            self.usage.lose(bytes);
        }
    }

    /// Removes the empty regions, except for the first ones that fit into `keep` bytes. They count as reserved until
    /// [`end_release`](Self::end_release).
    pub(crate) fn take_empty_regions(&mut self, keep: u64) -> Vec<Region> {
        self.journal.trim(keep);
        let empty = self.regions.empty(keep);
        let remove = |slot| {
            let region = self.regions.remove(slot)?;
            self.journal.release(slot, region.reserved);
            Some(region)
        };
        empty.into_iter().filter_map(remove).collect()
    }

    /// A region that was removed was released, or is lost.
    pub(crate) fn end_release(&mut self, bytes: u64, lost: bool) {
        self.usage.release(bytes);
        self.room_changes += 1;
        if lost {
            self.usage.lose(bytes);
        }
    }

    /// Replaces a span's block by the blocks in the span. Returns offsets in the span and keys of the live ones.
    pub(super) fn adopt(&mut self, span: &Span) -> Option<Vec<(u64, Key)>> {
        let live = self.regions.adopt(span)?;
        self.room_changes += 1;
        Some(live)
    }
}
