//! [`Space`]: allocates and frees blocks one at a time. The part that all policies share.

use std::iter;
use std::num::NonZeroU64;

use super::best_fit::ByBestFit;
use super::blocks::{Blocks, Node, RING};
use super::keys::{Allocation, Block, CarveError, Key, StaleKey};
use super::policy::Policy;
use super::request::Request;
use super::search::Search;
use super::segregated::BySegregatedFit;

/// A space of offsets, `0..capacity`. The policy `P` chooses the free block for a request: [`BestFit`](super::BestFit) and
/// [`Segregated`](super::Segregated) have a fixed policy; that of a `Space<Policy>` is chosen at run time.
///
/// Every policy grants a request if any free block holds it, so an exact fit is never refused. A request lies at the low
/// end of its block, or at the high end if the neighbour there is larger by a third: the remainder then joins the smaller
/// neighbour when that is freed, which saves 2 % of space under churn. A block that ends with the space is filled from
/// below.
#[derive(Debug)]
pub struct Space<P = Policy> {
    policy: P,
    capacity: u64,
    /// Blocks are rounded up to a multiple of this plus 1.
    granule_mask: u64,
    blocks: Blocks,
    /// Live blocks, empty ones included.
    live: usize,
}

/// A space with exact best fit: of the free blocks that hold a request, the smallest; of equal ones, the lowest.
///
/// The search begins at the size class of the request and looks at every block of a class: usually a few blocks,
/// O(free blocks) in the worst case. With few large blocks, exactness is cheap.
pub type BestFit = Space<ByBestFit>;

/// A space with two-level segregated fit: a good fit in constant time, since the search looks at three blocks.
///
/// A request goes to the first block of its own size class if that holds it, otherwise to a block of the next non-empty
/// class. Other blocks of its own class, which may be large enough, are not looked at. If none of the three blocks holds
/// the request, because the space is nearly full or the alignment is large, the search falls back to best fit.
pub type Segregated = Space<BySegregatedFit>;

impl<P: Search + Default> Space<P> {
    /// An empty space. Block sizes are rounded up to a multiple of `granule` (itself rounded up to a power of two), except
    /// for the last block, which may end with the space.
    pub fn new(capacity: u64, granule: u64) -> Self {
        Self::with_policy(P::default(), capacity, granule)
    }
}

impl<P: Search> Space<P> {
    /// As [`new`](Self::new), with this policy.
    pub fn with_policy(policy: P, capacity: u64, granule: u64) -> Self {
        Self {
            policy,
            capacity,
            granule_mask: granule.checked_next_power_of_two().unwrap_or(1 << 63) - 1,
            blocks: Blocks::new(capacity),
            live: 0,
        }
    }

    /// Takes a block; `None` when no free block holds it, or the alignment is not a power of two.
    ///
    /// An empty request is always granted, at offset 0, with a key of its own. O(1) plus the policy's search; with one free
    /// block there is no search.
    #[inline]
    pub fn allocate(&mut self, request: Request) -> Option<Allocation> {
        let (offset, key) = match self.blocks.bump(request, self.granule_mask) {
            Some(taken) => taken,
            None => self.place(request).map(|index| self.blocks.enliven(index))?,
        };
        self.live += 1;
        Some(Allocation { offset, key })
    }

    /// Takes a block for any request; it is not live yet.
    #[inline(never)]
    fn place(&mut self, request: Request) -> Option<u32> {
        if !request.align.is_power_of_two() || !self.blocks.has_names_for(2) {
            return None;
        }
        if request.size == 0 {
            return Some(self.blocks.insert_empty());
        }
        let (index, low) = self.policy.search(&self.blocks, request)?;
        let block = *self.blocks.node(index);
        let block_end = block.offset + block.size;
        let offset = self.choose_end(block, low, request);
        let end = offset + request.size;
        let rounding = end.wrapping_neg() & self.granule_mask;
        let taken = if rounding < block_end - end { end + rounding } else { block_end };
        Some(self.blocks.take(index, offset, taken))
    }

