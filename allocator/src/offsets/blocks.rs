//! The blocks of a space: in a list by address, so that a freed block finds its neighbours; the free ones also in bins
//! by size class, so that a search begins at the first class that can hold the request.
//!
//! One free block may be loose: in no bin. What is left of it after a request, or becomes of it as neighbours are freed,
//! is loose as well, so a space that is filled and emptied in order touches no bin.
//!
//! Blocks are nodes of one vector, named by their index. Node 0 is no block: it closes the list by address to a ring,
//! and as a link it means "none". So links are followed and written without asking whether they are there.
//!
//! # Invariants
//! - **F1** Free and live blocks partition `0..capacity`; each has at least one byte.
//! - **F2** No two free blocks touch.
//! - **F3** A free block is the loose one, or else in the bin of its size and in no other; `occupied` says which bins
//!   have one.
//! - **F4** A live block has a stamp that no other block, past or present, has had; stamps are odd, and a free block has
//!   stamp 0.

use std::iter;
use std::num::NonZeroU64;

use super::bins::{CLASSES, Occupied, class_of, same_class};
use super::keys::Key;
use super::request::Request;

/// The node that is no block.
pub(super) const RING: u32 = 0;

/// The link that ends the nodes that are not in use. No node has this index.
const NONE: u32 = u32::MAX;

/// The stamp of free blocks.
pub(super) const FREE: u64 = 0;

/// The stamp of the ring's node and of nodes that are not in use. No block gets it.
const NO_BLOCK: u64 = u64::MAX;

/// Half of what the links could tell apart.
const MAX_NODES: usize = i32::MAX as usize;

/// See the module.
#[derive(Debug)]
pub struct Blocks {
    nodes: Vec<Node>,
    /// A node that is not in use, or [`NONE`]; those not in use are linked by `above`.
    vacant: u32,
    /// The free block that is in no bin; [`RING`] if there is none.
    loose: u32,
    /// First free block of each class.
    bins: Box<[u32; CLASSES]>,
    occupied: Occupied,
    free_bytes: u64,
    /// Twice how many blocks have been made live.
    enlivened: u64,
}

/// A block, or the place for one.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Node {
    pub(super) offset: u64,
    pub(super) size: u64,
    /// Of a live block, or [`FREE`], or [`NO_BLOCK`].
    pub(super) stamp: u64,
    /// Neighbours by address.
    pub(super) below: u32,
    pub(super) above: u32,
    /// Neighbours in the bin; they mean something for blocks in a bin only.
    previous: u32,
    next: u32,
}

impl Node {
    /// Where a request starts in this block; `None` if the block does not hold it. Its alignment is a power of two.
    #[inline]
    pub(super) fn holds(&self, request: Request) -> Option<u64> {
        let padding = self.offset.wrapping_neg() & (request.align - 1);
        let holds = self.size >= request.size && self.size - request.size >= padding;
        holds.then(|| self.offset + padding)
    }
}

impl Blocks {
    /// One free block of `capacity` bytes.
    pub(super) fn new(capacity: u64) -> Self {
        let ring = Node { offset: capacity, stamp: NO_BLOCK, ..Node::default() };
        let mut blocks = Self {
            nodes: vec![ring],
            vacant: NONE,
            loose: RING,
            bins: Box::new([RING; CLASSES]),
            occupied: Occupied::new(),
            free_bytes: 0,
            enlivened: 0,
        };
        if capacity > 0 {
            let all = blocks.insert(RING, RING, 0, capacity);
            blocks.free_bytes = capacity;
            blocks.shelve(all);
        }
        blocks
    }

    #[inline]
    pub(super) fn node(&self, index: u32) -> &Node {
        &self.nodes[index as usize]
    }

    /// The live block that a key names.
    #[inline]
    pub(super) fn live(&self, key: Key) -> Option<&Node> {
        self.nodes.get(key.index as usize).filter(|node| node.stamp == key.stamp.get())
    }

    /// The free block that is in no bin; [`RING`], of size 0, if there is none.
    #[inline]
    pub(super) fn loose(&self) -> u32 {
        self.loose
    }

