//! Staging memory: the pool that slots come from, and the first slots of the ring.
//!
//! A thread pins the first slots while the files are opened and the load is planned: pinning eight mebibytes
//! takes one or two milliseconds, a notable part of a short load.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tensorhold_allocator::{Fragment, Pool, Request};

use crate::device::Device;
use crate::error::Result;
use crate::loader::parallel::BackgroundTask;

pub(crate) struct StagingMemory {
    pub(crate) pool: Pool,
    first: Mutex<Option<BackgroundTask<Option<Fragment>>>>,
}

impl StagingMemory {
    /// Staging memory from `pool` or, without one, from a pool of its own. Starts to pin `first_bytes` bytes
    /// for the first slots.
    pub(crate) fn new(device: &Device, pool: Option<Pool>, first_bytes: Option<u64>) -> Result<Self> {
        // Memory that one reader no longer uses is retained for the others.
        let pool = pool.map_or_else(|| self::pool(device, u64::MAX), Ok)?;
        let first = first_bytes.and_then(|bytes| {
            let pool = pool.clone();
            // A failure is reported when slots are requested again.
            BackgroundTask::spawn("tensorhold-stage", move || place(&pool, bytes).ok())
        });
        Ok(Self { pool, first: Mutex::new(first) })
    }

    /// The memory of the first slots, unless it was not requested, not available, or taken before.
    pub(crate) fn first(&self) -> Option<Fragment> {
        let mut making = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        making.as_mut().and_then(BackgroundTask::join).flatten()
    }
}

/// The source and the size of slots.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SlotPool<'a> {
    /// Over the device's staging memory.
    pub(crate) pool: &'a Pool,
    /// The limit that all users of the pool share.
    pub(crate) budget: &'a StagingBudget,
    /// A multiple of the page size.
    pub(crate) slot_bytes: u64,
    /// Jobs that fit into a slot.
    pub(crate) slot_jobs: usize,
    /// The most slots.
    pub(crate) slots: usize,
}

/// The number of jobs for which staging memory may still be taken, and memory that some readers no longer
/// use.
#[derive(Debug)]
pub(crate) struct StagingBudget {
    left: AtomicUsize,
    /// Unused memory, one job's each.
    spare: Mutex<Vec<Fragment>>,
    /// Memory of finished direct readers, until the load ends.
    finished: Mutex<Vec<Fragment>>,
}

impl StagingBudget {
    pub(crate) fn new(jobs: usize) -> Self {
        Self { left: AtomicUsize::new(jobs), spare: Mutex::default(), finished: Mutex::default() }
    }

    /// Takes room for `jobs` jobs; `false` if there is less.
    pub(crate) fn take(&self, jobs: usize) -> bool {
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(jobs)).is_ok()
    }

    /// Takes room for at most `jobs` jobs, and returns the number.
    pub(crate) fn take_up_to(&self, jobs: usize) -> usize {
        let left = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(jobs)));
        left.map_or(0, |left| left.min(jobs))
    }

    /// Gives back room for which no memory was placed.
    pub(crate) fn give_back(&self, jobs: usize) {
        self.left.fetch_add(jobs, Ordering::Relaxed);
    }

    /// Donates the memory of an unused slot to other readers, job by job.
    pub(crate) fn donate(&self, slot: &Fragment, jobs: usize) {
        let job_bytes = slot.len() / jobs as u64;
        let parts = (0..jobs as u64).map_while(|job| slot.slice(job * job_bytes, job_bytes));
        self.spare().extend(parts);
    }

    /// Takes donated memory for one job.
    pub(crate) fn take_donated(&self) -> Option<Fragment> {
        self.spare().pop()
    }

    /// Keeps the memory of a finished reader until [`settle`](Self::settle): other readers may have copies in
    /// flight out of the same blocks.
    pub(crate) fn keep(&self, blocks: Vec<Fragment>) {
        self.finished.lock().unwrap_or_else(PoisonError::into_inner).extend(blocks);
    }

    /// Declares the donated and kept memory unused, so that the pool can reuse it without waiting for the
    /// device.
    ///
    /// # Safety
    /// All readers have ended, and so have the copies that they enqueued.
    pub(crate) unsafe fn settle(&self) {
        let finished = self.finished.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: as the caller promises.
        self.spare().iter().chain(&*finished).for_each(|memory| unsafe { memory.assume_unused() });
    }

    fn spare(&self) -> MutexGuard<'_, Vec<Fragment>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SlotPool<'_> {
    /// Places memory for `slots` slots in one piece.
    pub(crate) fn place(&self, slots: usize) -> tensorhold_allocator::Result<Fragment> {
        place(self.pool, self.slot_bytes * slots as u64)
    }
}

/// A pool of staging memory that retains `retained` bytes.
pub(crate) fn pool(device: &Device, retained: u64) -> Result<Pool> {
    // One region for each slot: several small regions may be available where one large region is not.
    let pool = Pool::builder(device.staging_memory()).name(format!("staging for {device}"));
    Ok(pool.region_bytes(1).retain_bytes(retained).build()?)
}

/// Places `bytes` bytes of staging memory, aligned to pages.
pub(crate) fn place(pool: &Pool, bytes: u64) -> tensorhold_allocator::Result<Fragment> {
    pool.place("staging", Request::new(bytes, PAGE_BYTES))
}

/// Direct reads require buffers that begin at pages.
const PAGE_BYTES: u64 = 4096;
