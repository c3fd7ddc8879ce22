//! Exact best fit: of the free blocks that hold a request, the smallest; of equal ones, the lowest.
//!
//! Blocks, free and live, are in a list by address, so that a freed block finds its neighbours; free blocks are also in
//! bins by size class, so that a search begins at the first class that can hold the request. Within a class the search
//! looks at every block: exactness is paid for there, and few large blocks make it cheap.
//!
//! Blocks are nodes of one vector, named by their index. Node 0 is no block: it closes the list by address to a ring,
//! and as a bin link it means "none". So links are followed and written without asking whether they are there.
//!
//! # Invariants
//! - **F1** Free and live blocks partition `0..capacity`; each has at least one byte.
//! - **F2** No two free blocks touch.
//! - **F3** A free block is in the bin of its size, and in no other; `occupied` says which bins have one.
//! - **F4** A live block has a stamp that no other block, past or present, has had; a free one has stamp 0.

use std::iter;

use super::bins::{CLASSES, Occupied, class_of, same_class};
use super::{Request, align_up};

/// The node that is no block.
const RING: u32 = 0;

/// A request takes up to two nodes more, and their indices are `u32`.
const MAX_NODES: usize = u32::MAX as usize - 2;

/// Names a live block. A key whose block was freed is stale for good: it is never the key of another block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    index: u32,
    stamp: u64,
}

/// A block that was just taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allocation {
    /// Where it starts, in bytes.
    pub offset: u64,
    /// What frees it.
    pub key: Key,
}

/// A block of a space, free or live, as [`BestFit::blocks`] lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Where it starts, in bytes.
    pub offset: u64,
    /// Its length in bytes, rounding included.
    pub size: u64,
    /// The key of a live block; `None` for a free one.
    pub key: Option<Key>,
}

/// A key whose block has been freed, or that belongs to another space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the key is stale: its block has been freed")]
pub struct StaleKey;

/// Why a block cannot be carved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CarveError {
    /// See [`StaleKey`].
    #[error(transparent)]
    Stale(#[from] StaleKey),
    /// The offsets do not begin at 0, do not ascend, or run past the block.
    #[error(
        "part {index} begins at offset {offset}: parts begin at 0 and ascend within a block of {size} bytes"
    )]
    Offsets {
        /// Which part.
        index: usize,
        /// Its offset.
        offset: u64,
        /// The block's size in bytes.
        size: u64,
    },
    /// A space holds fewer than 2^32 blocks.
    #[error("{parts} parts are more than the space can name; carve fewer at once")]
    TooMany {
        /// How many parts were asked for.
        parts: usize,
    },
}

/// One space, `0..capacity`, with exact best fit.
#[derive(Debug)]
pub struct BestFit {
    capacity: u64,
    granule: u64,
    nodes: Vec<Node>,
    /// A node that is not in use; those not in use are linked by `above`.
    vacant: u32,
    /// First free block of each class.
    bins: Box<[u32; CLASSES]>,
    occupied: Occupied,
    free_bytes: u64,
    /// Live blocks, empty ones included.
    live: usize,
    last_stamp: u64,
}

#[derive(Debug, Clone, Copy)]
struct Node {
    offset: u64,
    size: u64,
    /// 0 when free; [`NO_BLOCK`] for the ring's node and those not in use.
    stamp: u64,
    /// Neighbours by address.
    below: u32,
    above: u32,
    /// Neighbours in the bin, for a free block.
    previous: u32,
    next: u32,
}

/// A stamp that no block gets.
const NO_BLOCK: u64 = u64::MAX;

