//! [`RegionTable`]: the regions of a pool, and the blocks in them.

use std::ptr::NonNull;
use std::sync::Arc;

use slab::Slab;

use super::entry::{Entry, Location, RegionBlock};
use super::span::Span;
use crate::backing::Backing;
use crate::memory::RawRegion;
use crate::offsets::{Allocation, Key, Request, Space, align_up};

/// A region of the pool.
#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) raw: RawRegion,
    pub(crate) space: Space,
    /// Bytes that count as reserved: all except the parts that were given back.
    pub(crate) reserved: u64,
    /// `Some` if it is backed in parts; then it holds one batch, and nothing else is placed in it.
    pub(crate) backing: Option<Arc<Backing>>,
}

/// A part of a region in which no fragment lies any more.
#[derive(Debug)]
pub(crate) struct UnusedPart {
    /// Slot of the region.
    pub(crate) region: usize,
    /// Index in the backing.
    pub(crate) part: usize,
    pub(crate) backing: Arc<Backing>,
}

/// The regions of a pool, by slots that are reused.
#[derive(Debug, Default)]
pub(super) struct RegionTable(Slab<Region>);

impl Region {
    fn fit(&mut self, slot: usize, request: Request) -> Option<RegionBlock> {
        // Offsets are aligned relative to the region's base, so the base has to be aligned as well.
        if (self.raw.base.as_ptr() as u64) & request.align.wrapping_sub(1) != 0 {
            return None;
        }
        let Allocation { offset, key } = self.space.allocate(request)?;
        let location = Location { shard: None, region: slot, offset, key };
        Some(RegionBlock { location, address: self.address(offset) })
    }

    /// The address at an offset, which lies within the region.
    fn address(&self, offset: u64) -> NonNull<u8> {
        // SAFETY: M1: the callers' offsets are those of blocks of the space, which spans the region's bytes.
        unsafe { self.raw.base.add(offset as usize) }
    }
}

impl RegionTable {
    pub(super) fn insert(&mut self, region: Region) -> usize {
        self.0.insert(region)
    }

    pub(super) fn get(&self, slot: usize) -> Option<&Region> {
        self.0.get(slot)
    }

    pub(super) fn get_mut(&mut self, slot: usize) -> Option<&mut Region> {
        self.0.get_mut(slot)
    }

    pub(super) fn remove(&mut self, slot: usize) -> Option<Region> {
        self.0.try_remove(slot)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Region)> {
        self.0.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// A block in the first region with room, by the pool's policy within the region.
    #[inline]
    pub(super) fn fit(&mut self, request: Request) -> Option<RegionBlock> {
        let mut shared = self.0.iter_mut().filter(|(_, region)| region.backing.is_none());
        shared.find_map(|(slot, region)| region.fit(slot, request))
    }

    /// A block in this region.
    pub(super) fn fit_in(&mut self, slot: usize, request: Request) -> Option<RegionBlock> {
        self.0.get_mut(slot)?.fit(slot, request)
    }

    /// Free bytes of the regions that can be placed in.
    pub(super) fn free_bytes(&self) -> u64 {
        self.shared().map(|region| region.space.free_bytes()).sum()
    }

    /// The largest free block of the regions that can be placed in, in bytes.
    pub(super) fn largest_free(&self) -> u64 {
        self.shared().map(|region| region.space.largest_free()).max().unwrap_or(0)
    }

    fn shared(&self) -> impl Iterator<Item = &Region> {
        self.iter().map(|(_, region)| region).filter(|region| region.backing.is_none())
    }

    /// The address of a location; `None` in a span, or in a region that is backed in parts.
    pub(super) fn shared_address(&self, location: Location) -> Option<NonNull<u8>> {
        let region = self.0.get(location.region).filter(|_| location.shard.is_none())?;
        if region.backing.is_some() {
            return None;
        }
        Some(region.address(location.offset))
    }

    /// Cuts a block into consecutive parts that start at `offsets`.
    pub(super) fn carve(&mut self, block: &RegionBlock, offsets: &[u64]) -> Result<Vec<Key>, String> {
        let region = self.0.get_mut(block.location.region).ok_or("its region is gone")?;
        region.space.carve(block.location.key, offsets).map_err(|error| error.to_string())
    }

    /// Cuts what a request needs off the range of an entry that is at least as large. Returns the block, and the entry of the
    /// remaining bytes.
    pub(super) fn split(
        &mut self,
        entry: &Entry,
        request: Request,
        granule: u64,
    ) -> Result<(RegionBlock, Option<Entry>), String> {
        let location = entry.location.ok_or("it lies nowhere")?;
        let region = self.0.get_mut(location.region).ok_or("its region is gone")?;
        let address = region.address(location.offset);
        let taken = align_up(request.size, granule).filter(|&taken| taken < entry.bytes);
        let Some(taken) = taken else { return Ok((RegionBlock { location, address }, None)) };
        let keys = region.space.carve(location.key, &[0, taken]).map_err(|error| error.to_string())?;
        let [key, rest] = keys[..] else { return Err("it was not cut in two".into()) };
        let rest = Location { offset: location.offset + taken, key: rest, ..location };
        let remainder = Entry::new(Arc::clone(&entry.label), entry.bytes - taken, Some(rest));
        Ok((RegionBlock { location: Location { key, ..location }, address }, Some(remainder)))
    }

    /// Replaces a span's block by the blocks of the span, and frees those that are free there. Returns offsets in the span and keys
    /// of the live ones; `None` where the region cannot name so many blocks.
    pub(super) fn adopt(&mut self, span: &Span) -> Option<Vec<(u64, Key)>> {
        let region = self.0.get_mut(span.location.region)?;
        let offsets: Vec<u64> = span.space.blocks().map(|block| block.offset).collect();
        let keys = region.space.carve(span.location.key, &offsets).ok()?;
        let mut live = Vec::with_capacity(span.space.live_blocks());
        for (block, key) in span.space.blocks().zip(keys) {
            if block.key.is_some() {
                live.push((block.offset, key));
            } else {
                let freed = region.space.free(key);
                debug_assert!(freed.is_ok());
            }
        }
        Some(live)
    }

    /// Slots of the empty regions, except for the first ones that fit into `keep` bytes.
    pub(super) fn empty(&self, mut keep: u64) -> Vec<usize> {
        let mut is_surplus = |region: &Region| match &region.backing {
            Some(backing) => backing.is_gone(),
            None if region.reserved <= keep => {
                keep -= region.reserved;
                false
            }
            None => true,
        };
        let empty = self.iter().filter(|(_, region)| region.space.is_empty());
        empty.filter(|(_, region)| is_surplus(region)).map(|(slot, _)| slot).collect()
    }
}
