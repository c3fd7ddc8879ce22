//! [`PoolCore`]: what a pool's handles, fragments and reaper share.

use std::fmt;
use std::num::NonZeroU64;
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::Duration;

use super::config::{BatchRegions, PoolConfig, Sharding};
use super::record::Record;
use super::retire_queue::RetireQueue;
use super::shard::Shard;
use crate::books::Books;
use crate::error::{Error, Result};
use crate::events::{Header, Recorder, VERSION};
use crate::fork::Process;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Condvar, Mutex, MutexGuard, Parker};

/// How many shards a pool has. A thread that meets no other in its shard uses one.
const SHARDS: u8 = if cfg!(loom) { 2 } else { 16 };

/// What happens to ranges that wait for fences when a pool settles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FenceMode {
    /// Their fences are waited for.
    Wait,
    /// They stay pending.
    Leave,
}

pub(crate) struct PoolCore {
    config: PoolConfig,
    books: CachePadded<Mutex<Books>>,
    /// Notified after each pass of the reaper.
    pass_over: Condvar,
    /// Of the fragments in `books`.
    retired: CachePadded<RetireQueue<Self>>,
    shards: OnceLock<Box<[Shard<Self>]>>,
    /// Owners of ranges that are never given back, since a use could not be recorded. They keep the pool, and its reaper.
    kept: Mutex<Vec<Box<dyn Send + Sync>>>,
    /// Set once: no placement succeeds any more, and the reaper ends when nothing is left (R2).
    closing: AtomicBool,
    reaper: Arc<Parker>,
    /// The process in which the reaper runs.
    process: Process,
}

/// A value in cache lines of its own: threads that only read its neighbours do not share a line with those that write it.
#[derive(Debug, Default)]
#[repr(align(128))]
struct CachePadded<T>(T);

impl PoolCore {
    /// The core of a pool in this process, without a reaper.
    pub(crate) fn new(config: PoolConfig, recorder: Option<Recorder>) -> Self {
        Self {
            books: CachePadded(Mutex::new(Books::new(recorder))),
            config,
            pass_over: Condvar::new(),
            retired: CachePadded::default(),
            shards: OnceLock::new(),
            kept: Mutex::default(),
            closing: AtomicBool::new(false),
            reaper: Arc::default(),
            process: Process::current(),
        }
    }

    #[inline]
    pub(crate) fn config(&self) -> &PoolConfig {
        &self.config
    }

    /// Describes the pool in its log, if it has one.
    pub(crate) fn begin_log(&self) {
        let config = &self.config;
        // Without the lock: the memory's name is its own code.
        let memory = config.memory.name().to_owned();
        self.books().begin_log(Header {
            version: VERSION,
            pool: config.name.clone(),
            memory,
            granule: config.granule,
            region_bytes: config.region_bytes,
            max_region_bytes: config.max_region_bytes.map(NonZeroU64::get),
            limit_bytes: config.limit_bytes,
            retain_bytes: config.retain_bytes,
            policy: config.policy,
            in_parts: matches!(config.batch_regions, BatchRegions::Parts(_)),
        });
    }