    /// Where a request that could start at `low` starts in its block: there, or at the block's other end.
    #[inline]
    fn choose_end(&self, block: Node, low: u64, request: Request) -> u64 {
        let end = block.offset + block.size;
        let high = (end - request.size) & !self.granule_mask;
        let (above, below) = (self.blocks.node(block.above).size, self.blocks.node(block.below).size);
        let larger_above = above - above / 4 > below;
        // The high end is as good only if nothing is left above it: that would be one hole more.
        let usable = high > low && (high & (request.align - 1)) | (end & self.granule_mask) == 0;
        if larger_above && usable { high } else { low }
    }

    /// Frees a block, joins it with its free neighbours, and returns its size, rounding included. O(1).
    ///
    /// # Errors
    /// When the key is stale; nothing changes.
    #[inline]
    pub fn free(&mut self, key: Key) -> Result<u64, StaleKey> {
        let size = self.live_block(key)?.size;
        self.live -= 1;
        self.blocks.release(key.index);
        Ok(size)
    }

    /// Divides a live block into live parts that begin at `offsets`, counted from the block's start; each ends where
    /// the next begins, and the last with the block. Returns their keys; `key` is stale from then on. O(parts).
    ///
    /// # Errors
    /// When the key is stale, or the offsets do not begin at 0 and ascend within the block; nothing changes.
    pub fn carve(&mut self, key: Key, offsets: &[u64]) -> Result<Vec<Key>, CarveError> {
        let size = self.live_block(key)?.size;
        let misplaced = |&(index, &offset): &(usize, &u64)| match index.checked_sub(1) {
            None => offset != 0,
            Some(before) => offsets[before] >= offset || offset >= size,
        };
        if let Some((index, &offset)) = offsets.iter().enumerate().find(misplaced) {
            return Err(CarveError::Offsets { index, offset, size });
        }
        if offsets.is_empty() {
            return Err(CarveError::Offsets { index: 0, offset: 0, size });
        }
        if !self.blocks.has_names_for(offsets.len()) {
            return Err(CarveError::TooMany { parts: offsets.len() });
        }
        let (_, mut last) = self.blocks.enliven(key.index);
        let mut keys = Vec::with_capacity(offsets.len());
        for pair in offsets.windows(2) {
            keys.push(last);
            let part = self.blocks.split(last.index, pair[1] - pair[0]);
            (_, last) = self.blocks.enliven(part);
        }
        keys.push(last);
        self.live += offsets.len() - 1;
        Ok(keys)
    }

    /// The policy.
    pub fn policy(&self) -> P {
        self.policy
    }

    /// Size of the space in bytes.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Bytes in free blocks. O(1).
    pub fn free_bytes(&self) -> u64 {
        self.blocks.free_bytes()
    }

    /// Bytes in live blocks, rounding included. O(1).
    pub fn live_bytes(&self) -> u64 {
        self.capacity - self.free_bytes()
    }

    /// Live blocks, empty ones included. O(1).
    pub fn live_blocks(&self) -> usize {
        self.live
    }

    /// Whether there is no live block. O(1).
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// The largest free block, in bytes. O(free blocks of its size class).
    pub fn largest_free(&self) -> u64 {
        self.blocks.largest_free()
    }

    /// The blocks in the order of their offsets, without empty ones.
    pub fn blocks(&self) -> impl Iterator<Item = Block> + '_ {
        let mut at = self.blocks.node(RING).above;
        iter::from_fn(move || {
            let node = (at != RING).then(|| self.blocks.node(at))?;
            let key = NonZeroU64::new(node.stamp).map(|stamp| Key { index: at, stamp });
            at = node.above;
            Some(Block { offset: node.offset, size: node.size, key })
        })
    }

    #[inline]
    fn live_block(&self, key: Key) -> Result<&Node, StaleKey> {
        self.blocks.live(key).ok_or(StaleKey)
    }

    /// Checks F1 to F4.
    #[cfg(test)]
    pub(super) fn check(&self) {
        assert_eq!(self.blocks.check(self.capacity), self.live);
    }
}
