//! Shards: books of their own for threads that place at once.
//!
//! ```text
//! pool's books   region |aaaa|span of shard 0      |bbbbbb|span of shard 1      |      |
//! shard 0                     |aa|  |aaaa|   |a|          its lock, its fragments, its retire queue
//! shard 1                                                  |b|    |bb|bbb|
//! ```
//! A shard takes *spans*, blocks of the pool's regions, and places small fragments in them; larger ones are placed by the pool's books, which
//! alone know of regions, the limit and what waits. The shards come when threads have met at the books' lock again and again; a pool that
//! one thread uses has none. A thread keeps to one shard, and moves on when it meets another thread there.
//!
//! A span goes back when the reaper finds it empty. Before a placement is refused the shards dissolve: what is left of their spans becomes
//! blocks of the books, so that what is free there is one with what is free around it, as if there had never been a shard.
//!
//! Locks are taken in the order: shards by their number, then the books.
//!
//! # Invariants
//! - **H1** A fragment that was placed in a shard is in that shard's entries, and its record goes to that shard's queue, until it is taken
//!   back. Where it lies, its home says: in a span of the shard, or, if that was dissolved, in a region.
//! - **H2** A span is a live block of a region, and of no other span.

use std::mem;
use std::ptr::NonNull;
use std::sync::{Arc, PoisonError, TryLockError};

use slab::Slab;
use smallvec::SmallVec;

use crate::core::pool_core::{Block, Books, Entry, Home, Shared};
use crate::core::retire_queue::RetireQueue;
use crate::core::thread_slot::Seat;
use crate::error::{Error, Result};
use crate::memory::RawRegion;
use crate::offsets::{Allocation, Key, Request, Space};
use crate::reclaim::pending::Fate;
use crate::stream::uses::Recorded;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// As many as there are; a thread that no other meets uses one.
const SHARDS: u8 = if cfg!(loom) { 2 } else { 16 };

/// Spans of so many make a region; the largest fragment placed in a span is a quarter of it.
const SPANS_OF_REGION: u64 = 32;

/// Shards another thread has to be met in before a placement waits for its turn.
const MOVES: usize = 4;

/// Ranges of a shard that wait for the memory, and are worth a pass of the reaper.
const MANY: usize = 32;

/// How a pool serves threads that place at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Sharding {
    /// By one set of books until threads have waited for each other again and again, then by shards as well.
    #[default]
    Auto,
    /// By one set of books.
    Never,
    /// By shards from the first placement on: for tests, which need not wait for threads to meet.
    #[doc(hidden)]
    Always,
}

/// One of the shards; its lines of the cache are its own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Shard {
    pub(crate) retired: RetireQueue,
    /// The thread that placed last.
    placer: AtomicUsize,
    local: Mutex<Local>,
}

/// The books of a shard.
#[derive(Debug, Default)]
pub(crate) struct Local {
    pub(crate) spans: Slab<Span>,
    /// H1.
    pub(crate) fragments: Slab<Entry>,
    pub(crate) live: u64,
    /// What the pool's high water has of `live`: as much, or a little more.
    counted: u64,
    /// Ranges whose memory is to be synchronized, and their bytes, as [`Dropped`](crate::reclaim::pending::Dropped) has for the books.
    exposed: Vec<Entry>,
    pub(crate) exposed_bytes: u64,
    /// As [`Books::spent`].
    pub(crate) spent: Vec<Recorded>,
    /// The reaper has been woken for these.
    called: bool,
    /// As [`Books::taken_back`].
    taken_back: bool,
}

#[derive(Debug)]
pub(crate) struct Span {
    /// The block that it is, in the pool's books.
    pub(crate) home: Home,
    raw: RawRegion,
    pub(crate) space: Space,
}

/// A shard that is locked for a placement.
pub(crate) struct OpenShard<'a> {
    shared: &'a Shared,
    pub(crate) number: u8,
    local: MutexGuard<'a, Local>,
}