    #[inline]
    pub(crate) fn books(&self) -> MutexGuard<'_, Books> {
        // Nothing panics under the lock, and the books are changed in whole steps.
        self.books.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the books for a placement, unless the pool is closed. The pool cannot end while the lock is held.
    pub(crate) fn open_books(&self, label: &str) -> Result<MutexGuard<'_, Books>> {
        self.check_process("place")?;
        let books = self.books();
        self.check_open(label)?;
        Ok(books)
    }

    /// As [`open_books`](Self::open_books), and says whether the lock was contended.
    pub(crate) fn open_contended_books(&self, label: &str) -> Result<(MutexGuard<'_, Books>, bool)> {
        self.check_process("place")?;
        let free = self.books.0.try_lock().ok();
        let waited = free.is_none();
        let books = free.unwrap_or_else(|| self.books());
        self.check_open(label)?;
        Ok((books, waited))
    }

    /// The queue of fragments that are in the books.
    pub(crate) fn retired(&self) -> &RetireQueue<Self> {
        &self.retired.0
    }

    /// The shards, if there are any.
    #[inline]
    pub(crate) fn shard_slice(&self) -> Option<&[Shard<Self>]> {
        self.shards.get().map(|shards| &**shards)
    }

    /// The shards, if there are any, with their numbers.
    pub(crate) fn shards(&self) -> impl Iterator<Item = (u8, &Shard<Self>)> {
        (0..).zip(self.shards.get().into_iter().flatten())
    }

    /// Makes the shards, unless they are made.
    #[cold]
    pub(crate) fn make_shards(&self) {
        self.shards.get_or_init(|| (0..SHARDS).map(|_| Shard::default()).collect());
    }

    /// Whether the pool may have shards.
    pub(crate) fn may_have_shards(&self) -> bool {
        // Events are in one order, that of the books.
        let config = &self.config;
        !config.is_recording && config.sharding != Sharding::Never && config.span_bytes() > 0
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
        Error::Forked { pool: self.config.name.clone(), operation }
    }

    /// Refuses a placement on a closed pool. Under a lock of the books, so that the pool cannot end after it.
    #[inline]
    pub(crate) fn check_open(&self, label: &str) -> Result<()> {
        if self.is_closing() { Err(self.closed(label)) } else { Ok(()) }
    }

    #[cold]
    fn closed(&self, label: &str) -> Error {
        Error::Closed { pool: self.config.name.clone(), label: label.into() }
    }

    #[inline]
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Closes the pool: no later placement succeeds.
    pub(crate) fn start_closing(&self) {
        self.closing.store(true, Ordering::Release);
    }

    /// Pushes the record of a range without owners onto the queue of the shard in whose books it is (H1), or that of the pool's. The pool
    /// may be gone before this returns, so it comes by its address, as the reaper in [`RetireQueue::push`].
    ///
    /// # Safety
    /// As [`RetireQueue::push`]. The record is one of this pool.
    pub(crate) unsafe fn retire(pool: NonNull<Self>, shard: Option<u8>, record: NonNull<Record<Self>>) {
        // SAFETY: R3: the pool lives until the push, and is not touched after it.
        let core = unsafe { pool.as_ref() };
        if core.is_forked_child() {
            return;
        }
        let queue = match (shard, core.shards.get()) {
            (Some(shard), Some(shards)) => &shards[shard as usize].retired,
            _ => &core.retired.0,
        };
        // SAFETY: passed on.
        if let Some(sleeper) = unsafe { queue.push(record, &raw const core.reaper) } {
            sleeper.wake();
        }
    }

    /// Keeps an owner of a range for as long as the process runs.
    pub(crate) fn keep_forever(&self, owner: Box<dyn Send + Sync>) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).push(owner);
    }

    /// Where the reaper waits.
    pub(crate) fn reaper(&self) -> &Parker {
        &self.reaper
    }

    pub(crate) fn wake_reaper(&self) {
        self.reaper.wake();
    }

    /// Waits until the reaper has dealt with all that was retired before this call, and has released every region that was empty then.
    pub(crate) fn settle(&self, fences: FenceMode) {
        self.settle_and_keep(fences, 0);
    }

    /// As [`settle`](Self::settle), but empty regions of `keep` bytes in total may stay.
    pub(crate) fn settle_and_keep(&self, fences: FenceMode, keep: u64) {
        // A fence or a memory that the reaper calls would wait for itself.
        if self.is_forked_child() || self.reaper.is_here() {
            return;
        }
        let mut books = self.books();
        let pass = books.passes.request(fences == FenceMode::Wait, keep);
        self.wake_reaper();
        while !books.passes.is_over(pass) {
            books = self.wait_for_pass(books);
        }
    }

    /// Waits for a notice: a pass of the reaper is over, or a reservation has ended.
    pub(crate) fn wait_for_pass<'a>(&self, books: MutexGuard<'a, Books>) -> MutexGuard<'a, Books> {
        self.pass_over.wait(books).unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`wait_for_pass`](Self::wait_for_pass), up to a timeout.
    pub(crate) fn wait_for_pass_timeout<'a>(
        &self,
        books: MutexGuard<'a, Books>,
        timeout: Duration,
    ) -> MutexGuard<'a, Books> {
        self.pass_over.wait_timeout(books, timeout).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Wakes all that wait for a pass.
    pub(crate) fn notify_pass(&self) {
        self.pass_over.notify_all();
    }
}

impl fmt::Debug for PoolCore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolCore").field("config", &self.config).finish_non_exhaustive()
    }
}
