//! [`SlotGroup`]: consecutive jobs that share a slot of the
//! [`StagingRing`](super::staging_ring::StagingRing).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use smallvec::SmallVec;
use tensorhold_allocator::Fragment;

use super::route::ReadRoute;
use crate::loader::plan::Job;

/// Consecutive jobs that share a slot.
pub(super) struct SlotGroup {
    pub(super) slot: usize,
    memory: Fragment,
    routed: RoutedJobs,
    /// The next of the routed jobs to be claimed.
    next: AtomicUsize,
    /// Jobs that are not complete.
    remaining: AtomicUsize,
    /// By routed job: whether its bytes lie in the slot.
    filled: SmallVec<[AtomicBool; 8]>,
}

/// The jobs of a group that are read through the page cache, and their routes. At least one; the others are
/// deferred.
#[derive(Default)]
pub(super) struct RoutedJobs {
    pub(super) jobs: SmallVec<[(usize, ReadRoute); 8]>,
}

/// A job that a reader has claimed, and its place in a slot.
pub(super) struct JobClaim {
    pub(super) group: Arc<SlotGroup>,
    /// Index among the group's routed jobs.
    pub(super) place: usize,
    pub(super) index: usize,
    pub(super) route: ReadRoute,
}

impl SlotGroup {
    pub(super) fn new(slot: usize, memory: Fragment, routed: RoutedJobs) -> Self {
        let filled = routed.jobs.iter().map(|_| AtomicBool::new(false)).collect();
        let remaining = AtomicUsize::new(routed.jobs.len());
        Self { slot, memory, routed, next: AtomicUsize::new(0), remaining, filled }
    }

    /// The jobs whose bytes lie in the slot, once all are complete.
    pub(super) fn filled_jobs(&self) -> impl Iterator<Item = usize> {
        let filled = self.filled.iter().map(|filled| filled.load(Ordering::Relaxed));
        self.routed.jobs.iter().zip(filled).filter_map(|(&(job, _), filled)| filled.then_some(job))
    }

    /// Claims the next job; `None` if all have been claimed.
    pub(super) fn claim(group: &Arc<Self>) -> Option<JobClaim> {
        let place = group.next.fetch_add(1, Ordering::Relaxed);
        let &(index, route) = group.routed.jobs.get(place)?;
        Some(JobClaim { group: Arc::clone(group), place, index, route })
    }

    /// Counts a claimed job as complete. Returns whether it was the last one.
    pub(super) fn complete(&self, place: usize, filled: bool) -> bool {
        self.filled[place].store(filled, Ordering::Relaxed);
        // AcqRel (G2): whoever counts the last job sees what the others have written.
        self.remaining.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// The place of a job's bytes in the slot.
    pub(super) fn place_of(&self, job: &Job) -> *mut u8 {
        self.memory.as_ptr().cast_mut().wrapping_add(job.slot as usize)
    }
}
