//! What a pool says of itself: numbers, and a list of its regions and fragments.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::core::locked_pool::Whole;
use crate::core::pool_core::{Home, Shared};
use crate::core::shard::Span;

/// A pool's numbers at one moment. All sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Stats {
    /// Reserved from the memory, in regions.
    pub reserved_bytes: u64,
    /// In live fragments, by the sizes asked for. A dropped fragment counts until it has been taken off the queue of drops.
    pub live_bytes: u64,
    /// Dropped, and not free yet: a device may still be using them.
    #[serde(default)]
    pub pending_bytes: u64,
    /// In free blocks of the regions; those that are backed in parts have none, for what is free there goes back.
    pub free_bytes: u64,
    /// The largest free block.
    pub largest_free_bytes: u64,
    /// The most that `live_bytes` has been; where threads place in shards ([`Sharding`](crate::Sharding)), up to a span of each more.
    pub high_water_bytes: u64,
    /// Lost for good, because the memory failed to synchronize or to release.
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
    /// The numbers.
    pub stats: Stats,
    /// The regions, each with what lies in it.
    pub regions: Vec<RegionSnapshot>,
    /// Why the regions of planned batches are not backed in parts, where that was asked for.
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
    /// How much of it is reserved: less than its length where parts of it have been given back.
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
    /// What it was called when it was placed.
    pub label: Arc<str>,
    /// Offset in its region.
    pub offset: u64,
    /// Length as asked for.
    pub bytes: u64,
}

impl Shared {
    pub(crate) fn stats(&self) -> Stats {
        if self.is_forked_child() {
            return Stats::default();
        }
        self.whole().stats()
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        if self.is_forked_child() {
            let (pool, stats) = (self.name.clone(), Stats::default());
            return Snapshot { pool, stats, regions: Vec::new(), whole_because: None, empty: Vec::new() };
        }
        let whole = self.whole();
        let (stats, mut regions, mut empty) = (whole.stats(), whole.regions(), Vec::new());
        for entry in whole.fragments() {
            let Some((slot, offset)) = entry.home.and_then(|home| whole.place(home)) else {
                empty.push(Arc::clone(&entry.label));
                continue;
            };
            // Region slots may have gaps: the position of a slot in `regions` is looked up by the slot.
            if let Ok(position) = regions.binary_search_by_key(&slot, |(slot, _)| *slot) {
                let (label, bytes) = (Arc::clone(&entry.label), entry.bytes);
                regions[position].1.fragments.push(FragmentSnapshot { label, offset, bytes });
            }
        }
        drop(whole);
        let sorted = |(_, mut region): (usize, RegionSnapshot)| {
            region.fragments.sort_by_key(|fragment| fragment.offset);
            region
        };
        let regions = regions.into_iter().map(sorted).collect();
        Snapshot { pool: self.name.clone(), stats, regions, whole_because: None, empty }
    }
}

impl Whole<'_> {
    fn stats(&self) -> Stats {
        let Self { shards, books } = self;
        let spans = || self.spans().map(|span| &span.space);
        Stats {
            reserved_bytes: books.reserved,
            live_bytes: books.live + shards.iter().map(|shard| shard.live).sum::<u64>(),
            pending_bytes: self.pending_bytes(),
            free_bytes: books.free_bytes() + spans().map(|space| space.free_bytes()).sum::<u64>(),
            largest_free_bytes: spans()
                .map(|space| space.largest_free())
                .fold(books.largest_free(), u64::max),
            high_water_bytes: books.high_water,
            lost_bytes: books.lost,
            fragments: books.fragments.len()
                + shards.iter().map(|shard| shard.fragments.len()).sum::<usize>(),
            regions: books.regions.len(),
        }
    }

    fn spans(&self) -> impl Iterator<Item = &Span> {
        self.shards.iter().flat_map(|shard| shard.spans.iter().map(|(_, span)| span))
    }

    /// Region and offset of what lies somewhere.
    fn place(&self, home: Home) -> Option<(usize, u64)> {
        let Some(shard) = home.shard else { return Some((home.region, home.offset)) };
        let span = self.shards.get(shard as usize)?.spans.get(home.region)?;
        Some((span.home.region, span.home.offset + home.offset))
    }

    /// The regions, without their fragments, by their slots.
    fn regions(&self) -> Vec<(usize, RegionSnapshot)> {
        let mut regions: Vec<(usize, RegionSnapshot)> = self
            .books
            .regions
            .iter()
            .map(|(slot, region)| {
                let snapshot = RegionSnapshot {
                    address: region.raw.base.as_ptr() as u64,
                    bytes: region.space.capacity(),
                    reserved_bytes: region.reserved,
                    free_bytes: region.space.free_bytes(),
                    largest_free_bytes: region.space.largest_free(),
                    fragments: Vec::new(),
                };
                (slot, snapshot)
            })
            .collect();
        for span in self.spans() {
            if let Ok(position) = regions.binary_search_by_key(&span.home.region, |(slot, _)| *slot) {
                let region = &mut regions[position].1;
                region.free_bytes += span.space.free_bytes();
                region.largest_free_bytes = region.largest_free_bytes.max(span.space.largest_free());
            }
        }
        regions
    }
}
