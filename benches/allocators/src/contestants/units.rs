//! Peers that place blocks in a range of numbers and touch no memory. They are given granules of 256 bytes, so that
//! blocks are aligned by themselves, and sizes fit the numbers of those whose numbers are small.

use std::ops::Range;

use buddy_system_allocator::FrameAllocator;
use offset_allocator::{Allocation, Allocator};
use range_alloc::RangeAllocator;

use super::{Contestant, GRANULE, largest};

/// `range-alloc`: best fit by looking at each free range.
pub(crate) struct RangeAlloc(RangeAllocator<u64>);

impl Contestant for RangeAlloc {
    type Live = Range<u64>;

    fn name() -> String {
        "range-alloc".into()
    }

    fn new(capacity: u64) -> Result<Self, String> {
        Ok(Self(RangeAllocator::new(0..capacity / GRANULE)))
    }

    #[inline]
    fn allocate(&mut self, size: u64) -> Option<(u64, Range<u64>)> {
        let range = self.0.allocate_range(size.div_ceil(GRANULE)).ok()?;
        Some((range.start * GRANULE, range))
    }

    #[inline]
    fn free(&mut self, live: Range<u64>) {
        self.0.free_range(live);
    }

    fn is_empty(&mut self) -> bool {
        self.0.is_empty()
    }
}

/// `offset-allocator`: classes of an eighth of a power of two, any block of the first class that surely holds a request.
pub(crate) struct OffsetAllocator {
    units: u32,
    space: Allocator,
}

impl Contestant for OffsetAllocator {
    type Live = Allocation;

    fn name() -> String {
        "offset-allocator".into()
    }

    fn new(capacity: u64) -> Result<Self, String> {
        let units = u32::try_from(capacity / GRANULE).map_err(|_| "sizes have 32 bits")?;
        Ok(Self { units, space: Allocator::new(units) })
    }

    #[inline]
    fn allocate(&mut self, size: u64) -> Option<(u64, Allocation)> {
        let placed = self.space.allocate(u32::try_from(size.div_ceil(GRANULE)).ok()?)?;
        Some((u64::from(placed.offset) * GRANULE, placed))
    }

    #[inline]
    fn free(&mut self, live: Allocation) {
        self.space.free(live);
    }

    fn is_empty(&mut self) -> bool {
        // It tells the size of the largest block by its class, rounded down.
        let free_regions = self.space.storage_report_full().free_regions;
        self.space.storage_report().total_free_space == self.units
            && free_regions.iter().map(|class| class.count).sum::<u32>() == 1
    }
}

/// `buddy_system_allocator`'s frames: powers of two, free ones in trees.
pub(crate) struct BuddyFrames {
    capacity: u64,
    whole: u64,
    space: FrameAllocator,
}

impl Contestant for BuddyFrames {
    /// First frame and their count.
    type Live = (usize, usize);

    fn name() -> String {
        "buddy_system_allocator frames".into()
    }

    fn new(capacity: u64) -> Result<Self, String> {
        let mut space = FrameAllocator::new();
        space.insert(0..(capacity / GRANULE) as usize);
        let mut space = Self { capacity, whole: 0, space };
        space.whole = largest(&mut space, capacity);
        Ok(space)
    }

    #[inline]
    fn allocate(&mut self, size: u64) -> Option<(u64, (usize, usize))> {
        let count = size.div_ceil(GRANULE) as usize;
        let start = self.space.alloc(count)?;
        Some((start as u64 * GRANULE, (start, count)))
    }

    #[inline]
    fn free(&mut self, (start, count): (usize, usize)) {
        self.space.dealloc(start, count);
    }

    fn is_empty(&mut self) -> bool {
        largest(self, self.capacity) == self.whole
    }
}
