//! [`Pool`]: regions that grow and go, and fragments placed in them.

use std::borrow::Borrow;
use std::mem;
use std::num::{NonZeroU64, NonZeroUsize};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use smallvec::SmallVec;

use crate::backing::Bases;
use crate::backing::{self, Backing};
use crate::core::pool_core::{BatchRegions, Block, Fences, Shared};
use crate::error::{Error, Result};
use crate::fragment::Fragment;
use crate::memory::Memory;
use crate::offsets::{Key, Layout, Placement, RegionShape, Request, lay_out};
use crate::pool::layout_check as layout;
use crate::pool::stats::{Snapshot, Stats};
use crate::stream::OrderedStream;
use crate::stream::uses::Uses;
use crate::sync::atomic::Ordering;

/// A pool of regions over one [`Memory`].
///
/// A cheap handle: clones are the same pool. When the last handle goes, the pool closes; its regions go back when
/// their last fragments do.
///
/// In a child forked from the process that made it, a pool places nothing ([`Error::Forked`]), and what it placed can be read and
/// dropped, which gives nothing back.
#[derive(Debug, Clone)]
pub struct Pool {
    owner: Arc<Owner>,
}

/// Closes the pool when the last handle goes.
#[derive(Debug)]
struct Owner {
    shared: Arc<Shared>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        if self.shared.is_forked_child() {
            // The reaper's reference stays; if it had ended before the fork this one does, so that no memory is dropped here.
            mem::forget(Arc::clone(&self.shared));
            return;
        }
        self.shared.closing.store(true, Ordering::Release);
        self.shared.wake_reaper();
    }
}

/// The memory of a planned batch, not cut into fragments yet. Dropping it gives the memory back as dropping its
/// fragments would: once the memory has been synchronized (I1).
#[derive(Debug)]
pub struct Reserved {
    pool: Pool,
    label: Arc<str>,
    /// One for each region of the layout, and its size.
    blocks: SmallVec<[(Block, u64); 4]>,
    bases: Bases,
}

// SAFETY: a block is an address and numbers.
unsafe impl Send for Reserved {}
// SAFETY: as above.
unsafe impl Sync for Reserved {}

/// Whether a batch has regions of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Apart {
    No,
    Yes,
}

/// The fragments of a planned batch.
#[derive(Debug)]
pub struct Placed {
    /// One fragment for each of the batch, in its order.
    pub fragments: Vec<Fragment>,
    /// Where the regions of the layout begin.
    pub bases: Bases,
}

impl Pool {
    /// Whether this is the process that made the pool, and not a child forked from it. In such a child the pool places nothing, and what is
    /// dropped there is not given back.
    pub fn is_of_this_process(&self) -> bool {
        !self.shared().is_forked_child()
    }

    /// The first handle of a pool whose reaper has started.
    pub(crate) fn started(shared: Arc<Shared>) -> Self {
        Self { owner: Arc::new(Owner { shared }) }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.owner.shared
    }

    /// The pool's name, for errors and snapshots.
    pub fn name(&self) -> &str {
        &self.shared().name
    }

    /// How many bytes may be reserved at any time, if that is limited.
    pub fn limit_bytes(&self) -> Option<u64> {
        self.shared().options.limit_bytes
    }

    /// The memory that the regions come from.
    pub fn memory(&self) -> &Arc<dyn Memory> {
        &self.shared().memory
    }

    /// Whether the regions of planned batches are backed in parts.
    pub fn is_parted(&self) -> bool {
        matches!(self.shared().batch_regions, BatchRegions::Parts(_))
    }

    /// Why they are not, where [`RegionParts::Auto`](crate::RegionParts::Auto) asked for it.
    pub fn whole_because(&self) -> Option<Arc<str>> {
        match &self.shared().batch_regions {
            BatchRegions::Whole(because) => because.clone(),
            BatchRegions::Parts(_) => None,
        }
    }

