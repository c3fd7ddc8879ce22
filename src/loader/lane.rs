//! A lane: one reader's way to a device that the CPU cannot write to.
//!
//! It is a stream and a ring of slots in staging memory. The reader fills a slot and submits its copy; while that copy
//! runs, it fills the next. A slot is filled again when the event behind its last copy has passed.
//!
//! # Invariants
//! - **L1** The event with a slot's number is recorded after each copy out of the slot, and waited for before the slot
//!   is written again.
//! - The slots are a fragment of a pool, so that they too go back only when the memory has been synchronized (I1),
//!   whatever else fails.

use tensorhold_allocator::{Fragment, Pool, Request};

use crate::device::{Device, Stream};
use crate::error::Result;

/// How many slots a lane has: one is copied while the other is filled.
pub(crate) const SLOTS: usize = 2;

pub(crate) struct Lane {
    stream: Box<dyn Stream>,
    slots: Fragment,
    slot_bytes: u64,
    next: usize,
}

impl Lane {
    /// Opens a lane with slots of `slot_bytes` each from `staging`, whose memory is the device's staging memory.
    pub(crate) fn open(device: &Device, staging: &Pool, slot_bytes: u64) -> Result<Self> {
        let slots = staging.place("staging", Request::new(slot_bytes * SLOTS as u64, 4096))?;
        Ok(Self { stream: device.driver().stream()?, slots, slot_bytes, next: 0 })
    }

    /// Waits until the next slot is free, lets `fill` write `bytes` bytes of it (at most `slot_bytes`), and enqueues
    /// their copy to `target`.
    ///
    /// # Safety
    /// `target` is valid for writes of `bytes` bytes in the device's memory, and no one else touches them, until
    /// `finish` has returned or the device's memory has been synchronized.
    pub(crate) unsafe fn pass(
        &mut self,
        target: *mut u8,
        bytes: u64,
        fill: impl FnOnce(*mut u8) -> Result<()>,
    ) -> Result<()> {
        let slot = self.next;
        self.next = (slot + 1) % SLOTS;
        self.stream.wait(slot)?;
        debug_assert!(bytes <= self.slot_bytes);
        let start = self.slots.as_ptr().cast_mut().wrapping_add(slot * self.slot_bytes as usize);
        fill(start)?;
        // SAFETY: the caller promises the target. L1: the slot is not written before the event recorded below has
        // passed, and it stays allocated until its memory has been synchronized (I1).
        unsafe { self.stream.copy_to_device(target, start, bytes) }?;
        self.stream.record(slot)
    }

    /// Waits until every copy has ended.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.stream.synchronize()
    }
}
