//! A lane: the memory that one reader reads into where it cannot read in place, and the way from there to the device.
//!
//! It is a stream and a ring of slots in staging memory. The reader fills a slot and submits its copy; while that copy
//! runs, it fills the next. A slot is filled again when the event behind its last copy has passed. The slots of the reads that
//! are to be in flight at first are made in one piece, since memory of a huge page or more is read into with fewer segments to
//! a request, which is up to twice as fast (`docs/performance.md`); others as they are first needed, so a load that needs few
//! pins little.
//!
//! # Invariants
//! - **L1** The event with a slot's number is recorded after each copy out of the slot, and has passed (T3) before the slot
//!   is handed out again. A slot of which something failed is not handed out again.
//! - The slots are fragments of a pool, so that they too go back only when the memory has been synchronized (I1, Q3),
//!   whatever else fails.

use std::collections::VecDeque;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tensorhold_allocator::{Fragment, HostMemory};

use super::staging::Staging;
use crate::device::{Device, Stream, Transform};
use crate::error::Result;

/// A lane has so many slots or more: one is copied while the other is filled.
pub(crate) const FIRST_SLOTS: usize = 2;

/// A lane grows by so much or more.
const GROWTH_BYTES: u64 = HostMemory::HUGE_PAGE_BYTES;

pub(crate) struct Lane<'a> {
    stream: Box<dyn Stream>,
    staging: Staging<'a>,
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

impl<'a> Lane<'a> {
    /// Opens a lane with `first` slots if there is room and memory for them, and [`FIRST_SLOTS`] at least, for which its maker
    /// has taken the room.
    pub(crate) fn open(device: &Device, staging: Staging<'a>, first: usize) -> Result<Self> {
        let mut lane = Self::empty(device, staging)?;
        let more = staging.budget.take_up_to(first.min(staging.slots).saturating_sub(FIRST_SLOTS));
        if more == 0 || lane.grow(FIRST_SLOTS + more).is_err() {
            staging.budget.give(more);
            lane.grow(FIRST_SLOTS)?;
        }
        Ok(lane)
    }

    /// Opens a lane whose slots are all in this memory, which may be the device's: those are emptied by
    /// [`spread`](Self::spread).
    pub(crate) fn over(device: &Device, staging: Staging<'a>, memory: Fragment) -> Result<Self> {
        let mut lane = Self::empty(device, staging)?;
        lane.is_staging = false;
        lane.add(memory, staging.slots);
        Ok(lane)
    }

    /// A lane without slots.
    fn empty(device: &Device, staging: Staging<'a>) -> Result<Self> {
        Ok(Self {
            stream: device.driver().stream()?,
            staging,
            blocks: Vec::new(),
            starts: Vec::new(),
            free: Vec::new(),
            copying: VecDeque::new(),
            is_staging: true,
            is_finished: false,
        })
    }

    fn grow(&mut self, slots: usize) -> Result<()> {
        let block = self.staging.place(slots)?;
        self.add(block, slots);
        Ok(())
    }

    /// Adds the slots that a block of memory holds.
    fn add(&mut self, block: Fragment, slots: usize) {
        let slot_bytes = self.staging.slot_bytes;
        let base = block.as_ptr().cast_mut();
        for slot in 0..slots {
            self.free.push(self.starts.len());
            self.starts.push(base.wrapping_add(slot * slot_bytes as usize));
        }
        self.blocks.push(block);
    }

    /// A slot to read into: a free one, a new one, or the one whose copy ends next. `None` when all are being read into.
    /// `landed` is told of the jobs whose copies have ended.
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
        if self.starts.len() < self.staging.slots
            && let Some(left) = self.staging.budget.take_left()
        {
            self.add(left, 1);
            return Ok(None);
        }
        let wanted = GROWTH_BYTES.div_ceil(self.staging.slot_bytes) as usize;
        let mut more = self.staging.budget.take_up_to(wanted.min(self.staging.slots - self.starts.len()));
        while more > 0 {
            let Err(error) = self.grow(more) else { return Ok(None) };
            // What is refused in one piece may be had in a smaller one; else what there is has to do.
            self.staging.budget.give(more - more / 2);
            more /= 2;
            if more == 0 {
                tracing::debug!(%error, slots = self.starts.len(), "no more staging memory");
                self.staging.slots = self.starts.len();
            }
        }
        let Some((slot, job)) = self.copying.pop_front() else { return Ok(None) };
        self.stream.wait(slot)?;
        landed(job);
        Ok(Some(slot))
    }

    /// Where a slot begins.
    pub(crate) fn start(&self, slot: usize) -> *mut u8 {
        self.starts[slot]
    }

    /// How long a slot is.
    pub(crate) fn slot_bytes(&self) -> u64 {
        self.staging.slot_bytes
    }

    /// Takes a slot back whose bytes are not needed any more.
    pub(crate) fn release(&mut self, slot: usize) {
        self.free.push(slot);
    }

    /// Enqueues the copy of `bytes` bytes of a slot, from `offset` on, to `target`; they are those of job `job`.
    ///
    /// # Safety
    /// The bytes lie within the slot, which was acquired and is read into no more. `target` is valid for writes of
    /// `bytes` bytes in the device's memory, and no one else touches them, until `finish` has returned or the device's
    /// memory has been synchronized.
    pub(crate) unsafe fn send(
        &mut self,
        slot: usize,
        offset: u64,
        target: *mut u8,
        bytes: u64,
        job: usize,
    ) -> Result<()> {
        let from = self.start(slot).wrapping_add(offset as usize);
        // SAFETY: the caller promises the target. L1: the slot is not handed out again before the event recorded below has
        // passed, and it stays allocated until its memory has been synchronized (I1).
        unsafe { self.stream.copy_to_device(target, from, bytes) }?;
        self.stream.record(slot)?;
        self.copying.push_back((slot, job));
        Ok(())
    }

    /// Enqueues copies within the device, out of a slot that is in its memory: of so many bytes, from an offset, to a target each; they are
    /// those of job `job`.
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

    /// Enqueues what the device makes of a slot's bytes; they are those of job `job`.
    ///
    /// # Safety
    /// As [`send`](Self::send), for the transform's source and target. The counters stay until then, too.
    pub(crate) unsafe fn transform(&mut self, slot: usize, transform: &Transform, job: usize) -> Result<()> {
        // SAFETY: as in `send`.
        unsafe { self.stream.transform(transform) }?;
        self.stream.record(slot)?;
        self.copying.push_back((slot, job));
        Ok(())
    }

    /// Waits until every copy has ended; after an error too, as far as that can be told.
    pub(crate) fn finish(mut self, mut landed: impl FnMut(usize)) -> Result<()> {
        self.is_finished = true;
        self.stream.synchronize()?;
        self.copying.drain(..).for_each(|(_, job)| landed(job));
        if self.is_staging {
            self.staging.budget.keep(mem::take(&mut self.blocks));
        }
        Ok(())
    }
}

impl Drop for Lane<'_> {
    fn drop(&mut self) {
        // A reader panicked: its copies end before anyone learns of that (W2). If the stream cannot tell, the memory's pools synchronize it before it is
        // used again (I1).
        if !self.is_finished {
            let _ = catch_unwind(AssertUnwindSafe(|| self.stream.synchronize()));
        }
    }
}
