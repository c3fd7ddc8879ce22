//! Planned batches: their layout, the memory reserved for them, and their fragments.

use std::borrow::Borrow;
use std::mem;
use std::num::NonZeroU64;
use std::sync::Arc;

use smallvec::SmallVec;

use super::growth::{take_block, take_parts, take_region};
use super::handle::Pool;
use super::layout_check;
use crate::backing::{Backing, Bases, cut};
use crate::books::RegionBlock;
use crate::core::BatchRegions;
use crate::error::Result;
use crate::fragment::Fragment;
use crate::offsets::{Key, Layout, Placement, RegionShape, Request, lay_out};
use crate::stream::uses::Uses;

/// The memory of a planned batch before it is cut into fragments. Dropping it frees the memory as dropping the fragments
/// would: after the memory was synchronized (I1).
#[derive(Debug)]
pub struct Reserved {
    pool: Pool,
    label: Arc<str>,
    /// One for each region of the layout, with its size in bytes.
    blocks: SmallVec<[(RegionBlock, u64); 4]>,
    bases: Bases,
}

// SAFETY: a block is an address and numbers.
unsafe impl Send for Reserved {}
// SAFETY: as above.
unsafe impl Sync for Reserved {}

/// Which regions a batch may lie in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RegionChoice {
    /// Those of the pool, or new ones.
    Any,
    /// New ones, with nothing else in them.
    Dedicated,
}

/// The fragments of a planned batch.
#[derive(Debug)]
pub struct Placed {
    /// The fragments, in the order of the batch.
    pub fragments: Vec<Fragment>,
    /// First addresses of the layout's regions.
    pub bases: Bases,
}

impl Pool {
    /// Lays out a batch of known sizes for this pool: in order and contiguously, in one region unless
    /// [`max_region_bytes`](crate::PoolBuilder::max_region_bytes) is set.
    ///
    /// # Errors
    /// When an alignment is not a power of two or the sizes overflow.
    pub fn lay_out(&self, requests: impl IntoIterator<Item: Borrow<Request>>) -> Result<Layout> {
        let (mut taken, mut requests) = (0, requests.into_iter());
        let limit = self.core().config().max_region_bytes.map(NonZeroU64::get);
        lay_out(requests.by_ref().inspect(|_| taken += 1), limit)
            .map_err(|error| self.core().config().broken_batch(taken + requests.count(), error.to_string()))
    }

    /// Places a batch that [`lay_out`](Self::lay_out) has laid out: [`reserve_planned`](Self::reserve_planned) followed by
    /// [`Reserved::place`].
    ///
    /// # Errors
    /// When the labels are not one for each fragment, the layout is invalid, the limit or the memory refuses, or the pool is
    /// closed. Nothing stays reserved then.
    pub fn place_planned(&self, layout: &Layout, labels: &[Arc<str>]) -> Result<Placed> {
        layout_check::check(layout, labels.len())
            .map_err(|problem| self.core().config().broken_batch(labels.len(), problem))?;
        let label = labels.first().map_or_else(|| "".into(), Arc::clone);
        let mut reserved = self.reserve_planned(layout, label)?;
        let bases = reserved.bases();
        bases.bring_up(|| false);
        bases.wait_for_all()?;
        reserved.place(layout, labels.to_vec())
    }

    /// Reserves the memory of a batch that [`lay_out`](Self::lay_out) has laid out: one block for each region, found by the
    /// pool's policy or in a new region of exactly that size. Errors and snapshots show the label until the batch is cut.
    ///
    /// If regions are backed in parts, the addresses have no memory yet: see [`Bases`]. Only parts in which fragments lie are
    /// backed and count as reserved; while regions are being reserved, the limit has to hold all of them.
    ///
    /// # Errors
    /// When the limit or the memory refuses, the layout is invalid, or the pool is closed. Nothing stays reserved then.
    pub fn reserve_planned(&self, layout: &Layout, label: impl Into<Arc<str>>) -> Result<Reserved> {
        self.reserve(layout, label.into(), RegionChoice::Any)
    }

    /// As [`reserve_planned`](Self::reserve_planned), but always in new regions, which the batch does not share: it reserves
    /// exactly the bytes of the layout, and its regions are released with its last fragments.
    ///
    /// # Errors
    /// As [`reserve_planned`](Self::reserve_planned).
    pub fn reserve_planned_apart(&self, layout: &Layout, label: impl Into<Arc<str>>) -> Result<Reserved> {
        self.reserve(layout, label.into(), RegionChoice::Dedicated)
    }

