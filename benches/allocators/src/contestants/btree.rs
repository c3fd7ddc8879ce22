//! Best fit from the standard library's trees, as one would write it in an afternoon.
//!
//! Free blocks are in a map by offset, in which a freed block finds its neighbours, and in a set by size and offset, in
//! which a request finds the smallest block that holds it, of equal ones the lowest.

use std::collections::{BTreeMap, BTreeSet};

use super::{Contestant, GRANULE};

pub(crate) struct BTree {
    capacity: u64,
    /// Offset to size.
    by_offset: BTreeMap<u64, u64>,
    /// Size and offset.
    by_size: BTreeSet<(u64, u64)>,
}

/// A live block is its owner's alone: it is in no tree, so that a wrong one is not noticed.
pub(crate) struct Live {
    offset: u64,
    size: u64,
}

impl BTree {
    fn insert(&mut self, offset: u64, size: u64) {
        self.by_offset.insert(offset, size);
        self.by_size.insert((size, offset));
    }

    fn remove(&mut self, offset: u64, size: u64) {
        self.by_offset.remove(&offset);
        self.by_size.remove(&(size, offset));
    }
}

impl Contestant for BTree {
    type Live = Live;

    fn name() -> String {
        "BTree best fit".into()
    }

    fn new(capacity: u64) -> Result<Self, String> {
        let mut space = Self { capacity, by_offset: BTreeMap::new(), by_size: BTreeSet::new() };
        space.insert(0, capacity);
        Ok(space)
    }

    fn allocate(&mut self, size: u64) -> Option<(u64, Live)> {
        let size = size.next_multiple_of(GRANULE);
        let &(free, offset) = self.by_size.range((size, 0)..).next()?;
        self.remove(offset, free);
        if free > size {
            self.insert(offset + size, free - size);
        }
        Some((offset, Live { offset, size }))
    }

    fn free(&mut self, Live { mut offset, mut size }: Live) {
        let below = self.by_offset.range(..offset).next_back().map(|(&offset, &size)| (offset, size));
        if let Some((below, below_size)) = below.filter(|(below, below_size)| below + below_size == offset) {
            self.remove(below, below_size);
            (offset, size) = (below, below_size + size);
        }
        if let Some(&above_size) = self.by_offset.get(&(offset + size)) {
            self.remove(offset + size, above_size);
            size += above_size;
        }
        self.insert(offset, size);
    }

    fn is_empty(&mut self) -> bool {
        self.by_offset.iter().eq([(&0, &self.capacity)])
    }
}
