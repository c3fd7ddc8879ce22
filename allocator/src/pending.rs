//! Ranges that were dropped and are not free yet: what their uses on streams have to do with it.
//!
//! ```text
//! drop ─> retire queue ─> exposed ── the memory is synchronized ──┐
//!                    └──> pending ── its fences have passed ──────┼─> free
//!                            └────── Pool::place_on: in use again on a stream that comes after the fences
//! ```
//! Whoever holds the lock of the books sorts the queue; only the reaper synchronizes, asks fences, and frees.

use std::ptr::NonNull;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::fence::OrderedStream;
use crate::fragment::Fragment;
use crate::memory::MemoryError;
use crate::offsets::Request;
use crate::shared::{Block, Books, Entry, Home, Shared};
use crate::sync::MutexGuard;
use crate::uses::{Recorded, Uses};

/// What has been dropped.
#[derive(Debug, Default)]
pub(crate) struct Dropped {
    /// Ranges whose memory is to be synchronized.
    pub(crate) exposed: Vec<Entry>,
    /// Ranges that wait for fences.
    pending: Vec<Pending>,
    /// Bytes in both, and in what the reaper is dealing with.
    pub(crate) bytes: u64,
    last: u64,
}

/// A dropped range that waits for fences.
#[derive(Debug)]
struct Pending {
    /// Never that of another.
    number: u64,
    entry: Entry,
    uses: Vec<Recorded>,
}

/// Fences to ask or wait for, by the number of what waits for them.
pub(crate) type Waiting = Vec<(u64, Vec<Recorded>)>;

impl Dropped {
    fn wait_for(&mut self, entry: Entry, uses: Vec<Recorded>) {
        self.last += 1;
        self.pending.push(Pending { number: self.last, entry, uses });
    }

    /// What waited under this number.
    fn stop_waiting(&mut self, number: u64) -> Option<Entry> {
        let index = self.pending.iter().position(|pending| pending.number == number)?;
        Some(self.pending.swap_remove(index).entry)
    }

    pub(crate) fn is_waiting(&self) -> bool {
        !self.pending.is_empty()
    }

    /// What is waited for.
    pub(crate) fn waiting(&self) -> Waiting {
        self.pending.iter().map(|pending| (pending.number, pending.uses.clone())).collect()
    }

    /// The smallest range that holds the request; of those whose uses were on this stream alone, if there is one.
    fn take(
        &mut self,
        request: Request,
        stream: u64,
        address: impl Fn(Home) -> Option<NonNull<u8>>,
    ) -> Option<Pending> {
        let fits = |pending: &&Pending| {
            let aligned = |at: NonNull<u8>| (at.as_ptr() as u64).is_multiple_of(request.align);
            pending.entry.bytes >= request.size && pending.entry.home.and_then(&address).is_some_and(aligned)
        };
        let order =
            |pending: &&Pending| (pending.uses.iter().any(|use_| use_.stream != stream), pending.entry.bytes);
        let best = self.pending.iter().filter(fits).min_by_key(order)?.number;
        let index = self.pending.iter().position(|pending| pending.number == best)?;
        Some(self.pending.swap_remove(index))
    }
}

impl Shared {
    /// Sorts what has been retired since the last time, and says whether there was anything. R1: the records go here.
    pub(crate) fn sort_retired(&self, books: &mut Books) -> bool {
        let mut any = false;
        let mut numbers = Vec::new();
        let mut free = Vec::new();
        for record in self.retired.take_all() {
            any = true;
            let Some(entry) = books.fragments.try_remove(record.slot) else { continue };
            books.live -= entry.bytes;
            if self.options.recording {
                numbers.push(entry.number);
            }
            let (exposed, uses) = record.uses.into_parts();
            match entry.home {
                // It lies nowhere.
                None => free.push(entry),
                Some(_) if !exposed && uses.is_empty() => free.push(entry),
                Some(_) if !exposed => {
                    books.dropped.bytes += entry.bytes;
                    books.dropped.wait_for(entry, uses);
                }
                Some(_) => {
                    books.dropped.bytes += entry.bytes;
                    books.dropped.exposed.push(entry);
                }
            }
        }
        books.log_retire(numbers);
        free.iter().for_each(|entry| books.free(entry));
        books.log_gone();
        any
    }