    /// Which bins have a block.
    #[inline]
    pub(super) fn occupied(&self) -> &Occupied {
        &self.occupied
    }

    #[inline]
    pub(super) fn free_bytes(&self) -> u64 {
        self.free_bytes
    }

    /// Whether so many nodes more can be named.
    #[inline]
    pub(super) fn has_names_for(&self, more: usize) -> bool {
        more <= MAX_NODES && self.nodes.len() <= MAX_NODES - more
    }

    /// The blocks in the bin of a class.
    #[inline]
    pub(super) fn in_bin(&self, class: usize) -> impl Iterator<Item = (u32, &Node)> {
        let mut at = self.bins[class];
        iter::from_fn(move || {
            let (index, node) = (at, self.node(at));
            at = node.next;
            (index != RING).then_some((index, node))
        })
    }

    /// The size of the largest free block.
    pub(super) fn largest_free(&self) -> u64 {
        let in_bins = self.occupied.last().into_iter().flat_map(|class| self.in_bin(class));
        in_bins.map(|(_, node)| node.size).fold(self.node(self.loose).size, u64::max)
    }

    /// Makes a block of no bytes, which lies nowhere; it has yet to be made live.
    pub(super) fn insert_empty(&mut self) -> u32 {
        let index = self.occupy();
        let node = &mut self.nodes[index as usize];
        (node.offset, node.size) = (0, 0);
        (node.below, node.above) = (RING, RING);
        index
    }

    /// Places a request at the start of the only free block, if that is as simple as can be: the block runs to the end
    /// of the space, the request needs no padding, and some bytes are left. Most requests of a batch go here.
    #[inline]
    pub(super) fn bump(&mut self, request: Request, granule_mask: u64) -> Option<(u64, Key)> {
        if !self.occupied.is_empty() {
            return None;
        }
        let (loose, live) = (self.loose, self.vacant);
        let nodes = &mut self.nodes[..];
        let vacant = nodes.get(live as usize)?.above;
        let block = nodes.get_mut(loose as usize)?;
        let (offset, below) = (block.offset, block.below);
        // The last byte that is taken, from the block's start; it is past every block if the request is empty.
        let last = request.size.wrapping_sub(1) | granule_mask;
        let align_mask = request.align.wrapping_sub(1);
        if (align_mask & request.align) | (offset & (align_mask | granule_mask)) != 0
            || request.align == 0
            || last >= block.size
            || last + 1 == block.size
            || block.above != RING
        {
            return None;
        }
        let taken = last + 1;
        block.offset = offset + taken;
        block.size -= taken;
        block.below = live;
        self.enlivened += 2;
        let stamp = NonZeroU64::MIN | self.enlivened;
        nodes[below as usize].above = live;
        let node = nodes.get_mut(live as usize)?;
        (node.offset, node.size, node.stamp) = (offset, taken, stamp.get());
        (node.below, node.above) = (below, loose);
        self.vacant = vacant;
        self.free_bytes -= taken;
        Some((offset, Key { index: live, stamp }))
    }

    /// Takes a free block from `offset` to `taken` for one that has yet to be made live; what is left on either side
    /// stays free.
    #[inline]
    pub(super) fn take(&mut self, index: u32, offset: u64, taken: u64) -> u32 {
        let Node { offset: start, size, below, above, .. } = *self.node(index);
        let (length, end) = (taken - offset, start + size);
        self.free_bytes -= length;
        if length == size {
            self.unshelve(index);
            return index;
        }
        // What is left of the free block keeps its node, and as a rule its bin. Which end is left is hard to foresee, so
        // both are handled alike.
        let low = offset == start;
        let (rest, rest_end) = if low { (taken, end) } else { (start, offset) };
        let (below, next) = if low { (below, index) } else { (index, above) };
        self.nodes[index as usize].offset = rest;
        self.resize_free(index, rest_end - rest);
        let new = self.insert(below, next, offset, length);
        if !low && taken < end {
            let last = self.insert(new, above, taken, end - taken);
            self.shelve(last);
        }
        new
    }