impl BestFit {
    /// An empty space. Blocks are rounded up to a multiple of `granule` (itself rounded up to a power of two), but for
    /// the last one, which may use the end of the space whatever its size.
    pub fn new(capacity: u64, granule: u64) -> Self {
        let ring = Node {
            offset: capacity,
            size: 0,
            stamp: NO_BLOCK,
            below: RING,
            above: RING,
            previous: RING,
            next: RING,
        };
        let mut space = Self {
            capacity,
            granule: granule.checked_next_power_of_two().unwrap_or(1 << 63),
            nodes: vec![ring],
            vacant: RING,
            bins: Box::new([RING; CLASSES]),
            occupied: Occupied::new(),
            free_bytes: 0,
            live: 0,
            last_stamp: 0,
        };
        if capacity > 0 {
            let all = space.insert_above(RING, 0, capacity);
            space.bin(all);
        }
        space
    }

    /// Takes a block; `None` when no free block holds it, or the alignment is not a power of two.
    ///
    /// An empty request is granted always, at offset 0, with a key of its own. A full search looks at each free block
    /// once: O(free blocks) at worst, and a few of them as a rule.
    pub fn allocate(&mut self, request: Request) -> Option<Allocation> {
        if !request.align.is_power_of_two() || self.nodes.len() >= MAX_NODES {
            return None;
        }
        if request.size == 0 {
            let index = self.insert(Node {
                offset: 0,
                size: 0,
                stamp: 0,
                below: RING,
                above: RING,
                previous: RING,
                next: RING,
            });
            return Some(Allocation { offset: 0, key: self.enliven(index) });
        }
        let (index, offset) = self.best(request)?;
        let Node { offset: start, size, .. } = self.nodes[index as usize];
        let end = start + size;
        let taken = match align_up(offset + request.size, self.granule) {
            Some(rounded) if rounded < end => rounded,
            _ => end,
        };
        // What is left of the free block keeps its node, and as a rule its bin.
        let live = match (offset > start, taken < end) {
            (false, false) => {
                self.unbin(index);
                index
            }
            (false, true) => {
                let below = self.nodes[index as usize].below;
                let live = self.insert_above(below, start, taken - start);
                self.nodes[index as usize].offset = taken;
                self.resize_free(index, end - taken);
                live
            }
            (true, rest) => {
                self.resize_free(index, offset - start);
                let live = self.insert_above(index, offset, taken - offset);
                if rest {
                    let rest = self.insert_above(live, taken, end - taken);
                    self.bin(rest);
                }
                live
            }
        };
        Some(Allocation { offset, key: self.enliven(live) })
    }

    /// Frees a block, joins it with its free neighbours, and returns its size, rounding included. O(1).
    ///
    /// # Errors
    /// When the key is stale; nothing changes.
    pub fn free(&mut self, key: Key) -> Result<u64, StaleKey> {
        let Node { offset, size, below, above, .. } = *self.live_node(key)?;
        self.live -= 1;
        let index = key.index;
        if size == 0 {
            self.retire(index);
            return Ok(0);
        }
        match (self.free_size(below), self.free_size(above)) {
            (None, None) => {
                self.nodes[index as usize].stamp = 0;
                self.bin(index);
            }
            (Some(below_size), None) => {
                self.unlink(index);
                self.resize_free(below, below_size + size);
            }
            (None, Some(above_size)) => {
                self.unlink(index);
                self.nodes[above as usize].offset = offset;
                self.resize_free(above, size + above_size);
            }
            (Some(below_size), Some(above_size)) => {
                self.unlink(index);
                self.unbin(above);
                self.unlink(above);
                self.resize_free(below, below_size + size + above_size);
            }
        }
        Ok(size)
    }

    /// Divides a live block into live parts that begin at `offsets`, counted from the block's start; each ends where
    /// the next begins, and the last with the block. Returns their keys; `key` is stale from then on.
    ///
    /// # Errors
    /// When the key is stale, or the offsets do not begin at 0 and ascend within the block; nothing changes.
    pub fn carve(&mut self, key: Key, offsets: &[u64]) -> Result<Vec<Key>, CarveError> {
        let Node { offset: start, size, .. } = *self.live_node(key)?;
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
        if self.nodes.len() + offsets.len() > MAX_NODES {
            return Err(CarveError::TooMany { parts: offsets.len() });
        }
        self.nodes.reserve(offsets.len() - 1);
        self.live -= 1;
        let mut index = key.index;
        let ends = offsets[1..].iter().copied().chain(iter::once(size));
        let keys = offsets.iter().zip(ends).map(|(&offset, end)| {
            if offset > 0 {
                index = self.insert_above(index, start + offset, 0);
            }
            self.nodes[index as usize].size = end - offset;
            self.enliven(index)
        });
        Ok(keys.collect())
    }

