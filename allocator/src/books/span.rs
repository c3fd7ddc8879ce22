//! [`Span`]: a block of a region that a shard divides.

use super::entry::{Location, RegionBlock};
use crate::memory::RawRegion;
use crate::offsets::{Allocation, Policy, Request, Space};

/// A block of a region that a shard divides (H2).
#[derive(Debug)]
pub(crate) struct Span {
    /// Of the block, in a region of the pool.
    pub(crate) location: Location,
    raw: RawRegion,
    pub(crate) space: Space,
}

impl Span {
    /// A span of the first `bytes` of a block.
    pub(super) fn new(block: RegionBlock, bytes: u64, policy: Policy, granule: u64) -> Self {
        let RegionBlock { location, address: base } = block;
        let space = Space::with_policy(policy, bytes, granule);
        Self { location, raw: RawRegion { base, bytes }, space }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.raw.bytes
    }

    /// A block of this span, which is that shard's and has this slot there.
    pub(super) fn fit(&mut self, shard: u8, slot: usize, request: Request) -> Option<RegionBlock> {
        let Allocation { offset, key } = self.space.allocate(request)?;
        let location = Location { shard: Some(shard), region: slot, offset, key };
        // SAFETY: M1, H2: the offset is that of a block of the space, which spans the span's bytes, and these lie in its region.
        let address = unsafe { self.raw.base.add(offset as usize) };
        Some(RegionBlock { location, address })
    }
}
