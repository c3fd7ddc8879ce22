//! How a placement finds its block: in a region of the pool, in a new region, or after something made room.

use std::cell::Cell;
use std::mem;
use std::sync::Arc;

use super::layout_check::MOST_BYTES;
use crate::backing::{Backing, RegionPart};
use crate::books::{Books, RegionBlock};
use crate::core::{FenceMode, PoolCore, ThreadSlot};
use crate::error::{Error, MemoryError, Result};
use crate::memory::RawRegion;
use crate::offsets::{Request, Space};
use crate::reclaim::{dissolve_shards, take_back_for_placement};
use crate::sync::MutexGuard;

/// A block, and the books it is to be entered in, which are still locked.
pub(super) type Taken<'a> = (MutexGuard<'a, Books>, RegionBlock);

/// Takes a block from the regions of the pool, or from a new region of at least `region_bytes`. The books stay locked, so that it can
/// be entered at once.
///
/// What has been retired counts as free: before an error is returned, the reaper deals with it, as long as that frees something, which
/// others may take first. Then `on_pressure` is called for as long as it continues.
pub(super) fn take_block<'a>(
    core: &'a PoolCore,
    label: &str,
    request: Request,
    region_bytes: u64,
) -> Result<Taken<'a>> {
    Attempt::new(core, label, request).under_pressure(|attempt| attempt.fit_or_grow(region_bytes))
}

/// As [`take_block`], but all of a new region of just that size.
pub(super) fn take_region<'a>(core: &'a PoolCore, label: &str, request: Request) -> Result<Taken<'a>> {
    Attempt::new(core, label, request).under_pressure(Attempt::grow_alone)
}

/// As [`take_region`], of a new region of `bytes` bytes that is backed in these parts: a range of addresses without memory.
pub(super) fn take_parts<'a>(
    core: &'a PoolCore,
    label: &str,
    request: Request,
    bytes: u64,
    parts: &[RegionPart],
) -> Result<Taken<'a>> {
    Attempt::new(core, label, request).under_pressure(|attempt| attempt.grow_in_parts(bytes, parts))
}

/// Locks the books for a single placement. If threads keep contending for the lock, the pool has shards from then on.
fn open_books_to_place<'a>(core: &'a PoolCore, label: &str) -> Result<MutexGuard<'a, Books>> {
    let (mut books, waited) = core.open_contended_books(label)?;
    if books.contention.record(ThreadSlot::current().thread, waited) && core.may_have_shards() {
        core.make_shards();
    }
    take_back_for_placement(core, &mut books);
    Ok(books)
}

/// A placement that is looking for its block.
struct Attempt<'a, 'l> {
    core: &'a PoolCore,
    label: &'l str,
    request: Request,
    /// [`Books::room_changes`] when it was refused.
    seen: Cell<u64>,
}

/// A region that is being reserved. If the memory panics, the reservation is canceled.
struct Reservation<'a> {
    core: &'a PoolCore,
    bytes: u64,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.core.books().cancel_reservation(self.bytes);
        self.core.notify_pass();
    }
}

impl<'a, 'l> Attempt<'a, 'l> {
    fn new(core: &'a PoolCore, label: &'l str, request: Request) -> Self {
        Self { core, label, request, seen: Cell::new(0) }
    }

    /// Tries to place until that succeeds, or nothing makes room.
    fn under_pressure<T>(&self, place: impl Fn(&Self) -> Result<T>) -> Result<T> {
        let (core, config) = (self.core, self.core.config());
        let mut calls: u32 = 0;
        loop {
            let refusal = match place(self) {
                Err(refusal @ (Error::LimitReached { .. } | Error::OutOfMemory { .. })) => refusal,
                placed => return placed,
            };
            // Where that made room, or others did, there is no need to wait.
            dissolve_shards(core);
            core.check_process("place")?;
            if core.shard_slice().is_some() && core.books().room_changes() != self.seen.get() {
                continue;
            }
            // What the pool retains may be what this placement needs: it goes only when no place was found in it.
            let settling_makes_room = |keep| {
                core.settle_and_keep(FenceMode::Wait, keep);
                self.has_made_room()
            };
            let retained = config.retain_bytes;
            if settling_makes_room(retained) || (retained > 0 && settling_makes_room(0)) {
                continue;
            }
            calls = calls.saturating_add(1);
            let again = config.on_pressure.as_ref().is_some_and(|call| call(&refusal, calls).is_continue());
            if !again {
                return Err(refusal);
            }
            core.settle(FenceMode::Wait);
        }
    }