    /// Size of the space in bytes.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Bytes in free blocks.
    pub fn free_bytes(&self) -> u64 {
        self.free_bytes
    }

    /// Bytes in live blocks, rounding included.
    pub fn live_bytes(&self) -> u64 {
        self.capacity - self.free_bytes
    }

    /// Live blocks, empty ones included.
    pub fn live_blocks(&self) -> usize {
        self.live
    }

    /// Whether there is no live block.
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// The largest free block, in bytes.
    pub fn largest_free(&self) -> u64 {
        let class = self.occupied.last();
        class.and_then(|class| self.in_bin(class).map(|(_, node)| node.size).max()).unwrap_or(0)
    }

    /// The blocks in the order of their offsets; empty ones, which lie nowhere, are left out.
    pub fn blocks(&self) -> impl Iterator<Item = Block> + '_ {
        let mut at = self.nodes[RING as usize].above;
        iter::from_fn(move || {
            let node = self.nodes.get(at as usize).filter(|_| at != RING)?;
            let key = (node.stamp != 0).then_some(Key { index: at, stamp: node.stamp });
            at = node.above;
            Some(Block { offset: node.offset, size: node.size, key })
        })
    }

    /// The free block that holds the request best, and where in it the request starts.
    #[inline]
    fn best(&self, request: Request) -> Option<(u32, u64)> {
        let mut class = class_of(request.size);
        loop {
            class = self.occupied.next(class)?;
            // Blocks of a later class are all larger, so the first class with a hit has the best.
            let mut best = None;
            let mut best_order = (u64::MAX, u64::MAX);
            for (index, node) in self.in_bin(class) {
                let order = (node.size, node.offset);
                if node.size >= request.size
                    && order < best_order
                    && let Some(offset) = align_up(node.offset, request.align)
                    // Neither overflows: the block is at least as large as the request.
                    && offset - node.offset <= node.size - request.size
                {
                    (best, best_order) = (Some((index, offset)), order);
                }
            }
            if best.is_some() {
                return best;
            }
            class += 1;
        }
    }

    #[inline]
    fn in_bin(&self, class: usize) -> impl Iterator<Item = (u32, &Node)> {
        let mut at = self.bins[class];
        iter::from_fn(move || {
            let (index, node) = (at, &self.nodes[at as usize]);
            at = node.next;
            (index != RING).then_some((index, node))
        })
    }

    #[inline]
    fn live_node(&self, key: Key) -> Result<&Node, StaleKey> {
        self.nodes.get(key.index as usize).filter(|node| node.stamp == key.stamp).ok_or(StaleKey)
    }

    /// The size of a free block; `None` for a live one, or for no block.
    #[inline]
    fn free_size(&self, index: u32) -> Option<u64> {
        let node = &self.nodes[index as usize];
        (node.stamp == 0).then_some(node.size)
    }

    /// Puts a node into the vector.
    #[inline]
    fn insert(&mut self, node: Node) -> u32 {
        let index = self.vacant;
        if index == RING {
            self.nodes.push(node);
            return self.nodes.len() as u32 - 1;
        }
        self.vacant = std::mem::replace(&mut self.nodes[index as usize], node).above;
        index
    }

    /// Puts a node out of use.
    #[inline]
    fn retire(&mut self, index: u32) {
        let node = &mut self.nodes[index as usize];
        (node.stamp, node.above) = (NO_BLOCK, self.vacant);
        self.vacant = index;
    }

    /// Inserts a block right above another.
    #[inline]
    fn insert_above(&mut self, below: u32, offset: u64, size: u64) -> u32 {
        let above = self.nodes[below as usize].above;
        let new = self.insert(Node { offset, size, stamp: 0, below, above, previous: RING, next: RING });
        self.nodes[below as usize].above = new;
        self.nodes[above as usize].below = new;
        new
    }

    /// Takes a block, which is in no bin, out of the list and out of use; a neighbour takes over its bytes.
    #[inline]
    fn unlink(&mut self, index: u32) {
        let Node { below, above, .. } = self.nodes[index as usize];
        self.nodes[below as usize].above = above;
        self.nodes[above as usize].below = below;
        self.retire(index);
    }

    /// Makes a block live (F4).
    #[inline]
    fn enliven(&mut self, index: u32) -> Key {
        self.last_stamp += 1;
        self.live += 1;
        self.nodes[index as usize].stamp = self.last_stamp;
        Key { index, stamp: self.last_stamp }
    }

    /// Enters a free block in its bin (F3).
    #[inline]
    fn bin(&mut self, index: u32) {
        let node = &mut self.nodes[index as usize];
        self.free_bytes += node.size;
        let class = class_of(node.size);
        let next = std::mem::replace(&mut self.bins[class], index);
        (node.previous, node.next) = (RING, next);
        self.nodes[next as usize].previous = index;
        self.occupied.insert(class);
    }

    /// Changes the size of a free block, and its bin if need be (F3).
    #[inline]
    fn resize_free(&mut self, index: u32, size: u64) {
        let old = self.nodes[index as usize].size;
        if same_class(old, size) {
            self.free_bytes = self.free_bytes - old + size;
            self.nodes[index as usize].size = size;
        } else {
            self.unbin(index);
            self.nodes[index as usize].size = size;
            self.bin(index);
        }
    }

    /// Takes a free block out of its bin.
    #[inline]
    fn unbin(&mut self, index: u32) {
        let Node { size, previous, next, .. } = self.nodes[index as usize];
        self.free_bytes -= size;
        self.nodes[next as usize].previous = previous;
        if previous != RING {
            self.nodes[previous as usize].next = next;
            return;
        }
        let class = class_of(size);
        self.bins[class] = next;
        if next == RING {
            self.occupied.remove(class);
        }
    }

    /// Checks F1 to F4.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let (mut end, mut below, mut was_free, mut free_bytes, mut listed) = (0, RING, false, 0, 0);
        let mut at = self.nodes[RING as usize].above;
        while at != RING {
            let node = &self.nodes[at as usize];
            let free = node.stamp == 0;
            assert_eq!((node.offset, node.below), (end, below), "F1: blocks follow each other");
            assert!(node.size > 0, "F1: no block in the list is empty");
            assert!(!(free && was_free), "F2: free blocks at {} touch", node.offset);
            assert_eq!(self.in_bin(class_of(node.size)).any(|(index, _)| index == at), free, "F3");
            (end, below, was_free, listed) = (end + node.size, at, free, listed + 1);
            free_bytes += if free { node.size } else { 0 };
            at = node.above;
        }
        assert_eq!((end, free_bytes), (self.capacity, self.free_bytes));
        let used = || self.nodes.iter().filter(|node| node.stamp != NO_BLOCK);
        assert_eq!(used().filter(|node| node.size > 0).count(), listed, "no block is lost");
        assert_eq!(used().filter(|node| node.stamp != 0).count(), self.live);
        let vacant = iter::successors(Some(self.vacant), |&at| Some(self.nodes[at as usize].above));
        assert_eq!(
            vacant.take_while(|&at| at != RING).count() + used().count() + 1,
            self.nodes.len(),
            "no node is lost"
        );
        for class in 0..CLASSES {
            assert_eq!(
                self.occupied.next(class) == Some(class),
                self.bins[class] != RING,
                "F3: class {class}"
            );
        }
    }
}
