//! Statistics of a pool, and snapshots of its regions and fragments.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::books::{Region, ShardBooks};
use crate::core::{LockedPool, PoolCore};

/// Statistics of a pool at one moment. All sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Stats {
    /// Reserved from the memory, in regions.
    pub reserved_bytes: u64,
    /// In live fragments, by their requested sizes. A dropped fragment counts until it is taken off the retire queue.
    pub live_bytes: u64,
    /// Dropped and not free yet: a device may still use them.
    #[serde(default)]
    pub pending_bytes: u64,
    /// In free blocks of the regions. Regions that are backed in parts have none: their free parts are released.
    pub free_bytes: u64,
    /// The largest free block.
    pub largest_free_bytes: u64,
    /// The highest value of `live_bytes`; with shards ([`Sharding`](crate::Sharding)) up to one span for each of them more.
    pub high_water_bytes: u64,
    /// Never reused, because the memory failed to synchronize or to release.
    pub lost_bytes: u64,
    /// Live fragments; clones and slices of one count once, empty ones count.
    pub fragments: usize,
    /// Regions.
    pub regions: usize,
}

/// A pool's regions and fragments at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Snapshot {
    /// The pool's name.
    pub pool: String,
    /// The statistics.
    pub stats: Stats,
    /// The regions with their fragments.
    pub regions: Vec<RegionSnapshot>,
    /// Why the regions of planned batches are not backed in parts, if that was requested.
    #[serde(default)]
    pub whole_because: Option<Arc<str>>,
    /// Labels of the empty fragments, which lie in no region.
    pub empty: Vec<Arc<str>>,
}

/// A region in a [`Snapshot`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RegionSnapshot {
    /// First address.
    pub address: u64,
    /// Length.
    pub bytes: u64,
    /// Bytes that are reserved: less than its length after parts were released.
    #[serde(default)]
    pub reserved_bytes: u64,
    /// In free blocks.
    pub free_bytes: u64,
    /// The largest free block.
    pub largest_free_bytes: u64,
    /// The fragments, by offset.
    pub fragments: Vec<FragmentSnapshot>,
}

/// A fragment in a [`RegionSnapshot`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FragmentSnapshot {
    /// Its label.
    pub label: Arc<str>,
    /// Offset in its region.
    pub offset: u64,
    /// Requested length in bytes.
    pub bytes: u64,
}

impl Stats {
    /// Those of a pool; all 0 in a forked child.
    pub(super) fn of(core: &PoolCore) -> Self {
        if core.is_forked_child() {
            return Self::default();
        }
        Self::of_locked(&LockedPool::lock(core))
    }

    fn of_locked(locked: &LockedPool<'_>) -> Self {
        let (books, counts) = (locked.books(), locked.books().byte_counts());
        let spaces = || locked.spans().map(|span| &span.space);
        Self {
            reserved_bytes: counts.reserved,
            live_bytes: counts.live + locked.shards().map(ShardBooks::live_bytes).sum::<u64>(),
            pending_bytes: locked.pending_bytes(),
            free_bytes: counts.free + spaces().map(|space| space.free_bytes()).sum::<u64>(),
            largest_free_bytes: spaces()
                .map(|space| space.largest_free())
                .fold(counts.largest_free, u64::max),
            high_water_bytes: counts.high_water,
            lost_bytes: counts.lost,
            fragments: books.fragment_count()
                + locked.shards().map(ShardBooks::fragment_count).sum::<usize>(),
            regions: books.region_count(),
        }
    }
}

impl Snapshot {
    /// That of a pool; without regions and fragments in a forked child.
    pub(super) fn of(core: &PoolCore, whole_because: Option<Arc<str>>) -> Self {
        let pool = core.config().name.clone();
        if core.is_forked_child() {
            let stats = Stats::default();
            return Self { pool, stats, regions: Vec::new(), whole_because, empty: Vec::new() };
        }
        let locked = LockedPool::lock(core);
        let (stats, mut regions, mut empty) = (Stats::of_locked(&locked), regions(&locked), Vec::new());
        for entry in locked.fragments() {
            let Some((slot, offset)) = entry.location.and_then(|location| locked.region_offset(location))
            else {
                empty.push(Arc::clone(&entry.label));
                continue;
            };
            // Region slots may have gaps, so a region is looked up by its slot.
            if let Ok(position) = regions.binary_search_by_key(&slot, |(slot, _)| *slot) {
                let (label, bytes) = (Arc::clone(&entry.label), entry.bytes);
                regions[position].1.fragments.push(FragmentSnapshot { label, offset, bytes });
            }
        }
        drop(locked);
        let sorted = |(_, mut region): (usize, RegionSnapshot)| {
            region.fragments.sort_by_key(|fragment| fragment.offset);
            region
        };
        let regions = regions.into_iter().map(sorted).collect();
        Self { pool, stats, regions, whole_because, empty }
    }
}

impl RegionSnapshot {
    /// That of a region, without its fragments.
    fn of(region: &Region) -> Self {
        Self {
            address: region.raw.base.as_ptr() as u64,
            bytes: region.space.capacity(),
            reserved_bytes: region.reserved,
            free_bytes: region.space.free_bytes(),
            largest_free_bytes: region.space.largest_free(),
            fragments: Vec::new(),
        }
    }
}

/// The regions by their slots, with the free blocks of the spans in them, but without fragments.
fn regions(locked: &LockedPool<'_>) -> Vec<(usize, RegionSnapshot)> {
    let regions = locked.books().regions().map(|(slot, region)| (slot, RegionSnapshot::of(region)));
    let mut regions: Vec<(usize, RegionSnapshot)> = regions.collect();
    for span in locked.spans() {
        if let Ok(position) = regions.binary_search_by_key(&span.location.region, |(slot, _)| *slot) {
            let region = &mut regions[position].1;
            region.free_bytes += span.space.free_bytes();
            region.largest_free_bytes = region.largest_free_bytes.max(span.space.largest_free());
        }
    }
    regions
}
