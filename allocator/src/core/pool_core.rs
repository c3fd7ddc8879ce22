//! What a pool, its fragments and its reaper share: the books (regions and live fragments) behind one lock, the retire
//! queue, and the flags that the drops use without it. Threads that place at once have books beside these: see `shard`.

use std::fmt;
use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock, PoisonError};

use slab::Slab;

use crate::backing::Backing;
use crate::core::retire_queue::RetireQueue;
use crate::core::shard::{Shard, Sharding};
use crate::core::thread_slot::{Crowd, Seat};
use crate::error::{Error, Result};
use crate::events::Recorder;
use crate::fork::Process;
use crate::fragment::owned::{Fragment, Record};
use crate::memory::{Memory, MemoryId, RawRegion};
use crate::offsets::{Allocation, Key, Policy, Request, Space, align_up};
use crate::reclaim::pending::Dropped;
use crate::stream::uses::Recorded;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Condvar, Mutex, MutexGuard, Parker};

/// How a pool grows and shrinks; see the builder's methods.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    pub(crate) limit_bytes: Option<u64>,
    pub(crate) region_bytes: u64,
    pub(crate) max_region_bytes: Option<NonZeroU64>,
    pub(crate) retain_bytes: u64,
    pub(crate) granule: u64,
    pub(crate) policy: Policy,
    pub(crate) sharding: Sharding,
    /// The books have a recorder.
    pub(crate) recording: bool,
}

/// How the regions of planned batches are backed.
#[derive(Debug, Clone)]
pub(crate) enum BatchRegions {
    /// As other regions are, with the reason where parts were asked for.
    Whole(Option<Arc<str>>),
    /// In parts of so many bytes, or a multiple of it.
    Parts(u64),
}

/// What becomes of ranges that wait for fences when a pool settles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fences {
    /// They are waited for.
    Wait,
    /// They stay pending.
    Leave,
}

/// Asked when a placement is refused, with the refusal and how often it has been asked for this placement: whether it has made
/// room, so that to try again makes sense.
pub(crate) type OnPressure = dyn Fn(&Error, u32) -> ControlFlow<()> + Send + Sync;

pub(crate) struct Shared {
    pub(crate) memory: Arc<dyn Memory>,
    /// Which memory it is, whether devices work on it, and whether the CPU can access it: the answers it gave when the pool was built (I7).
    pub(crate) memory_id: MemoryId,
    pub(crate) waits_for_devices: bool,
    pub(crate) is_host_accessible: bool,
    pub(crate) name: String,
    pub(crate) options: Options,
    pub(crate) on_pressure: Option<Box<OnPressure>>,
    pub(crate) batch_regions: BatchRegions,
    books: Apart<Mutex<Books>>,
    /// Notified after each pass of the reaper.
    pub(crate) passed: Condvar,
    /// Of what is in `books`.
    pub(crate) retired: Apart<RetireQueue>,
    /// Books of their own for threads that place at once, once there are such.
    pub(crate) shards: OnceLock<Box<[Shard]>>,
    /// Ranges that are never given back: a use of theirs could not be recorded. They keep the pool, and its reaper.
    pub(crate) kept: Mutex<Vec<Fragment>>,
    /// Set once: no new placements, and the reaper ends when nothing is left (R2).
    pub(crate) closing: AtomicBool,
    pub(crate) reaper: Arc<Parker>,
    /// That in which the reaper runs.
    pub(crate) process: Process,
}

/// In lines of the cache of its own: what all threads read is not beside what some write.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Apart<T>(pub(crate) T);