    /// Whether there may be room that there was not at the refusal: something was freed, if only for another placement, or a region that
    /// others were reserving was added. Waits for those regions.
    fn has_made_room(&self) -> bool {
        let (core, seen) = (self.core, self.seen.get());
        if core.is_forked_child() {
            return false;
        }
        let mut books = core.books();
        while books.has_reservations() && books.room_changes() == seen {
            books = core.wait_for_pass(books);
        }
        books.room_changes() != seen
    }

    fn fit_or_grow(&self, region_bytes: u64) -> Result<Taken<'a>> {
        let mut books = open_books_to_place(self.core, self.label)?;
        if let Some(block) = books.fit(self.request) {
            return Ok((books, block));
        }
        let bytes = self.region_size(&books, self.request.size, region_bytes)?;
        self.grow(books, bytes, |align| self.core.config().memory.reserve(bytes, align), |_| None)
    }

    fn grow_alone(&self) -> Result<Taken<'a>> {
        let books = self.core.open_books(self.label)?;
        let bytes = self.region_size(&books, self.request.size, 0)?;
        self.grow(books, bytes, |align| self.core.config().memory.reserve(bytes, align), |_| None)
    }

    fn grow_in_parts(&self, range_bytes: u64, parts: &[RegionPart]) -> Result<Taken<'a>> {
        let memory = &self.core.config().memory;
        let books = self.core.open_books(self.label)?;
        let bytes = self.region_size(&books, range_bytes, 0)?;
        let reserve = |align| memory.parted()?.reserve_range(range_bytes, align);
        let backed = |raw| Some(Arc::new(Backing::new(Arc::clone(memory), raw, parts.to_vec())));
        self.grow(books, bytes, reserve, backed)
    }

    /// Adds a new region of `bytes`, and takes a block of it.
    fn grow(
        &self,
        mut books: MutexGuard<'a, Books>,
        bytes: u64,
        reserve: impl FnOnce(u64) -> std::result::Result<RawRegion, MemoryError>,
        backed: impl FnOnce(RawRegion) -> Option<Arc<Backing>>,
    ) -> Result<Taken<'a>> {
        let Self { core, request, .. } = *self;
        let config = core.config();
        // The lock is not held while the memory works, which may take long. The region counts as reserved meanwhile, so that the limit holds
        // and the reaper stays (R2).
        books.begin_reservation(bytes);
        drop(books);
        let reservation = Reservation { core, bytes };
        let reserved = reserve(request.align.max(config.granule));
        mem::forget(reservation);
        let mut books = core.books();
        core.notify_pass();
        let raw = match reserved {
            Ok(raw) => raw,
            Err(source) => {
                books.cancel_reservation(bytes);
                // Unchanged by this refusal: placements that are refused in turn would go on for ever.
                self.seen.set(books.room_changes());
                return Err(self.out_of_memory(bytes, books.reserved_bytes(), source));
            }
        };
        let backing = backed(raw);
        // What is rounded up to whole parts belongs to no fragment.
        let capacity = if backing.is_some() { request.size } else { bytes };
        let space = Space::with_policy(config.policy, capacity, config.granule);
        let region = books.end_reservation(raw, bytes, space, backing);
        if let Some(block) = books.fit_in(region, request) {
            return Ok((books, block));
        }
        if let Some(backing) = books.backing(region).cloned() {
            let parts = backing.leave(0, u64::MAX);
            books.queue_unused_parts(region, &backing, parts);
        }
        drop(books);
        core.wake_reaper();
        Err(config.broken_batch(0, "a fresh region does not hold what it was reserved for"))
    }

    /// Size of the next region in bytes: `region_bytes`, or `needed` if that is larger; near the limit, what remains of it.
    fn region_size(&self, books: &Books, needed: u64, region_bytes: u64) -> Result<u64> {
        let (config, reserved) = (self.core.config(), books.reserved_bytes());
        let remaining = config.limit_bytes.unwrap_or(u64::MAX).min(MOST_BYTES).saturating_sub(reserved);
        if needed <= remaining {
            return Ok(needed.max(region_bytes).min(remaining));
        }
        self.seen.set(books.room_changes());
        Err(match config.limit_bytes {
            Some(limit) => Error::LimitReached {
                pool: config.name.clone(),
                label: self.label.into(),
                requested: needed,
                largest_free: books.largest_free(),
                reserved,
                limit,
            },
            None => self.out_of_memory(needed, reserved, "no address space has so much".into()),
        })
    }

    fn out_of_memory(&self, requested: u64, reserved: u64, source: MemoryError) -> Error {
        let (pool, label) = (self.core.config().name.clone(), self.label.into());
        Error::OutOfMemory { pool, label, requested, reserved, source }
    }
}