impl Shard {
    pub(crate) fn local(&self) -> MutexGuard<'_, Local> {
        // As for the books.
        self.local.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_local(&self) -> Option<MutexGuard<'_, Local>> {
        match self.local.try_lock() {
            Ok(local) => Some(local),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

impl Shared {
    /// The shards, if there are any, with their numbers.
    pub(crate) fn shards(&self) -> impl Iterator<Item = (u8, &Shard)> {
        (0..).zip(self.shards.get().into_iter().flatten())
    }

    /// From now on there are shards.
    #[cold]
    pub(crate) fn divide(&self) {
        self.shards.get_or_init(|| (0..SHARDS).map(|_| Shard::default()).collect());
    }

    fn span_bytes(&self) -> u64 {
        let granule = self.options.granule.checked_next_power_of_two().unwrap_or(1);
        (self.options.region_bytes / SPANS_OF_REGION) & !(granule - 1)
    }

    /// Whether shards would be of use.
    pub(crate) fn can_divide(&self) -> bool {
        // Events are in one order, that of the books.
        !self.options.recording && self.options.sharding != Sharding::Never && self.span_bytes() > 0
    }

    /// Locks a shard for a placement, if there are any and they serve such a request, unless the pool is closed. While the lock is held the
    /// pool cannot end. What was dropped and nothing can be using is free in it.
    #[inline]
    pub(crate) fn open_shard(&self, label: &str, request: Request) -> Result<Option<OpenShard<'_>>> {
        let Some(shards) = self.shards.get() else { return Ok(None) };
        // Spans are aligned to granules.
        if request.size > self.span_bytes() / 4 || request.align > self.options.granule {
            return Ok(None);
        }
        self.check_process("place")?;
        let (number, shard, mut local) = self.seat(shards);
        if self.closing.load(Ordering::Acquire) {
            return Err(Error::Closed { pool: self.name.clone(), label: label.into() });
        }
        if self.take_back_in(shard, &mut local) {
            local.taken_back = true;
            if local.has_much_exposed(self.span_bytes()) {
                self.wake_reaper();
            }
        }
        Ok(Some(OpenShard { shared: self, number, local }))
    }

    /// Locks the shard where this thread sits, or one where it meets no other.
    fn seat<'a>(&self, shards: &'a [Shard]) -> (u8, &'a Shard, MutexGuard<'a, Local>) {
        let mut seat = Seat::current();
        let place = |seat: Seat| seat.place % shards.len();
        let mut free = None;
        for _ in 0..MOVES {
            let shard = &shards[place(seat)];
            free = shard.try_local();
            // Where no other thread places it is the reaper, which is quick.
            if free.is_some() || shard.placer.load(Ordering::Relaxed) == seat.thread {
                break;
            }
            seat = seat.move_on();
        }
        let shard = &shards[place(seat)];
        let local = free.unwrap_or_else(|| shard.local());
        if shard.placer.load(Ordering::Relaxed) != seat.thread {
            shard.placer.store(seat.thread, Ordering::Relaxed);
        }
        (place(seat) as u8, shard, local)
    }

    /// As [`take_back`](Self::take_back), of a shard.
    pub(crate) fn take_back_in(&self, shard: &Shard, local: &mut Local) -> bool {
        let mut any = false;
        let mut books = None;
        for record in shard.retired.take_all() {
            any = true;
            let Some(entry) = local.fragments.try_remove(record.slot) else { continue };
            local.live -= entry.bytes;
            match self.fate(&entry, record, &mut local.spent) {
                Fate::Free if entry.is_in_span() => local.free(&entry),
                Fate::Exposed => local.expose(entry),
                // Under the lock of the shard still: no one sees it neither here nor there.
                fate => books.get_or_insert_with(|| self.books()).dispose(entry, fate),
            }
        }
        if let Some(mut books) = books {
            books.taken_back = true;
            drop(books);
            self.wake_reaper();
        }
        any
    }