/// The regions and the live fragments. `reserved`, `live` and the slabs always agree, except that a region being
/// reserved or released is in `reserved` but in no slab.
#[derive(Debug, Default)]
pub(crate) struct Books {
    pub(crate) regions: Slab<Region>,
    pub(crate) fragments: Slab<Entry>,
    /// What was dropped and is not free yet.
    pub(crate) dropped: Dropped,
    /// Fences that no one asks any more. To drop one is others' code: the reaper does it, without a lock.
    pub(crate) spent: Vec<Recorded>,
    /// Parts of regions that hold no fragment any more: the region, the part and its bytes, and what is behind the region.
    pub(crate) leaving: Vec<(usize, usize, Arc<Backing>)>,
    pub(crate) reserved: u64,
    /// In the fragments of these books.
    pub(crate) live: u64,
    /// In those of the shards, as far as they have told, and they tell of more rather than of less.
    pub(crate) live_in_shards: u64,
    pub(crate) high_water: u64,
    /// Counts what makes room for a placement: frees, releases, new regions.
    pub(crate) made_room: u64,
    /// Regions that are being reserved.
    pub(crate) growing: usize,
    /// Bytes that can never be used again: their memory failed to synchronize or to release.
    pub(crate) lost: u64,
    /// Passes asked for and passes made: see [`Shared::settle`].
    pub(crate) asked: u64,
    pub(crate) made: u64,
    /// The last pass asked for that is to wait for fences.
    pub(crate) patient: u64,
    /// How many bytes of empty regions the passes asked for may keep.
    pub(crate) keep: u64,
    /// How often threads meet here.
    pub(crate) crowd: Crowd,
    /// Something was taken back by a placement since the reaper looked, which may be for it to see to.
    pub(crate) taken_back: bool,
    /// The reaper has ended: nothing is left, or it has panicked.
    pub(crate) ended: bool,
    /// Enters the changes in the event log, if there is one.
    pub(crate) recorder: Option<Box<Recorder>>,
}

#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) raw: RawRegion,
    pub(crate) space: Space,
    /// What of it counts as reserved, in bytes: all but the parts that were given back.
    pub(crate) reserved: u64,
    /// Where it is backed in parts; nothing else is placed there then.
    pub(crate) backing: Option<Arc<Backing>>,
}

impl Region {
    /// A block of this region, which has this number.
    fn fit(&mut self, number: usize, request: Request) -> Option<Block> {
        // Offsets are aligned relative to the region's base, so the base has to be aligned as well.
        if (self.raw.base.as_ptr() as u64) & request.align.wrapping_sub(1) != 0 {
            return None;
        }
        let Allocation { offset, key } = self.space.allocate(request)?;
        let home = Home { shard: None, region: number, offset, key };
        Some(Block { home, address: self.address(offset) })
    }

    /// The address at an offset, which lies within the region.
    pub(crate) fn address(&self, offset: u64) -> NonNull<u8> {
        // SAFETY: M1: the callers' offsets are those of blocks of the space, which spans the region's bytes.
        unsafe { self.raw.base.add(offset as usize) }
    }
}

/// A live fragment in the books.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) label: Arc<str>,
    pub(crate) bytes: u64,
    /// Its number in the event log, if there is one.
    pub(crate) number: u64,
    /// Where it lies; an empty fragment lies nowhere.
    pub(crate) home: Option<Home>,
}

impl Entry {
    pub(crate) fn is_in_span(&self) -> bool {
        self.home.is_some_and(|home| home.shard.is_some())
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Home {
    /// Where `region` is a span of a shard: which shard.
    pub(crate) shard: Option<u8>,
    pub(crate) region: usize,
    pub(crate) offset: u64,
    pub(crate) key: Key,
}

/// A block taken from a region and not yet entered as fragments.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block {
    pub(crate) home: Home,
    pub(crate) address: NonNull<u8>,
}

impl Block {
    /// The fragment at `offset` of the block, as it was carved under `key`: its address and its home.
    pub(crate) fn part(&self, offset: u64, key: Key) -> (NonNull<u8>, Option<Home>) {
        // SAFETY: the caller checked that the fragment lies within the block, which lies within its region (M1).
        let address = unsafe { self.address.add(offset as usize) };
        (address, Some(Home { offset: self.home.offset + offset, key, ..self.home }))
    }
}

impl Shared {
    pub(crate) fn new(memory: Arc<dyn Memory>, name: String, options: Options) -> Self {
        Self {
            memory_id: memory.id(),
            waits_for_devices: memory.is_used_by_devices(),
            is_host_accessible: memory.is_host_accessible(),
            memory,
            name,
            options,
            on_pressure: None,
            batch_regions: BatchRegions::Whole(None),
            books: Apart::default(),
            passed: Condvar::new(),
            retired: Apart::default(),
            shards: OnceLock::new(),
            kept: Mutex::default(),
            closing: AtomicBool::new(false),
            reaper: Arc::default(),
            process: Process::current(),
        }
    }

