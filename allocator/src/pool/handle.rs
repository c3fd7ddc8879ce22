//! [`Pool`]: the handle, and single placements.

use std::mem;
use std::sync::Arc;

use super::growth::take_block;
use super::shard_placement::OpenShard;
use super::stats::{Snapshot, Stats};
use super::stream_placement;
use crate::books::RegionBlock;
use crate::core::{BatchRegions, FenceMode, PoolCore};
use crate::error::{Error, Result};
use crate::fragment::Fragment;
use crate::memory::Memory;
use crate::offsets::Request;
use crate::stream::OrderedStream;
use crate::stream::uses::Uses;

/// A pool of regions over one [`Memory`].
///
/// A cheap handle: clones are the same pool. When the last handle goes, the pool closes; its regions go back when
/// their last fragments do.
///
/// In a forked child of the process that built it, a pool places nothing ([`Error::Forked`]). Its fragments can be read and
/// dropped there; a drop frees nothing.
#[derive(Debug, Clone)]
pub struct Pool {
    owner: Arc<Owner>,
}

/// Closes the pool when the last handle goes.
#[derive(Debug)]
struct Owner {
    core: Arc<PoolCore>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        if self.core.is_forked_child() {
            // The reaper's reference stays; if it had ended before the fork this one does, so that no memory is dropped here.
            mem::forget(Arc::clone(&self.core));
            return;
        }
        self.core.start_closing();
        self.core.wake_reaper();
    }
}

impl Pool {
    /// Whether this is the process that built the pool, and not a forked child of it, where the pool places and frees nothing.
    pub fn is_of_this_process(&self) -> bool {
        !self.core().is_forked_child()
    }

    /// The first handle of a pool whose reaper has started.
    pub(super) fn started(core: Arc<PoolCore>) -> Self {
        Self { owner: Arc::new(Owner { core }) }
    }

    pub(super) fn core(&self) -> &PoolCore {
        &self.owner.core
    }

    /// The pool's name, for errors and snapshots.
    pub fn name(&self) -> &str {
        &self.core().config().name
    }

    /// The most bytes that may be reserved at any time; `None` without a limit.
    pub fn limit_bytes(&self) -> Option<u64> {
        self.core().config().limit_bytes
    }

    /// The memory that the regions come from.
    pub fn memory(&self) -> &Arc<dyn Memory> {
        &self.core().config().memory
    }

    /// Whether the regions of planned batches are backed in parts.
    pub fn is_parted(&self) -> bool {
        matches!(self.core().config().batch_regions, BatchRegions::Parts(_))
    }

    /// Why they are not, if [`RegionParts::Auto`](crate::RegionParts::Auto) was requested.
    pub fn whole_because(&self) -> Option<Arc<str>> {
        match &self.core().config().batch_regions {
            BatchRegions::Whole(because) => because.clone(),
            BatchRegions::Parts(_) => None,
        }
    }

    /// Places one fragment by the pool's policy, in a new region if none has room.
    ///
    /// A size of 0 is valid: the fragment is counted but takes no memory.
    ///
    /// # Errors
    /// When the limit or the memory refuses, the alignment is not a power of two, or the pool is closed; in a forked child.
    pub fn place(&self, label: impl Into<Arc<str>>, request: Request) -> Result<Fragment> {
        let (core, label) = (self.core(), label.into());
        if !request.align.is_power_of_two() {
            let (pool, label) = (core.config().name.clone(), label.to_string());
            return Err(Error::Alignment { pool, label, align: request.align });
        }
        if request.size > 0
            && let Some(mut shard) = OpenShard::open(core, &label, request)?
            && let Some(RegionBlock { location, address }) = shard.fit(request)
        {
            let (slot, number) = (shard.enter(label, request.size, location), shard.number());
            drop(shard);
            return Ok(Fragment::new_in_shard(number, address, request.size, core, slot));
        }
        let (mut books, address, location) = if request.size == 0 {
            (core.open_books(&label)?, Fragment::dangling(request.align), None)
        } else {
            let (books, block) = take_block(core, &label, request, core.config().region_bytes)?;
            (books, block.address, Some(block.location))
        };
        let slot = books.enter(label, request.size, request.align, location);
        drop(books);
        Ok(Fragment::new(address, request.size, core, slot, Uses::default()))
    }

    /// Places one fragment for work on a stream. Before the pool grows, it reuses a dropped range whose recorded uses have not
    /// ended: directly if they were on this stream, otherwise after it made the stream wait for them.
    ///
    /// So only work that is enqueued on this stream from now on, or ordered after such work, may touch the fragment. On
    /// host-accessible memory this is [`place`](Self::place).
    ///
    /// # Errors
    /// As [`place`](Self::place), and when uses on the stream cannot be recorded.
    pub fn place_on(
        &self,
        stream: &dyn OrderedStream,
        label: impl Into<Arc<str>>,
        request: Request,
    ) -> Result<Fragment> {
        if request.size == 0 || !request.align.is_power_of_two() || self.core().config().is_host_accessible {
            return self.place(label, request);
        }
        stream_placement::place_on(self.core(), label.into(), request, stream)
    }

    /// Waits until every range dropped before this call is free and every empty region is released; this includes waiting for
    /// device work that uses them. Does nothing in a forked child, or when a memory or fence calls it on the reaper thread.
    pub fn trim(&self) {
        self.core().settle(FenceMode::Wait);
    }

    /// As [`trim`](Self::trim), but keeps empty regions of up to `bytes` in total for later placements.
    pub fn trim_to(&self, bytes: u64) {
        self.core().settle_and_keep(FenceMode::Wait, bytes);
    }

    /// The pool's statistics; all 0 in a forked child, where their lock may stay locked.
    pub fn stats(&self) -> Stats {
        Stats::of(self.core())
    }

    /// The pool's regions and fragments; none in a forked child, as for [`stats`](Self::stats).
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::of(self.core(), self.whole_because())
    }
}
