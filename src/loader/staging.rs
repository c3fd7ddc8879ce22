//! Staging memory: the pool that slots come from, and the first slots of the ring.
//!
//! The first slots are made ready on a thread of their own while the files are opened and the load is planned: making eight
//! mebibytes ready takes a millisecond or two, which is a part of a short load.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tensorhold_allocator::{Fragment, Pool, Request};

use super::beside::Ahead;
use crate::device::Device;
use crate::error::Result;

pub(super) struct StagingMemory {
    pub(super) pool: Pool,
    first: Mutex<Option<Ahead<Option<Fragment>>>>,
}

impl StagingMemory {
    /// Staging memory from `pool`, if there is one. With `first_bytes`, so much for first slots is on its way.
    pub(super) fn new(device: &Device, pool: Option<Pool>, first_bytes: Option<u64>) -> Result<Self> {
        // What one reader is done with is there for another.
        let pool = pool.map_or_else(|| self::pool(device, u64::MAX), Ok)?;
        let first = first_bytes.and_then(|bytes| {
            let pool = pool.clone();
            // A refusal is told when slots are asked for again.
            Ahead::begin("tensorhold-stage", move || place(&pool, bytes).ok())
        });
        Ok(Self { pool, first: Mutex::new(first) })
    }

    /// The memory of the first slots, if it was asked for, could be had and was not taken before.
    pub(super) fn first(&self) -> Option<Fragment> {
        let mut making = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        making.as_mut().and_then(Ahead::take).flatten()
    }
}

/// Where slots come from, and how large they are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Staging<'a> {
    /// Over the device's staging memory.
    pub(super) pool: &'a Pool,
    /// What all who share the pool may take together.
    pub(super) budget: &'a Budget,
    /// A multiple of the page size.
    pub(super) slot_bytes: u64,
    /// How many jobs fit into a slot.
    pub(super) slot_jobs: usize,
    /// The most slots.
    pub(super) slots: usize,
}

/// Room for jobs in staging memory that no one has taken yet, and memory that someone had use for before.
#[derive(Debug)]
pub(super) struct Budget {
    left: AtomicUsize,
    /// One job's each.
    spare: Mutex<Vec<Fragment>>,
    /// What lanes have had, until all has ended.
    had: Mutex<Vec<Fragment>>,
}

impl Budget {
    pub(super) fn new(jobs: usize) -> Self {
        Self { left: AtomicUsize::new(jobs), spare: Mutex::default(), had: Mutex::default() }
    }

    /// Takes room for so many jobs, if it is there.
    pub(super) fn take(&self, jobs: usize) -> bool {
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(jobs)).is_ok()
    }

    /// Takes room for so many jobs, or for as many as there is, and says for how many.
    pub(super) fn take_up_to(&self, jobs: usize) -> usize {
        let left = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(jobs)));
        left.map_or(0, |left| left.min(jobs))
    }

    /// Gives back room that was taken, and in which there is no memory.
    pub(super) fn give(&self, jobs: usize) {
        self.left.fetch_add(jobs, Ordering::Relaxed);
    }

    /// Leaves a slot, which nothing reads or writes any more, to others: job by job.
    pub(super) fn leave(&self, slot: &Fragment, jobs: usize) {
        let job_bytes = slot.len() / jobs as u64;
        let parts = (0..jobs as u64).map_while(|job| slot.slice(job * job_bytes, job_bytes));
        self.spare().extend(parts);
    }

    /// Memory for one job that was left.
    pub(super) fn take_left(&self) -> Option<Fragment> {
        self.spare().pop()
    }

    /// Takes memory that a lane has no more use for, whose copies have ended: others may have copies in flight out of other parts of its block.
    pub(super) fn keep(&self, blocks: Vec<Fragment>) {
        self.had.lock().unwrap_or_else(PoisonError::into_inner).extend(blocks);
    }

    /// Says that no one uses the memory that was left or kept, so that the pool need not wait for the device before it is used again.
    ///
    /// # Safety
    /// All readers have ended, and so has what they enqueued.
    pub(super) unsafe fn settle(&self) {
        let had = self.had.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: as the caller promises.
        self.spare().iter().chain(&*had).for_each(|memory| unsafe { memory.assume_unused() });
    }

    fn spare(&self) -> MutexGuard<'_, Vec<Fragment>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Staging<'_> {
    /// Memory for so many slots, in one piece.
    pub(super) fn place(&self, slots: usize) -> tensorhold_allocator::Result<Fragment> {
        place(self.pool, self.slot_bytes * slots as u64)
    }
}

/// A pool of staging memory, which keeps so many bytes for those who come later.
pub(super) fn pool(device: &Device, retained: u64) -> Result<Pool> {
    // A region for each slot: memory that is refused in one piece may be had in several.
    let pool = Pool::builder(device.staging_memory()).name(format!("staging for {device}"));
    Ok(pool.region_bytes(1).retain_bytes(retained).build()?)
}

pub(super) fn place(pool: &Pool, bytes: u64) -> tensorhold_allocator::Result<Fragment> {
    pool.place("staging", Request::new(bytes, PAGE_BYTES))
}

/// Slots begin at pages, as direct reads into them must.
const PAGE_BYTES: u64 = 4096;