    pub(crate) fn books(&self) -> MutexGuard<'_, Books> {
        // No code of ours panics while it holds the lock, and the books are changed by whole steps.
        self.books.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn books_mut(&mut self) -> &mut Books {
        self.books.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this is a forked child of the process that made the pool: there is no reaper, and locks may stay locked, so nothing is
    /// locked, waited for or given back.
    #[inline]
    pub(crate) fn is_forked_child(&self) -> bool {
        !self.process.is_current()
    }

    /// Refuses an operation in a forked child.
    #[inline]
    pub(crate) fn check_process(&self, operation: &'static str) -> Result<()> {
        if self.is_forked_child() { Err(self.forked(operation)) } else { Ok(()) }
    }

    #[cold]
    fn forked(&self, operation: &'static str) -> Error {
        Error::Forked { pool: self.name.clone(), operation }
    }

    /// Leaves a record of a pool to be given back, in the queue of the shard in whose books it is (H1). The pool may be gone while
    /// this still returns, so it comes by its address, as the reaper in [`RetireQueue::push`].
    ///
    /// # Safety
    /// As `push`. The record is one of this pool.
    pub(crate) unsafe fn retire(pool: NonNull<Self>, shard: Option<u8>, record: NonNull<Record>) {
        // SAFETY: R3: the pool lives until the push, and is not touched after it.
        let shared = unsafe { pool.as_ref() };
        if shared.is_forked_child() {
            return;
        }
        let queue = match (shard, shared.shards.get()) {
            (Some(shard), Some(shards)) => &shards[shard as usize].retired,
            _ => &shared.retired.0,
        };
        // SAFETY: passed on.
        if let Some(sleeper) = unsafe { queue.push(record, &raw const shared.reaper) } {
            sleeper.wake();
        }
    }

    pub(crate) fn wake_reaper(&self) {
        self.reaper.wake();
    }

    /// Waits until the reaper has dealt with all that was retired before this call, and has released every region
    /// that was empty then. What waits for fences is waited for, or stays as it is.
    pub(crate) fn settle(&self, fences: Fences) {
        self.settle_and_keep(fences, 0);
    }

    /// As [`settle`](Self::settle), but that so many bytes of empty regions may stay.
    pub(crate) fn settle_and_keep(&self, fences: Fences, keep: u64) {
        // A fence or a memory that the reaper calls would wait for itself.
        if self.is_forked_child() || self.reaper.is_here() {
            return;
        }
        let mut books = self.books();
        books.asked += 1;
        let ticket = books.asked;
        // Whoever asks meanwhile may want all of it.
        books.keep = if books.made + 1 == ticket { keep } else { keep.min(books.keep) };
        if fences == Fences::Wait {
            books.patient = ticket;
        }
        self.wake_reaper();
        while books.made < ticket && !books.ended {
            books = self.passed.wait(books).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Locks the books for a placement, unless the pool is closed. While the lock is held the pool cannot end.
    pub(crate) fn open_books(&self, label: &str) -> Result<MutexGuard<'_, Books>> {
        self.check_process("place")?;
        let books = self.books();
        if self.closing.load(Ordering::Acquire) {
            return Err(Error::Closed { pool: self.name.clone(), label: label.into() });
        }
        Ok(books)
    }

    /// As [`open_books`](Self::open_books), for a single placement: where threads keep meeting here, there are shards from then on.
    pub(crate) fn open_books_to_place(&self, label: &str) -> Result<MutexGuard<'_, Books>> {
        self.check_process("place")?;
        let free = self.books.0.try_lock().ok();
        let waited = free.is_none();
        let mut books = free.unwrap_or_else(|| self.books());
        if self.closing.load(Ordering::Acquire) {
            return Err(Error::Closed { pool: self.name.clone(), label: label.into() });
        }
        if books.crowd.place(Seat::current().thread, waited) && self.can_divide() {
            self.divide();
        }
        self.take_back_to_place(&mut books);
        Ok(books)
    }

    pub(crate) fn broken_batch(&self, fragments: usize, problem: impl Into<String>) -> Error {
        Error::Batch { pool: self.name.clone(), fragments, problem: problem.into() }
    }
}

impl Books {
    /// A block in the first region that has room for it, by the pool's policy within the region.
    pub(crate) fn fit(&mut self, request: Request) -> Option<Block> {
        let mut whole = self.regions.iter_mut().filter(|(_, region)| region.backing.is_none());
        whole.find_map(|(number, region)| region.fit(number, request))
    }