    /// Frees the ranges whose fences have passed; waits for all of them if need be.
    pub(crate) fn free_passed(&self, wait: bool) {
        // Without the lock: fences may belong to a driver.
        let waiting = self.books().dropped.waiting();
        if waiting.is_empty() {
            return;
        }
        let ended = |use_: &Recorded| match wait {
            true => use_.fence.wait().map(|()| true),
            false => use_.fence.has_passed(),
        };
        let (mut passed, mut failed) = (Vec::new(), Vec::new());
        for (number, uses) in waiting {
            let all: Result<Vec<bool>, MemoryError> = uses.iter().map(ended).collect();
            match all.map(|all| all.into_iter().all(|ended| ended)) {
                Ok(true) => passed.push(number),
                Ok(false) => {}
                Err(error) => failed.push((number, error)),
            }
        }
        let mut books = self.books();
        for number in passed {
            // One that is not there has been taken for another use.
            let Some(entry) = books.dropped.stop_waiting(number) else { continue };
            books.dropped.bytes -= entry.bytes;
            books.free(&entry);
        }
        books.log_gone();
        // Those whose fences cannot be asked are as those whose uses are not known.
        for (number, _) in &failed {
            let entry = books.dropped.stop_waiting(*number);
            books.dropped.exposed.extend(entry);
        }
        drop(books);
        for (_, error) in failed {
            tracing::warn!(pool = self.name, %error, "a fence cannot be asked: the memory is synchronized instead");
        }
    }

    /// As [`Pool::place_on`](crate::Pool::place_on).
    pub(crate) fn place_on(
        self: &Arc<Self>,
        label: Arc<str>,
        request: Request,
        stream: &dyn OrderedStream,
    ) -> Result<Fragment> {
        stream.check().map_err(|source| self.refused(request, source))?;
        let mut books = self.open_books(&label)?;
        self.sort_retired(&mut books);
        if let Some(block) = books.fit(request) {
            return Ok(self.enter(books, label, request, block, Uses::default()));
        }
        let Books { dropped, regions, .. } = &mut *books;
        // Of a region that is backed in parts, a range is not used again.
        let whole = |home: Home| regions.get(home.region).filter(|region| region.backing.is_none());
        let address = |home: Home| Some(whole(home)?.address(home.offset));
        let Some(pending) = dropped.take(request, stream.id(), address) else {
            drop(books);
            self.wake_reaper();
            let (books, block) = self.take_block(&label, request, self.options.region_bytes)?;
            return Ok(self.enter(books, label, request, block, Uses::default()));
        };
        drop(books);
        // Whatever else was sorted is the reaper's to see to.
        self.wake_reaper();
        let Pending { entry, uses, .. } = pending;
        let after = self.come_after(stream, &uses);
        let mut books = self.books();
        let split = after.and_then(|after| {
            let split = books.split(&entry, request, self.options.granule);
            split.map(|split| (after, split)).map_err(|problem| self.broken_batch(1, problem))
        });
        match split {
            Ok((after, (block, left))) => {
                books.dropped.bytes -= entry.bytes;
                // In the log it goes, and comes anew as what it was divided into.
                books.log_reap(entry.number, true);
                books.log_gone();
                if let Some(mut left) = left {
                    books.log_left(&mut left);
                    books.dropped.bytes += left.bytes;
                    books.dropped.wait_for(left, uses);
                }
                Ok(self.enter(books, label, request, block, Uses::new(false, after)))
            }
            Err(error) => {
                books.dropped.wait_for(entry, uses);
                drop(books);
                self.wake_reaper();
                Err(error)
            }
        }
    }

    /// Makes a stream wait for the uses on others, and returns what then stands for all of them.
    fn come_after(&self, stream: &dyn OrderedStream, uses: &[Recorded]) -> Result<Vec<Recorded>> {
        let id = stream.id();
        let refused = |source| self.refused(Request::new(0, 1), source);
        if uses.iter().all(|use_| use_.stream == id) {
            return Ok(uses.to_vec());
        }
        for use_ in uses.iter().filter(|use_| use_.stream != id) {
            stream.wait_for(&use_.fence).map_err(refused)?;
        }
        // By O3 and O2 it passes after all of them.
        Ok(vec![Recorded { stream: id, fence: stream.record().map_err(refused)? }])
    }

    fn refused(&self, request: Request, source: MemoryError) -> Error {
        Error::Stream { pool: self.name.clone(), bytes: request.size, source }
    }

    fn enter(
        self: &Arc<Self>,
        mut books: MutexGuard<'_, Books>,
        label: Arc<str>,
        request: Request,
        block: Block,
        uses: Uses,
    ) -> Fragment {
        let slot = books.enter(label, request.size, Some(block.home));
        books.log_alloc(slot, request.align);
        Fragment::new(block.address, request.size, Arc::clone(self), slot, uses)
    }
}