    /// Places one fragment by the pool's policy, in a new region if none has room.
    ///
    /// A size of 0 is valid: the fragment is in the books but takes no memory.
    ///
    /// # Errors
    /// When the limit or the memory refuses, the alignment is not a power of two, or the pool is closed; in a forked child.
    pub fn place(&self, label: impl Into<Arc<str>>, request: Request) -> Result<Fragment> {
        let (shared, label) = (self.shared(), label.into());
        if !request.align.is_power_of_two() {
            let (pool, label) = (shared.name.clone(), label.to_string());
            return Err(Error::Alignment { pool, label, align: request.align });
        }
        if request.size > 0
            && let Some(mut shard) = shared.open_shard(&label, request)?
            && let Some(Block { home, address }) = shard.fit(request)
        {
            let (slot, number) = (shard.enter(label, request.size, home), shard.number);
            drop(shard);
            return Ok(Fragment::new_in(Some(number), address, request.size, shared, slot, Uses::default()));
        }
        let (mut books, address, home) = if request.size == 0 {
            (shared.open_books(&label)?, dangling(request.align), None)
        } else {
            let (books, block) = shared.take_block(&label, request, shared.options.region_bytes)?;
            (books, block.address, Some(block.home))
        };
        let slot = books.enter(label, request.size, home);
        books.log_alloc(slot, request.align);
        drop(books);
        Ok(Fragment::new(address, request.size, shared, slot, Uses::default()))
    }

    /// Places one fragment for work on a stream. Before the pool grows, a range that was dropped is used again though its uses on
    /// streams have not ended: at once where they were on this stream, else after it was made to wait for them.
    ///
    /// So nothing but what is enqueued on this stream from now on, or comes after that, may touch the fragment. Memory
    /// that the CPU can touch is placed as [`place`](Self::place) does.
    ///
    /// # Errors
    /// As [`place`](Self::place), and when uses on the stream cannot be recorded.
    pub fn place_on(
        &self,
        stream: &dyn OrderedStream,
        label: impl Into<Arc<str>>,
        request: Request,
    ) -> Result<Fragment> {
        if request.size == 0 || !request.align.is_power_of_two() || self.shared().is_host_accessible {
            return self.place(label, request);
        }
        self.shared().place_on(label.into(), request, stream)
    }

    /// Lays out a batch whose sizes are known as this pool would place it: in order, one after the other, in one
    /// region unless the pool's region size is limited.
    ///
    /// # Errors
    /// When an alignment is not a power of two or the sizes overflow.
    pub fn lay_out(&self, requests: impl IntoIterator<Item: Borrow<Request>>) -> Result<Layout> {
        let (mut taken, mut requests) = (0, requests.into_iter());
        let limit = self.shared().options.max_region_bytes.map(NonZeroU64::get);
        lay_out(requests.by_ref().inspect(|_| taken += 1), limit)
            .map_err(|error| self.shared().broken_batch(taken + requests.count(), error.to_string()))
    }

    /// Places a batch as laid out by [`lay_out`](Self::lay_out): [`reserve_planned`](Self::reserve_planned) and
    /// [`Reserved::place`] in one.
    ///
    /// # Errors
    /// When there is not one label for each fragment, the layout is not one of this kind, the limit or the memory refuses, or
    /// the pool is closed. Nothing is kept then.
    pub fn place_planned(&self, layout: &Layout, labels: &[Arc<str>]) -> Result<Placed> {
        layout::check(layout, labels.len())
            .map_err(|problem| self.shared().broken_batch(labels.len(), problem))?;
        let label = labels.first().map_or_else(|| "".into(), Arc::clone);
        let mut reserved = self.reserve_planned(layout, label)?;
        let bases = reserved.bases();
        bases.bring_up(|| false);
        bases.wait_for_all()?;
        reserved.place(layout, labels.to_vec())
    }

