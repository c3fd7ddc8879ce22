//! Ranges that were dropped and are not free yet: what their uses on streams have to do with it.
//!
//! ```text
//! drop ─> retire queue ─> exposed ── the memory is synchronized ──┐
//!                    └──> pending ── its fences have passed ──────┼─> free
//!                            └────── Pool::place_on: in use again on a stream that comes after the fences
//! ```
//! Whoever holds the lock of the books, for a placement or as the reaper, sorts the queue and frees what nothing can be using; only
//! the reaper synchronizes and asks fences.

use std::mem;
use std::ptr::NonNull;

use crate::core::pool_core::{Books, Entry, Home, Shared};
use crate::fragment::owned::Record;
use crate::memory::MemoryError;
use crate::offsets::Request;
use crate::stream::uses::Recorded;

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
pub(crate) struct Pending {
    /// Never that of another.
    number: u64,
    pub(crate) entry: Entry,
    pub(crate) uses: Vec<Recorded>,
}

/// Fences to ask or wait for, by the number of what waits for them.
pub(crate) type Waiting = Vec<(u64, Vec<Recorded>)>;

/// What becomes of a range that was dropped.
pub(crate) enum Fate {
    /// Nothing can be using it.
    Free,
    /// The memory is to be synchronized.
    Exposed,
    /// These fences are to pass.
    Waits(Vec<Recorded>),
}

impl Dropped {
    /// A range is to wait until the memory has been synchronized.
    fn expose(&mut self, entry: Entry) {
        self.bytes += entry.bytes;
        self.exposed.push(entry);
    }

    /// A range is to wait for fences.
    pub(crate) fn wait_for(&mut self, entry: Entry, uses: Vec<Recorded>) {
        self.bytes += entry.bytes;
        self.last += 1;
        self.pending.push(Pending { number: self.last, entry, uses });
    }

    /// What waited under this number.
    fn stop_waiting(&mut self, number: u64) -> Option<Pending> {
        let index = self.pending.iter().position(|pending| pending.number == number)?;
        Some(self.pending.swap_remove(index))
    }

    pub(crate) fn is_waiting(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Where all of it lies.
    pub(crate) fn entries_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.exposed.iter_mut().chain(self.pending.iter_mut().map(|pending| &mut pending.entry))
    }

    /// What is waited for.
    pub(crate) fn waiting(&self) -> Waiting {
        self.pending.iter().map(|pending| (pending.number, pending.uses.clone())).collect()
    }

    /// The smallest range that holds the request; of those whose uses were on this stream alone, if there is one.
    pub(crate) fn take(
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

impl Books {
    /// Does with a range that was dropped, and is in no one's entries any more, what is to become of it.
    pub(crate) fn dispose(&mut self, entry: Entry, fate: Fate) {
        match fate {
            Fate::Free => self.free(&entry),
            Fate::Exposed => self.dropped.expose(entry),
            Fate::Waits(uses) => self.dropped.wait_for(entry, uses),
        }
    }
}

impl Shared {
    /// Takes back what has been retired since the last time: what nothing can be using is free, the rest is sorted by what it waits
    /// for. Says whether there was anything. R1: the records go here.
    pub(crate) fn take_back(&self, books: &mut Books) -> bool {
        let mut any = false;
        let mut numbers = Vec::new();
        // In the log all are retired before one is free.
        let mut free = Vec::new();
        for record in self.retired.0.take_all() {
            any = true;
            let Some(entry) = books.fragments.try_remove(record.slot) else { continue };
            books.live -= entry.bytes;
            if self.options.recording {
                numbers.push(entry.number);
            }
            match self.fate(&entry, record, &mut books.spent) {
                Fate::Free if self.options.recording => free.push(entry),
                fate => books.dispose(entry, fate),
            }
        }
        books.log_retire(numbers);
        free.iter().for_each(|entry| books.free(entry));
        books.log_gone();
        any
    }

    /// As [`take_back`](Self::take_back), before a placement: what it gives back by itself it can use at once, and the reaper is no
    /// bottleneck.
    pub(crate) fn take_back_to_place(&self, books: &mut Books) {
        if !self.take_back(books) {
            return;
        }
        books.taken_back = true;
        if !books.dropped.exposed.is_empty() {
            self.wake_reaper();
        }
    }

    /// What is to be waited for before the range of a record that was retired is free. Fences that are not are `spent`.
    pub(crate) fn fate(&self, entry: &Entry, record: Record, spent: &mut Vec<Recorded>) -> Fate {
        let (exposed, mut uses) = record.uses.into_parts();
        let fate = match exposed && self.waits_for_devices {
            // One without a home lies nowhere.
            _ if entry.home.is_none() => Fate::Free,
            true => Fate::Exposed,
            false if uses.is_empty() => Fate::Free,
            false => return Fate::Waits(uses),
        };
        spent.append(&mut uses);
        fate
    }

    /// Drops the fences that no one asks any more.
    pub(crate) fn drop_spent(&self) {
        let mut spent = mem::take(&mut self.books().spent);
        for (_, shard) in self.shards() {
            spent.append(&mut shard.local().spent);
        }
        // Without a lock: fences may belong to a driver.
        drop(spent);
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
        let mut whole = self.whole();
        for number in passed {
            // One that is not there has been taken for another use.
            let Some(Pending { entry, uses, .. }) = whole.books.dropped.stop_waiting(number) else {
                continue;
            };
            whole.books.dropped.bytes -= entry.bytes;
            whole.free(&entry);
            whole.books.spent.extend(uses);
        }
        let mut books = whole.into_books();
        books.log_gone();
        // Those whose fences cannot be asked are as those whose uses are not known.
        for (number, _) in &failed {
            let Some(Pending { entry, uses, .. }) = books.dropped.stop_waiting(*number) else { continue };
            books.dropped.exposed.push(entry);
            books.spent.extend(uses);
        }
        drop(books);
        for (_, error) in failed {
            tracing::warn!(pool = self.name, %error, "a fence cannot be asked: the memory is synchronized instead");
        }
    }
}