    /// Makes a live block free, and one with its free neighbours.
    #[inline]
    pub(super) fn release(&mut self, index: u32) {
        let nodes = &mut self.nodes[..];
        let Node { offset, size, below, above, .. } = nodes[index as usize];
        self.free_bytes += size;
        match (nodes[below as usize].stamp == FREE, nodes[above as usize].stamp == FREE) {
            (true, false) => {
                let size = nodes[below as usize].size + size;
                self.unlink(index, below, above);
                self.resize_free(below, size);
            }
            (false, true) => {
                let size = nodes[above as usize].size + size;
                nodes[above as usize].offset = offset;
                self.unlink(index, below, above);
                self.resize_free(above, size);
            }
            (true, true) => self.release_between(index),
            (false, false) if size == 0 => self.vacate(index),
            (false, false) => {
                nodes[index as usize].stamp = FREE;
                self.shelve(index);
            }
        }
    }

    /// As `release`, between two free blocks.
    #[inline(never)]
    fn release_between(&mut self, index: u32) {
        let Node { size, below, above, .. } = *self.node(index);
        let (Node { offset, size: below_size, .. }, Node { size: above_size, .. }) =
            (*self.node(below), *self.node(above));
        self.unlink(index, below, above);
        let (kept, gone) = if above == self.loose { (above, below) } else { (below, above) };
        self.unshelve(gone);
        let Node { below, above, .. } = *self.node(gone);
        self.unlink(gone, below, above);
        self.nodes[kept as usize].offset = offset;
        self.resize_free(kept, below_size + size + above_size);
    }

    /// Shortens a live block, and makes a block of the bytes that it loses; it has yet to be made live.
    pub(super) fn split(&mut self, index: u32, size: u64) -> u32 {
        let node = &mut self.nodes[index as usize];
        let Node { offset, size: old, above, .. } = *node;
        node.size = size;
        self.insert(index, above, offset + size, old - size)
    }

    /// Makes a block live, with a stamp of its own (F4). Returns where it starts and its key.
    #[inline]
    pub(super) fn enliven(&mut self, index: u32) -> (u64, Key) {
        self.enlivened += 2;
        let stamp = NonZeroU64::MIN | self.enlivened;
        let node = &mut self.nodes[index as usize];
        node.stamp = stamp.get();
        (node.offset, Key { index, stamp })
    }

    /// Puts a free block, which is in no bin yet, between two that touch.
    #[inline]
    fn insert(&mut self, below: u32, above: u32, offset: u64, size: u64) -> u32 {
        let index = self.occupy();
        let nodes = &mut self.nodes[..];
        let node = &mut nodes[index as usize];
        (node.offset, node.size, node.stamp) = (offset, size, FREE);
        (node.below, node.above) = (below, above);
        nodes[below as usize].above = index;
        nodes[above as usize].below = index;
        index
    }

    /// Takes a block, which is in no bin, out of the list and out of use; a neighbour takes over its bytes.
    #[inline]
    fn unlink(&mut self, index: u32, below: u32, above: u32) {
        let nodes = &mut self.nodes[..];
        nodes[below as usize].above = above;
        nodes[above as usize].below = below;
        self.vacate(index);
    }

    /// A node for use.
    #[inline]
    fn occupy(&mut self) -> u32 {
        if self.vacant == NONE {
            self.grow();
        }
        let index = self.vacant;
        self.vacant = self.nodes[index as usize].above;
        index
    }

    #[cold]
    fn grow(&mut self) {
        self.vacant = self.nodes.len() as u32;
        self.nodes.push(Node { stamp: NO_BLOCK, above: NONE, ..Node::default() });
    }

    /// Puts a node out of use.
    #[inline]
    fn vacate(&mut self, index: u32) {
        let node = &mut self.nodes[index as usize];
        (node.stamp, node.above) = (NO_BLOCK, self.vacant);
        self.vacant = index;
    }