    /// Reserves the memory of a batch as laid out by [`lay_out`](Self::lay_out): one block for each region, found by the
    /// pool's policy or as a new region of just that size. In errors and snapshots it has the label until it is cut. Where regions are backed in
    /// parts, there is no memory behind the addresses yet: see [`Bases`]. Memory comes only where fragments lie, and that is what counts as
    /// reserved; the limit has to leave room for whole regions while they are reserved.
    ///
    /// # Errors
    /// When the limit or the memory refuses, the layout is not one of this kind, or the pool is closed. Nothing is kept then.
    pub fn reserve_planned(&self, layout: &Layout, label: impl Into<Arc<str>>) -> Result<Reserved> {
        self.reserve(layout, label.into(), Apart::No)
    }

    /// As [`reserve_planned`](Self::reserve_planned), in new regions in any case: none of the batch keeps another's region reserved, nor another
    /// the batch's, and what is reserved adds up to just what is laid out.
    ///
    /// # Errors
    /// As [`reserve_planned`](Self::reserve_planned).
    pub fn reserve_planned_apart(&self, layout: &Layout, label: impl Into<Arc<str>>) -> Result<Reserved> {
        self.reserve(layout, label.into(), Apart::Yes)
    }

    fn reserve(&self, layout: &Layout, label: Arc<str>, apart: Apart) -> Result<Reserved> {
        let shared = self.shared();
        drop(shared.open_books(&label)?);
        let count = layout.placements.len();
        layout::check(layout, count).map_err(|problem| shared.broken_batch(count, problem))?;
        let in_parts = match shared.batch_regions {
            BatchRegions::Parts(unit) => Some((unit, layout::by_region(layout))),
            BatchRegions::Whole(_) => None,
        };
        let mut reserved =
            Reserved { pool: self.clone(), label, blocks: SmallVec::new(), bases: Bases::default() };
        let mut backings = SmallVec::<[_; 4]>::new();
        for (region, shape) in layout.regions.iter().enumerate() {
            let request = Request::new(shape.size, shape.align);
            let (mut books, block) = match &in_parts {
                Some((unit, fragments)) => {
                    let parts = backing::cut(fragments[region].iter().copied(), *unit);
                    // A size below 2^63, rounded up to a power of two of at most that, does not overflow.
                    let bytes = shape.size.next_multiple_of(*unit);
                    shared.take_parts(&reserved.label, request, bytes, &parts)?
                }
                None if apart == Apart::Yes => shared.take_region(&reserved.label, request)?,
                None => shared.take_block(&reserved.label, request, 0)?,
            };
            books.log_take(&reserved.label, request, &block);
            backings.push(books.regions.get(block.home.region).and_then(|region| region.backing.clone()));
            drop(books);
            reserved.blocks.push((block, shape.size));
        }
        let addresses = reserved.blocks.iter().map(|(block, _)| block.address);
        reserved.bases = Bases::new(&shared.name, &reserved.label, addresses.zip(backings));
        Ok(reserved)
    }

    /// Waits until everything dropped before this call has been given back, and every empty region with it: for the work that
    /// uses it, too. Does nothing in a forked child, and when a memory or a fence calls it on the pool's own thread.
    pub fn trim(&self) {
        self.shared().settle(Fences::Wait);
    }

    /// As [`trim`](Self::trim), but keeps empty regions of at most so many bytes in all for later placements.
    pub fn trim_to(&self, bytes: u64) {
        self.shared().settle_and_keep(Fences::Wait, bytes);
    }

    /// The pool's numbers; all 0 in a forked child, where another thread of the parent may have held their lock.
    pub fn stats(&self) -> Stats {
        self.shared().stats()
    }

    /// The pool's regions and fragments; none in a forked child, as for [`stats`](Self::stats).
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { whole_because: self.whole_because(), ..self.shared().snapshot() }
    }
}

impl Reserved {
    /// Where the regions of the layout begin.
    pub fn bases(&self) -> Bases {
        self.bases.clone()
    }

