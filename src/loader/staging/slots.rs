//! [`ReaderSlots`]: the slots of one direct reader, and the stream that empties them.
//!
//! The reader fills a slot and submits its copy; while that copy runs, it fills the next. A slot is reused
//! when the event after its last copy has passed. The slots of the first reads in flight are placed in one
//! piece: reads into memory of a huge page or more have fewer segments for each request, which is up to twice
//! as fast (`docs/performance.md`). Other slots are placed when they are first needed, so that a load that
//! needs few pins little memory.
//!
//! # Invariants
//! - **L1** The event with a slot's number is recorded after each copy out of the slot, and has passed (T3)
//!   before the slot is handed out again. A slot is not handed out again after a failure.
//! - The slots are fragments of a pool, so their memory is reused only after it has been synchronized (I1,
//!   Q3), whatever else fails.

use std::collections::VecDeque;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tensorhold_allocator::{Fragment, HostMemory};

use super::pool::SlotPool;
use crate::device::{Device, Stream, Transform};
use crate::error::Result;

/// The least number of slots: one is copied while the other is filled.
pub(crate) const FIRST_SLOTS: usize = 2;

/// Slots are added in blocks of at least this size.
const GROWTH_BYTES: u64 = HostMemory::HUGE_PAGE_BYTES;

pub(crate) struct ReaderSlots<'a> {
    stream: Box<dyn Stream>,
    slot_pool: SlotPool<'a>,
    blocks: Vec<Fragment>,
    /// First addresses of the slots, in the blocks.
    starts: Vec<*mut u8>,
    free: Vec<usize>,
    /// Slots being copied, oldest first, each with the job whose bytes it holds.
    copying: VecDeque<(usize, usize)>,
    /// The slots are in staging memory.
    is_staging: bool,
    /// Nothing is enqueued, or `finish` has waited for it.
    is_finished: bool,
}

impl<'a> ReaderSlots<'a> {
    /// Opens `first` slots if the budget and the memory allow it, else [`FIRST_SLOTS`], for which the caller
    /// has taken room in the budget.
    ///
    /// # Errors
    /// When there is no memory for [`FIRST_SLOTS`], or no stream.
    pub(crate) fn open(device: &Device, slot_pool: SlotPool<'a>, first: usize) -> Result<Self> {
        let mut slots = Self::empty(device, slot_pool)?;
        let more = slot_pool.budget.take_up_to(first.min(slot_pool.slots).saturating_sub(FIRST_SLOTS));
        if more == 0 || slots.grow(FIRST_SLOTS + more).is_err() {
            slot_pool.budget.give_back(more);
            slots.grow(FIRST_SLOTS)?;
        }
        Ok(slots)
    }

    /// Opens slots in this memory, which may be the device's: those are emptied by [`spread`](Self::spread).
    pub(crate) fn over(device: &Device, slot_pool: SlotPool<'a>, memory: Fragment) -> Result<Self> {
        let mut slots = Self::empty(device, slot_pool)?;
        slots.is_staging = false;
        slots.add(memory, slot_pool.slots);
        Ok(slots)
    }

    /// A stream without slots.
    fn empty(device: &Device, slot_pool: SlotPool<'a>) -> Result<Self> {
        Ok(Self {
            stream: device.driver().stream()?,
            slot_pool,
            blocks: Vec::new(),
            starts: Vec::new(),
            free: Vec::new(),
            copying: VecDeque::new(),
            is_staging: true,
            is_finished: false,
        })
    }

    fn grow(&mut self, slots: usize) -> Result<()> {
        let block = self.slot_pool.place(slots)?;
        self.add(block, slots);
        Ok(())
    }

    /// Adds the slots in a block of memory.
    fn add(&mut self, block: Fragment, slots: usize) {
        let slot_bytes = self.slot_pool.slot_bytes;
        let base = block.as_ptr().cast_mut();
        for slot in 0..slots {
            self.free.push(self.starts.len());
            self.starts.push(base.wrapping_add(slot * slot_bytes as usize));
        }
        self.blocks.push(block);
    }

    /// Returns a slot to read into: a free one, a new one, or the one whose copy ends next. `None` if all are
    /// being read into. Calls `landed` for each job whose copy has ended.
    pub(crate) fn acquire(&mut self, landed: impl FnMut(usize)) -> Result<Option<usize>> {
        self.acquire_then(landed).map(|slot| slot.or_else(|| self.free.pop()))
    }