    /// Leaves a free block loose if none is, or enters it in its bin (F3).
    fn shelve(&mut self, index: u32) {
        if self.loose == RING {
            self.loose = index;
            return;
        }
        let nodes = &mut self.nodes[..];
        let node = &mut nodes[index as usize];
        let class = class_of(node.size);
        let next = std::mem::replace(&mut self.bins[class], index);
        (node.previous, node.next) = (RING, next);
        nodes[next as usize].previous = index;
        self.occupied.insert(class);
    }

    /// Takes a free block out of its bin, or from being loose.
    fn unshelve(&mut self, index: u32) {
        if index == self.loose {
            self.loose = RING;
            return;
        }
        let nodes = &mut self.nodes[..];
        let Node { size, previous, next, .. } = nodes[index as usize];
        nodes[next as usize].previous = previous;
        if previous != RING {
            nodes[previous as usize].next = next;
            return;
        }
        let class = class_of(size);
        self.bins[class] = next;
        if next == RING {
            self.occupied.remove(class);
        }
    }

    /// Changes the size of a free block, and its bin if need be (F3).
    #[inline]
    fn resize_free(&mut self, index: u32, size: u64) {
        let node = &mut self.nodes[index as usize];
        if index == self.loose || same_class(node.size, size) {
            node.size = size;
        } else {
            self.rebin(index, size);
        }
    }

    #[inline(never)]
    fn rebin(&mut self, index: u32, size: u64) {
        self.unshelve(index);
        self.nodes[index as usize].size = size;
        self.shelve(index);
    }

    /// Checks F1 to F4, but for the stamps of the past, and returns how many blocks are live, empty ones included.
    #[cfg(test)]
    pub(super) fn check(&self, capacity: u64) -> usize {
        let (mut end, mut below, mut was_free, mut free_bytes, mut listed) = (0, RING, false, 0, 0);
        let mut at = self.node(RING).above;
        while at != RING {
            let node = self.node(at);
            let free = node.stamp == FREE;
            assert!(free || node.stamp % 2 == 1 && node.stamp <= self.enlivened + 1, "F4");
            assert_eq!((node.offset, node.below), (end, below), "F1: blocks follow each other");
            assert!(node.size > 0, "F1: no block in the list is empty");
            assert!(!(free && was_free), "F2: free blocks at {} touch", node.offset);
            let in_bin = self.in_bin(class_of(node.size)).filter(|&(index, _)| index == at).count();
            assert_eq!(
                in_bin + usize::from(at == self.loose),
                usize::from(free),
                "F3: block at {}",
                node.offset
            );
            (end, below, was_free, listed) = (end + node.size, at, free, listed + 1);
            free_bytes += if free { node.size } else { 0 };
            at = node.above;
        }
        assert_eq!((end, free_bytes), (capacity, self.free_bytes));
        let used = || self.nodes.iter().filter(|node| node.stamp != NO_BLOCK);
        assert_eq!(used().filter(|node| node.size > 0).count(), listed, "no block is lost");
        let vacant =
            iter::successors(Some(self.vacant), |&at| self.nodes.get(at as usize).map(|node| node.above));
        assert_eq!(
            vacant.take_while(|&at| at != NONE).count() + used().count() + 1,
            self.nodes.len(),
            "no node is lost"
        );
        let mut binned = 0;
        let occupied = iter::successors(self.occupied.next(0), |class| self.occupied.next(class + 1));
        // Miri is slow: the blocks of the classes that are marked have to be all there are.
        let classes: Vec<usize> = if cfg!(miri) { occupied.collect() } else { (0..CLASSES).collect() };
        for class in classes {
            let mut before = RING;
            for (index, node) in self.in_bin(class) {
                assert_eq!((node.previous, class_of(node.size)), (before, class), "F3: class {class}");
                (before, binned) = (index, binned + 1);
            }
            assert_eq!(self.occupied.next(class) == Some(class), before != RING, "F3: class {class}");
        }
        let free = used().filter(|node| node.stamp == FREE).count();
        assert_eq!(binned + usize::from(self.loose != RING), free, "F3: no other block is in a bin");
        used().filter(|node| node.stamp != FREE).count()
    }
}