    /// Cuts the memory into the batch's fragments, without a search. `labels` are theirs, in the order of the layout.
    ///
    /// # Errors
    /// When there is not one label for each fragment, the layout is not the one that the memory was reserved for, the memory
    /// has been cut already, or the pool is closed. The memory stays here then, whole.
    pub fn place(&mut self, layout: &Layout, labels: Vec<Arc<str>>) -> Result<Placed> {
        let (shared, count) = (Arc::clone(self.pool.shared()), labels.len());
        let broken = |problem: String| shared.broken_batch(count, problem);
        layout::check(layout, count).map_err(broken)?;
        let fits = |(shape, (block, size)): (&RegionShape, &(Block, u64))| {
            shape.size == *size && (block.address.as_ptr() as u64).is_multiple_of(shape.align)
        };
        if layout.regions.len() != self.blocks.len() || !layout.regions.iter().zip(&self.blocks).all(fits) {
            return Err(broken("the memory was reserved for another layout".into()));
        }
        let (bases, fragments) = (self.bases(), layout::by_region(layout));
        let backed = || {
            (0..).zip(&fragments).filter_map(|(region, here)| Some((bases.backing(region)?, region, here)))
        };
        let is_backed = |(backing, _, here): (&Arc<Backing>, _, &Vec<(u64, u64)>)| {
            here.iter().all(|&(offset, bytes)| backing.covers(offset, bytes))
        };
        if !backed().all(is_backed) {
            return Err(broken("a fragment lies where the memory was not reserved for one".into()));
        }
        let mut books = shared.open_books(&self.label)?;
        let mut keys: SmallVec<[std::vec::IntoIter<Key>; 4]> = SmallVec::new();
        for ((block, _), fragments) in self.blocks.iter().zip(&fragments) {
            let offsets: Vec<u64> = fragments.iter().map(|(offset, _)| *offset).collect();
            keys.push(books.carve(block, &offsets).map_err(broken)?.into_iter());
        }
        // Cut: from here on each block is given back fragment by fragment.
        let mut left = false;
        for (backing, region, fragments) in backed() {
            let parts = backing.cut_into(fragments.iter().copied());
            left |= !parts.is_empty();
            books.leave(self.blocks[region].0.home.region, backing, parts);
        }
        let blocks = mem::take(&mut self.blocks);
        books.fragments.reserve(count);
        let place = |(placement, label): (&Placement, Arc<str>)| {
            let Placement { region, offset, bytes } = *placement;
            let key = keys.get_mut(region as usize).filter(|_| bytes > 0).and_then(Iterator::next);
            let (address, home) = match blocks.get(region as usize).zip(key) {
                Some(((block, _), key)) => block.part(offset, key),
                None => (dangling(shared.options.granule), None),
            };
            let slot = books.enter(label, bytes, home);
            books.log_part(slot, placement);
            // Who has the bases may be writing there.
            Fragment::new(address, bytes, &shared, slot, Uses::new(true, Vec::new()))
        };
        let fragments = layout.placements.iter().zip(labels).map(place).collect();
        books.log_cut(&blocks);
        drop(books);
        if left {
            shared.wake_reaper();
        }
        Ok(Placed { fragments, bases })
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let shared = self.pool.shared();
        if shared.is_forked_child() {
            return;
        }
        for (block, bytes) in mem::take(&mut self.blocks) {
            // The way that fragments go, since the memory may be in use still (I1).
            let mut books = shared.books();
            let slot = books.enter(Arc::clone(&self.label), bytes, Some(block.home));
            books.log_uncut(slot);
            drop(books);
            let uses = Uses::new(true, Vec::new());
            drop(Fragment::new(block.address, bytes, shared, slot, uses));
        }
    }
}

/// The address of an empty fragment: aligned, and pointing to nothing.
fn dangling(align: u64) -> NonNull<u8> {
    // `NonNull::without_provenance` needs Rust 1.89.
    let address = NonZeroUsize::new(align as usize).unwrap_or(NonZeroUsize::MIN);
    NonNull::new(ptr::without_provenance_mut(address.get())).unwrap_or(NonNull::dangling())
}