    /// How many ranges of each shard wait until the memory has been synchronized.
    pub(crate) fn exposed_in_shards(&self) -> SmallVec<[usize; 1]> {
        let count = |(_, shard): (u8, &Shard)| {
            let mut local = shard.local();
            local.called = false;
            local.exposed.len()
        };
        self.shards().map(count).collect()
    }

    /// Frees so many ranges of each shard after the memory was synchronized, or counts them as lost if it was not.
    pub(crate) fn free_exposed_in_shards(&self, counts: &[usize], synchronized: bool) {
        for ((_, shard), &count) in self.shards().zip(counts).filter(|(_, count)| **count > 0) {
            let mut local = shard.local();
            let mut books = None;
            let exposed: Vec<Entry> = local.exposed.drain(..count).collect();
            for entry in exposed {
                local.exposed_bytes -= entry.bytes;
                match synchronized {
                    true if entry.is_in_span() => local.free(&entry),
                    true => books.get_or_insert_with(|| self.books()).free(&entry),
                    false => books.get_or_insert_with(|| self.books()).lose(entry.bytes),
                }
            }
        }
    }

    /// Gives the shards' empty spans back to their regions.
    pub(crate) fn give_back_spans(&self) {
        for (_, shard) in self.shards() {
            let mut local = shard.local();
            let empty: Vec<usize> =
                local.spans.iter().filter(|(_, span)| span.space.is_empty()).map(|(at, _)| at).collect();
            if empty.is_empty() && local.counted == local.live {
                continue;
            }
            let mut books = self.books();
            for span in empty.into_iter().filter_map(|at| local.spans.try_remove(at)) {
                books.give_back(&span.home, span.raw.bytes);
            }
            let live = local.live;
            local.count(&mut books, live);
        }
    }

    /// Makes all that lies in the shards' spans blocks of the books, and what was dropped there goes back, or waits. For a placement that
    /// has found no room, and for whoever wants to see all that waits.
    pub(crate) fn dissolve_shards(&self) {
        if self.is_forked_child() {
            return;
        }
        for (number, shard) in self.shards() {
            let mut local = shard.local();
            local.taken_back |= self.take_back_in(shard, &mut local);
            if !local.spans.is_empty() {
                local.dissolve(number, &mut self.books());
            }
        }
    }

    /// Whether the reaper may sleep as far as the shards go: marks their queues.
    pub(crate) fn shards_fall_asleep(&self) -> bool {
        self.shards().all(|(_, shard)| {
            let mut local = shard.local();
            !mem::take(&mut local.taken_back) && local.exposed.is_empty() && shard.retired.fall_asleep()
        })
    }
}

impl OpenShard<'_> {
    /// A block in the first span that has room, or in a new one. `None` where the regions have no span to spare.
    #[inline]
    pub(crate) fn fit(&mut self, request: Request) -> Option<Block> {
        self.local.fit(self.number, request).or_else(|| {
            self.take_span()?;
            self.local.fit(self.number, request)
        })
    }

    #[cold]
    fn take_span(&mut self) -> Option<()> {
        let shared = self.shared;
        let mut books = shared.books();
        shared.take_back_to_place(&mut books);
        let bytes = shared.span_bytes();
        // Where room becomes scarce, what is free is kept together.
        if books.free_bytes() / 4 < bytes {
            return None;
        }
        let Block { home, address } = books.fit(Request::new(bytes, shared.options.granule))?;
        let space = Space::with_policy(shared.options.policy, bytes, shared.options.granule);
        self.local.spans.insert(Span { home, raw: RawRegion { base: address, bytes }, space });
        Some(())
    }

    /// Enters a live fragment and returns its slot.
    #[inline]
    pub(crate) fn enter(&mut self, label: Arc<str>, bytes: u64, home: Home) -> usize {
        let local = &mut *self.local;
        local.live += bytes;
        let band = self.shared.span_bytes();
        if local.live > local.counted || local.counted - local.live > band {
            local.count(&mut self.shared.books(), local.live + band / 4);
        }
        local.fragments.insert(Entry { label, bytes, number: 0, home: Some(home) })
    }
}

