//! How a placement finds its block: in a region that there is, in a new one, or after someone has made room.

use std::cell::Cell;
use std::mem;
use std::sync::{Arc, PoisonError};

use crate::backing::{Backing, Part};
use crate::core::pool_core::{Block, Books, Fences, Region, Shared};
use crate::error::{Error, Result};
use crate::memory::{MemoryError, RawRegion};
use crate::offsets::{Request, Space};
use crate::pool::layout_check::MOST_BYTES;
use crate::sync::MutexGuard;

/// A placement that is looking for its block.
struct Attempt<'a, 'l> {
    shared: &'a Shared,
    label: &'l str,
    request: Request,
    /// [`Books::made_room`] when it was refused.
    seen: Cell<u64>,
}

/// A region that is being reserved. If the memory panics, it is not any more.
struct Growing<'a> {
    shared: &'a Shared,
    size: u64,
}

impl Drop for Growing<'_> {
    fn drop(&mut self) {
        let mut books = self.shared.books();
        books.growing -= 1;
        books.reserved -= self.size;
        drop(books);
        self.shared.passed.notify_all();
    }
}

impl Shared {
    /// Takes a block from the regions there are, or from a new region of at least `region_bytes`, and returns it with
    /// the lock still held, so that it can be entered at once.
    ///
    /// What has been retired counts as free: before an error is returned, it is waited for, as long as that frees something, of which
    /// others may be quicker to take. Then whoever wants to make room may, as often as they say that they have.
    pub(crate) fn take_block<'a>(
        &'a self,
        label: &str,
        request: Request,
        region_bytes: u64,
    ) -> Result<(MutexGuard<'a, Books>, Block)> {
        self.attempt(label, request).under_pressure(|attempt| attempt.fit_or_grow(region_bytes))
    }

    /// As [`take_block`](Self::take_block), but all of a new region of just that size.
    pub(crate) fn take_region<'a>(
        &'a self,
        label: &str,
        request: Request,
    ) -> Result<(MutexGuard<'a, Books>, Block)> {
        self.attempt(label, request).under_pressure(Attempt::grow_alone)
    }

    /// As [`take_block`](Self::take_block), in a new region of `bytes` bytes that is backed in these parts: a range of addresses without
    /// memory.
    pub(crate) fn take_parts<'a>(
        &'a self,
        label: &str,
        request: Request,
        bytes: u64,
        parts: &[Part],
    ) -> Result<(MutexGuard<'a, Books>, Block)> {
        self.attempt(label, request).under_pressure(|attempt| attempt.grow_in_parts(bytes, parts))
    }

    fn attempt<'a, 'l>(&'a self, label: &'l str, request: Request) -> Attempt<'a, 'l> {
        Attempt { shared: self, label, request, seen: Cell::new(0) }
    }

    /// Whether there may be room that there was not: something was freed, if only for another, or a region that others were
    /// reserving has come. Waits for those regions.
    fn has_made_room(&self, before: u64) -> bool {
        if self.is_forked_child() {
            return false;
        }
        let mut books = self.books();
        while books.growing > 0 && books.made_room == before {
            books = self.passed.wait(books).unwrap_or_else(PoisonError::into_inner);
        }
        books.made_room != before
    }
}