    pub(crate) fn fit_in(&mut self, region: usize, request: Request) -> Option<Block> {
        self.regions.get_mut(region)?.fit(region, request)
    }

    /// Returns the range of an entry, which is in the books no more, to its region's free blocks. `log_gone` follows under the
    /// same lock.
    pub(crate) fn free(&mut self, entry: &Entry) {
        self.log_reap(entry.number, true);
        if let Some(home) = &entry.home {
            self.give_back(home, entry.bytes);
        }
    }

    /// Frees a block that is no one's, of so many bytes.
    pub(crate) fn give_back(&mut self, home: &Home, bytes: u64) {
        self.made_room += 1;
        if let Some(region) = self.regions.get_mut(home.region) {
            // Each slot is entered with a key of its own and removed once, so the key is not stale.
            let freed = region.space.free(home.key);
            debug_assert!(freed.is_ok());
            if let Some(backing) = region.backing.clone() {
                let left = backing.leave(home.offset, bytes);
                self.leave(home.region, &backing, left);
            }
        }
    }

    /// Parts of a region in which no fragment lies any more are on their way back, which the reaper takes.
    pub(crate) fn leave(&mut self, region: usize, backing: &Arc<Backing>, parts: Vec<usize>) {
        self.leaving.extend(parts.into_iter().map(|part| (region, part, Arc::clone(backing))));
    }

    /// Takes what a request needs of the range of an entry that is at least as large, and returns it, and the entry of
    /// what is left.
    pub(crate) fn split(
        &mut self,
        entry: &Entry,
        request: Request,
        granule: u64,
    ) -> std::result::Result<(Block, Option<Entry>), String> {
        let home = entry.home.ok_or("it lies nowhere")?;
        let region = self.regions.get_mut(home.region).ok_or("its region is gone")?;
        let address = region.address(home.offset);
        let taken = align_up(request.size, granule).filter(|&taken| taken < entry.bytes);
        let Some(taken) = taken else { return Ok((Block { home, address }, None)) };
        let keys = region.space.carve(home.key, &[0, taken]).map_err(|error| error.to_string())?;
        let [key, rest] = keys[..] else { return Err("it was not cut in two".into()) };
        let rest = Home { offset: home.offset + taken, key: rest, ..home };
        let (label, bytes) = (Arc::clone(&entry.label), entry.bytes - taken);
        let left = Entry { label, bytes, number: 0, home: Some(rest) };
        Ok((Block { home: Home { key, ..home }, address }, Some(left)))
    }

    /// Cuts a block into consecutive parts that start at `offsets`.
    pub(crate) fn carve(&mut self, block: &Block, offsets: &[u64]) -> std::result::Result<Vec<Key>, String> {
        let region = self.regions.get_mut(block.home.region).ok_or("its region is gone")?;
        region.space.carve(block.home.key, offsets).map_err(|error| error.to_string())
    }

    /// Enters a live fragment and returns its slot.
    pub(crate) fn enter(&mut self, label: Arc<str>, bytes: u64, home: Option<Home>) -> usize {
        self.live += bytes;
        self.raise_high_water();
        self.fragments.insert(Entry { label, bytes, number: 0, home })
    }

    /// Bytes can never be used again. A memory that refuses to give back what it then hands out again could make them any number.
    pub(crate) fn lose(&mut self, bytes: u64) {
        self.lost = self.lost.saturating_add(bytes);
    }

    pub(crate) fn raise_high_water(&mut self) {
        self.high_water = self.high_water.max(self.live + self.live_in_shards);
    }

    pub(crate) fn free_bytes(&self) -> u64 {
        self.whole_regions().map(|region| region.space.free_bytes()).sum()
    }

    pub(crate) fn largest_free(&self) -> u64 {
        self.whole_regions().map(|region| region.space.largest_free()).max().unwrap_or(0)
    }

    /// Those whose free blocks can be placed in.
    pub(crate) fn whole_regions(&self) -> impl Iterator<Item = &Region> {
        self.regions.iter().map(|(_, region)| region).filter(|region| region.backing.is_none())
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("name", &self.name)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}