impl Local {
    #[inline]
    fn fit(&mut self, shard: u8, request: Request) -> Option<Block> {
        self.spans.iter_mut().find_map(|(region, span)| {
            let Allocation { offset, key } = span.space.allocate(request)?;
            Some(Block {
                home: Home { shard: Some(shard), region, offset, key },
                address: span.address(offset),
            })
        })
    }

    /// Returns the range of an entry, which lies in a span and is in the books no more, to the span's free blocks.
    pub(crate) fn free(&mut self, entry: &Entry) {
        let Some(home) = entry.home else { return };
        if let Some(span) = self.spans.get_mut(home.region) {
            let freed = span.space.free(home.key);
            debug_assert!(freed.is_ok());
        }
    }

    /// A range is to wait until the memory has been synchronized.
    fn expose(&mut self, entry: Entry) {
        self.exposed_bytes += entry.bytes;
        self.exposed.push(entry);
    }

    /// Whether so much waits that the reaper should come now; it comes by itself soon. Once for each time that it comes.
    fn has_much_exposed(&mut self, span: u64) -> bool {
        let much = self.exposed_bytes > span / 4 || self.exposed.len() > MANY;
        much && !mem::replace(&mut self.called, true)
    }

    /// Tells the pool's high water how much is live here.
    fn count(&mut self, books: &mut Books, counted: u64) {
        books.live_in_shards = books.live_in_shards - self.counted + counted;
        self.counted = counted;
        books.raise_high_water();
    }

    /// Makes the spans' blocks blocks of the books.
    fn dissolve(&mut self, shard: u8, books: &mut Books) {
        let spans: Vec<(usize, Vec<(u64, Key)>)> =
            self.spans.iter().filter_map(|(at, span)| Some((at, books.adopt(span)?))).collect();
        let moved = |entry: &mut Entry| {
            let Some(home) = entry.home.filter(|home| home.shard == Some(shard)) else { return };
            let Ok(at) = spans.binary_search_by_key(&home.region, |(at, _)| *at) else { return };
            let Some(span) = self.spans.get(home.region) else { return };
            let blocks = &spans[at].1;
            if let Ok(block) = blocks.binary_search_by_key(&home.offset, |(offset, _)| *offset) {
                let (region, offset) = (span.home.region, span.home.offset + home.offset);
                entry.home = Some(Home { shard: None, region, offset, key: blocks[block].1 });
            }
        };
        self.fragments.iter_mut().map(|(_, entry)| entry).chain(&mut self.exposed).for_each(moved);
        books.dropped.entries_mut().for_each(moved);
        for (at, _) in spans {
            self.spans.try_remove(at);
        }
    }
}

impl Span {
    /// The address at an offset, which lies within the span.
    fn address(&self, offset: u64) -> NonNull<u8> {
        // SAFETY: M1, H2: the callers' offsets are those of blocks of the space, which spans the span's bytes, and they lie in its region.
        unsafe { self.raw.base.add(offset as usize) }
    }
}

impl Books {
    /// Divides a span's block as the span is divided, and frees what is free there. Returns the offsets, in the span, and the keys of
    /// the live ones; `None` where the region cannot name so many.
    fn adopt(&mut self, span: &Span) -> Option<Vec<(u64, Key)>> {
        let region = self.regions.get_mut(span.home.region)?;
        let offsets: Vec<u64> = span.space.blocks().map(|block| block.offset).collect();
        let keys = region.space.carve(span.home.key, &offsets).ok()?;
        let mut live = Vec::with_capacity(span.space.live_blocks());
        for (block, key) in span.space.blocks().zip(keys) {
            if block.key.is_some() {
                live.push((block.offset, key));
            } else {
                let freed = region.space.free(key);
                debug_assert!(freed.is_ok());
            }
        }
        self.made_room += 1;
        Some(live)
    }
}