    fn acquire_then(&mut self, mut landed: impl FnMut(usize)) -> Result<Option<usize>> {
        while let Some(&(slot, job)) = self.copying.front() {
            if !self.stream.has_passed(slot)? {
                break;
            }
            self.copying.pop_front();
            self.free.push(slot);
            landed(job);
        }
        if !self.free.is_empty() {
            return Ok(None);
        }
        if self.starts.len() < self.slot_pool.slots
            && let Some(left) = self.slot_pool.budget.take_donated()
        {
            self.add(left, 1);
            return Ok(None);
        }
        let wanted = GROWTH_BYTES.div_ceil(self.slot_pool.slot_bytes) as usize;
        let mut more = self.slot_pool.budget.take_up_to(wanted.min(self.slot_pool.slots - self.starts.len()));
        while more > 0 {
            let Err(error) = self.grow(more) else { return Ok(None) };
            // A smaller piece may be available. If none is, the existing slots suffice.
            self.slot_pool.budget.give_back(more - more / 2);
            more /= 2;
            if more == 0 {
                tracing::debug!(%error, slots = self.starts.len(), "no more staging memory");
                self.slot_pool.slots = self.starts.len();
            }
        }
        let Some((slot, job)) = self.copying.pop_front() else { return Ok(None) };
        self.stream.wait(slot)?;
        landed(job);
        Ok(Some(slot))
    }

    /// Start of a slot.
    pub(crate) fn start(&self, slot: usize) -> *mut u8 {
        self.starts[slot]
    }

    /// Length of a slot, in bytes.
    pub(crate) fn slot_bytes(&self) -> u64 {
        self.slot_pool.slot_bytes
    }

    /// Returns a slot whose bytes are no longer needed.
    pub(crate) fn release(&mut self, slot: usize) {
        self.free.push(slot);
    }

    /// Enqueues a copy of `bytes` bytes of a slot, starting at `offset`, to `target`. They are the bytes of
    /// job `job`.
    ///
    /// # Safety
    /// The bytes lie within the slot, which was acquired and no read into it is in flight. `target` is valid
    /// for writes of `bytes` bytes in the device's memory, and no one else accesses them, until `finish` has
    /// returned or the device's memory has been synchronized.
    pub(crate) unsafe fn send(
        &mut self,
        slot: usize,
        offset: u64,
        target: *mut u8,
        bytes: u64,
        job: usize,
    ) -> Result<()> {
        let from = self.start(slot).wrapping_add(offset as usize);
        // SAFETY: the caller promises the target. L1: the slot is not handed out again before the event
        // recorded below has passed, and it stays allocated until its memory has been synchronized (I1).
        unsafe { self.stream.copy_to_device(target, from, bytes) }?;
        self.stream.record(slot)?;
        self.copying.push_back((slot, job));
        Ok(())
    }

    /// Enqueues copies within the device, out of a slot in its memory: each of a number of bytes, from an
    /// offset in the slot to a target. They are the bytes of job `job`.
    ///
    /// # Safety
    /// As [`send`](Self::send), for each.
    pub(crate) unsafe fn spread(
        &mut self,
        slot: usize,
        moves: impl Iterator<Item = (u64, *mut u8, u64)>,
        job: usize,
    ) -> Result<()> {
        let start = self.start(slot);
        for (offset, target, bytes) in moves {
            // SAFETY: as in `send`.
            unsafe { self.stream.copy_on_device(target, start.wrapping_add(offset as usize), bytes) }?;
        }
        self.stream.record(slot)?;
        self.copying.push_back((slot, job));
        Ok(())
    }

    /// Enqueues a transform of a slot's bytes. They are the bytes of job `job`.
    ///
    /// # Safety
    /// As [`send`](Self::send), for the transform's source and target. The counters stay allocated for as
    /// long.
    pub(crate) unsafe fn transform(&mut self, slot: usize, transform: &Transform, job: usize) -> Result<()> {
        // SAFETY: as in `send`.
        unsafe { self.stream.transform(transform) }?;
        self.stream.record(slot)?;
        self.copying.push_back((slot, job));
        Ok(())
    }

    /// Waits until every copy has ended. Calls `landed` for their jobs.
    pub(crate) fn finish(mut self, mut landed: impl FnMut(usize)) -> Result<()> {
        self.is_finished = true;
        self.stream.synchronize()?;
        self.copying.drain(..).for_each(|(_, job)| landed(job));
        if self.is_staging {
            self.slot_pool.budget.keep(mem::take(&mut self.blocks));
        }
        Ok(())
    }
}

impl Drop for ReaderSlots<'_> {
    fn drop(&mut self) {
        // The reader panicked: its copies end before the panic is reported (W2). If the stream fails, the
        // memory's pools synchronize it before it is reused (I1).
        if !self.is_finished {
            let _ = catch_unwind(AssertUnwindSafe(|| self.stream.synchronize()));
        }
    }
}