impl<'a> Attempt<'a, '_> {
    /// Tries to place until that succeeds, or no one makes room.
    fn under_pressure<T>(&self, place: impl Fn(&Self) -> Result<T>) -> Result<T> {
        let shared = self.shared;
        let mut asked: u32 = 0;
        loop {
            let refusal = match place(self) {
                Err(refusal @ (Error::LimitReached { .. } | Error::OutOfMemory { .. })) => refusal,
                placed => return placed,
            };
            // Where that made room, or others did, there is no need to wait.
            shared.dissolve_shards();
            shared.check_process("place")?;
            if shared.shards.get().is_some() && shared.books().made_room != self.seen.get() {
                continue;
            }
            // What the pool retains may be what is wanted here: it goes only when no place was found in it.
            let settling_makes_room = |keep| {
                shared.settle_and_keep(Fences::Wait, keep);
                shared.has_made_room(self.seen.get())
            };
            let retained = shared.options.retain_bytes;
            if settling_makes_room(retained) || (retained > 0 && settling_makes_room(0)) {
                continue;
            }
            asked = asked.saturating_add(1);
            let again = shared.on_pressure.as_ref().is_some_and(|ask| ask(&refusal, asked).is_continue());
            if !again {
                return Err(refusal);
            }
            shared.settle(Fences::Wait);
        }
    }

    fn fit_or_grow(&self, region_bytes: u64) -> Result<(MutexGuard<'a, Books>, Block)> {
        let shared = self.shared;
        let mut books = shared.open_books_to_place(self.label)?;
        if let Some(block) = books.fit(self.request) {
            return Ok((books, block));
        }
        let size = self.region_size(&books, self.request.size, region_bytes)?;
        self.grow(books, size, |align| shared.memory.reserve(size, align), |_| None)
    }

    fn grow_alone(&self) -> Result<(MutexGuard<'a, Books>, Block)> {
        let shared = self.shared;
        let books = shared.open_books(self.label)?;
        let size = self.region_size(&books, self.request.size, 0)?;
        self.grow(books, size, |align| shared.memory.reserve(size, align), |_| None)
    }

    fn grow_in_parts(&self, bytes: u64, parts: &[Part]) -> Result<(MutexGuard<'a, Books>, Block)> {
        let shared = self.shared;
        let books = shared.open_books(self.label)?;
        let size = self.region_size(&books, bytes, 0)?;
        let reserve = |align| shared.memory.parted()?.reserve_range(bytes, align);
        let backed = |raw| Some(Arc::new(Backing::new(Arc::clone(&shared.memory), raw, parts.to_vec())));
        self.grow(books, size, reserve, backed)
    }

    /// Enters a new region of `size` bytes, and takes a block of it.
    fn grow(
        &self,
        mut books: MutexGuard<'a, Books>,
        size: u64,
        reserve: impl FnOnce(u64) -> std::result::Result<RawRegion, MemoryError>,
        backed: impl FnOnce(RawRegion) -> Option<Arc<Backing>>,
    ) -> Result<(MutexGuard<'a, Books>, Block)> {
        let Self { shared, label, request, .. } = *self;
        books.reserved += size;
        books.growing += 1;
        drop(books);
        // The lock is not held while the memory works, which may take long; `reserved` already counts the region, so
        // that the limit holds and the reaper stays (R2).
        let growing = Growing { shared, size };
        let reserved = reserve(request.align.max(shared.options.granule));
        mem::forget(growing);
        let mut books = shared.books();
        books.growing -= 1;
        // Not when it is refused: those who are refused in turn would go on for ever.
        books.made_room += u64::from(reserved.is_ok());
        shared.passed.notify_all();
        match reserved {
            Ok(raw) => {
                let backing = backed(raw);
                // What is rounded up to whole parts belongs to no fragment.
                let capacity = if backing.is_some() { request.size } else { size };
                let space = Space::with_policy(shared.options.policy, capacity, shared.options.granule);
                let gaps = backing.as_ref().map_or(0, |backing| size.saturating_sub(backing.parts_bytes()));
                let region = books.regions.insert(Region { raw, space, reserved: size - gaps, backing });
                books.log_grow(region, size);
                if gaps > 0 {
                    // Nothing comes behind what is in no part: it has gone back already.
                    books.reserved -= gaps;
                    books.log_part_back(region, gaps);
                }
                let broken =
                    || shared.broken_batch(0, "a fresh region does not hold what it was reserved for");
                if let Some(block) = books.fit_in(region, request) {
                    return Ok((books, block));
                }
                if let Some(backing) = books.regions.get(region).and_then(|region| region.backing.clone()) {
                    let parts = backing.leave(0, u64::MAX);
                    books.leave(region, &backing, parts);
                }
                drop(books);
                shared.wake_reaper();
                Err(broken())
            }
            Err(source) => {
                books.reserved -= size;
                self.seen.set(books.made_room);
                Err(Error::OutOfMemory {
                    pool: shared.name.clone(),
                    label: label.into(),
                    requested: size,
                    reserved: books.reserved,
                    source,
                })
            }
        }
    }

    /// How large the next region is: the pool's region size or what is needed, whichever is larger; near the limit, what is
    /// left of it.
    fn region_size(&self, books: &Books, needed: u64, region_bytes: u64) -> Result<u64> {
        let Self { shared, label, .. } = *self;
        let wanted = needed.max(region_bytes);
        let limit = shared.options.limit_bytes;
        let left = limit.unwrap_or(u64::MAX).min(MOST_BYTES).saturating_sub(books.reserved);
        if needed <= left {
            return Ok(wanted.min(left));
        }
        self.seen.set(books.made_room);
        let (pool, label, requested, reserved) = (shared.name.clone(), label.into(), needed, books.reserved);
        Err(match limit {
            Some(limit) => {
                let largest_free = books.largest_free();
                Error::LimitReached { pool, label, requested, largest_free, reserved, limit }
            }
            None => {
                let source = "no address space has so much".into();
                Error::OutOfMemory { pool, label, requested, reserved, source }
            }
        })
    }
}