    fn reserve(&self, layout: &Layout, label: Arc<str>, choice: RegionChoice) -> Result<Reserved> {
        let core = self.core();
        drop(core.open_books(&label)?);
        let count = layout.placements.len();
        layout_check::check(layout, count).map_err(|problem| core.config().broken_batch(count, problem))?;
        let in_parts = match core.config().batch_regions {
            BatchRegions::Parts(unit) => Some((unit, layout_check::by_region(layout))),
            BatchRegions::Whole(_) => None,
        };
        let mut reserved =
            Reserved { pool: self.clone(), label, blocks: SmallVec::new(), bases: Bases::default() };
        let mut backings = SmallVec::<[_; 4]>::new();
        for (region, shape) in layout.regions.iter().enumerate() {
            let request = Request::new(shape.size, shape.align);
            let (mut books, block) = match &in_parts {
                Some((unit, fragments)) => {
                    let parts = cut(fragments[region].iter().copied(), *unit);
                    // A size below 2^63, rounded up to a power of two of at most that, does not overflow.
                    let bytes = shape.size.next_multiple_of(*unit);
                    take_parts(core, &reserved.label, request, bytes, &parts)?
                }
                None if choice == RegionChoice::Dedicated => take_region(core, &reserved.label, request)?,
                None => take_block(core, &reserved.label, request, 0)?,
            };
            books.enter_block(&reserved.label, request, &block);
            backings.push(books.backing(block.location.region).cloned());
            drop(books);
            reserved.blocks.push((block, shape.size));
        }
        let addresses = reserved.blocks.iter().map(|(block, _)| block.address);
        reserved.bases = Bases::new(&core.config().name, &reserved.label, addresses.zip(backings));
        Ok(reserved)
    }
}

impl Reserved {
    /// First addresses of the layout's regions.
    pub fn bases(&self) -> Bases {
        self.bases.clone()
    }

    /// Cuts the memory into the batch's fragments, without a search. `labels` are in the order of the layout.
    ///
    /// # Errors
    /// When the labels are not one for each fragment, the memory was reserved for another layout or is cut already, or the pool
    /// is closed. The memory stays reserved then, uncut.
    pub fn place(&mut self, layout: &Layout, labels: Vec<Arc<str>>) -> Result<Placed> {
        let (core, count) = (self.pool.core(), labels.len());
        let broken = |problem: String| core.config().broken_batch(count, problem);
        layout_check::check(layout, count).map_err(broken)?;
        let fits = |(shape, (block, size)): (&RegionShape, &(RegionBlock, u64))| {
            shape.size == *size && (block.address.as_ptr() as u64).is_multiple_of(shape.align)
        };
        if layout.regions.len() != self.blocks.len() || !layout.regions.iter().zip(&self.blocks).all(fits) {
            return Err(broken("the memory was reserved for another layout".into()));
        }
        let (bases, fragments) = (self.bases(), layout_check::by_region(layout));
        let backed = || {
            (0..).zip(&fragments).filter_map(|(region, here)| Some((bases.backing(region)?, region, here)))
        };
        let is_backed = |(backing, _, here): (&Arc<Backing>, _, &Vec<(u64, u64)>)| {
            here.iter().all(|&(offset, bytes)| backing.covers(offset, bytes))
        };
        if !backed().all(is_backed) {
            return Err(broken("a fragment lies where the memory was not reserved for one".into()));
        }
        let mut books = core.open_books(&self.label)?;
        let mut keys: SmallVec<[std::vec::IntoIter<Key>; 4]> = SmallVec::new();
        for ((block, _), fragments) in self.blocks.iter().zip(&fragments) {
            let offsets: Vec<u64> = fragments.iter().map(|(offset, _)| *offset).collect();
            keys.push(books.carve(block, &offsets).map_err(broken)?.into_iter());
        }
        // Cut: from here on each block is given back fragment by fragment.
        let mut any_unused = false;
        for (backing, region, fragments) in backed() {
            let parts = backing.cut_into(fragments.iter().copied());
            any_unused |= !parts.is_empty();
            books.queue_unused_parts(self.blocks[region].0.location.region, backing, parts);
        }
        let blocks = mem::take(&mut self.blocks);
        books.expect_fragments(count);
        let place = |(placement, label): (&Placement, Arc<str>)| {
            let Placement { region, offset, bytes } = *placement;
            let key = keys.get_mut(region as usize).filter(|_| bytes > 0).and_then(Iterator::next);
            let (address, location) = match blocks.get(region as usize).zip(key) {
                Some(((block, _), key)) => {
                    let (address, location) = block.part(offset, key);
                    (address, Some(location))
                }
                None => (Fragment::dangling(core.config().granule), None),
            };
            let slot = books.enter_planned(label, location, placement);
            // A holder of the bases may be writing there.
            Fragment::new(address, bytes, core, slot, Uses::new(true, Vec::new()))
        };
        let fragments = layout.placements.iter().zip(labels).map(place).collect();
        books.end_batch(blocks.iter().map(|(block, _)| block));
        drop(books);
        if any_unused {
            core.wake_reaper();
        }
        Ok(Placed { fragments, bases })
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let core = self.pool.core();
        if core.is_forked_child() {
            return;
        }
        for (block, bytes) in mem::take(&mut self.blocks) {
            // Retired as a fragment, since the memory may still be in use (I1).
            let slot = core.books().enter_uncut(Arc::clone(&self.label), bytes, block.location);
            let uses = Uses::new(true, Vec::new());
            drop(Fragment::new(block.address, bytes, core, slot, uses));
        }
    }
}
