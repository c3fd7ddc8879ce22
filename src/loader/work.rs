//! What the readers of a load share: the jobs that are left, what has landed, and the first failure.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;

use tensorhold_allocator::offsets::Placement;

use super::parts::Reading;
use super::plan::{Job, Plan};
use super::route::{Routes, Way};
use crate::error::Error;

/// How a load is stopped, and the jobs that are left to be read past the page cache. Outlives the readers.
#[derive(Debug, Default)]
pub(super) struct Control {
    stop: AtomicBool,
    left: Mutex<Left>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Left {
    jobs: VecDeque<usize>,
    /// Readers that may still leave jobs: those through the page cache, what is not cached; those by cuFile, what it refuses.
    through: usize,
    by_cufile: usize,
}

/// What a reader reads by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Through the page cache.
    Through,
    /// By cuFile, what the former leave.
    ByCuFile,
    /// Past the page cache, what either leaves.
    Past,
}

impl Left {
    /// Counts readers who may leave jobs, if that role's do.
    fn count(&mut self, role: Role) -> Option<&mut usize> {
        match role {
            Role::Through => Some(&mut self.through),
            Role::ByCuFile => Some(&mut self.by_cufile),
            Role::Past => None,
        }
    }

    /// Whether someone may still leave jobs for a reader of that role.
    fn may_come(&self, role: Role) -> bool {
        self.through > 0 || role == Role::Past && self.by_cufile > 0
    }
}

impl Control {
    fn left(&self) -> MutexGuard<'_, Left> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has every reader stop after what it is at.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        // Taken, so that no reader is between its look at the flag and its wait.
        drop(self.left());
        self.more.notify_all();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Tells of tensors whose bytes have all landed.
pub(super) struct Arrivals {
    /// By tensor: where it is in the region, and how many bytes have not landed yet.
    placements: Vec<Placement>,
    missing: Vec<AtomicU64>,
    sender: Sender<usize>,
}

impl Arrivals {
    /// Tells at once of the tensors that have no bytes.
    pub(super) fn new(placements: Vec<Placement>, sender: Sender<usize>) -> Self {
        let missing = placements.iter().map(|placement| AtomicU64::new(placement.bytes)).collect();
        // A receiver that is gone wants to know of nothing.
        placements.iter().enumerate().filter(|(_, placement)| placement.bytes == 0).for_each(
            |(tensor, _)| {
                let _ = sender.send(tensor);
            },
        );
        Self { placements, missing, sender }
    }

    fn landed(&self, job: &Job) {
        let end = job.offset + job.span;
        for tensor in job.tensors.clone() {
            // In the job's region, as all of its tensors.
            let Placement { offset, bytes, .. } = self.placements[tensor];
            let part = (offset + bytes).min(end).saturating_sub(offset.max(job.offset));
            // AcqRel: whoever tells of a tensor has seen all of its parts land (I3).
            if part > 0 && self.missing[tensor].fetch_sub(part, Ordering::AcqRel) == part {
                let _ = self.sender.send(tensor);
            }
        }
    }
}

pub(super) struct Work<'a> {
    plan: &'a Plan,
    control: &'a Control,
    arrivals: Option<&'a Arrivals>,
    next_job: AtomicUsize,
    next_group: AtomicUsize,
    landed_bytes: AtomicU64,
    /// Bytes read through the page cache and past it.
    through_bytes: AtomicU64,
    past_bytes: AtomicU64,
    /// Bytes read by cuFile.
    gds_bytes: AtomicU64,
    running: AtomicUsize,
    wants_past: AtomicBool,
    /// Jobs past the page cache come off the plan, since nothing is read through it.
    only_past: bool,
    failure: Mutex<Option<Error>>,
    /// Why a reader went away for want of staging memory. No failure while others stay.
    refusal: Mutex<Option<Error>>,
    /// Woken when jobs are first left, when the last reader ends and, if it wants, after each job.
    caller: Thread,
    wake_each_job: bool,
}

impl<'a> Work<'a> {
    pub(super) fn new(
        plan: &'a Plan,
        control: &'a Control,
        arrivals: Option<&'a Arrivals>,
        only_past: bool,
        (caller, wake_each_job): (Thread, bool),
    ) -> Self {
        // An attempt before this one may have left jobs, of another plan, that no one had staging memory for.
        control.left().jobs.clear();
        Self {
            plan,
            control,
            arrivals,
            next_job: AtomicUsize::new(0),
            next_group: AtomicUsize::new(0),
            landed_bytes: AtomicU64::new(0),
            through_bytes: AtomicU64::new(0),
            past_bytes: AtomicU64::new(0),
            gds_bytes: AtomicU64::new(0),
            running: AtomicUsize::new(0),
            wants_past: AtomicBool::new(false),
            only_past,
            failure: Mutex::new(None),
            refusal: Mutex::new(None),
            caller,
            wake_each_job,
        }
    }

    /// Counts a reader in, before it starts.
    pub(super) fn begin(&self, role: Role) {
        self.running.fetch_add(1, Ordering::Relaxed);
        self.control.left().count(role).into_iter().for_each(|readers| *readers += 1);
    }

    /// Counts a reader out, as its last act.
    pub(super) fn end(&self, role: Role) {
        let mut left = self.control.left();
        if let Some(readers) = left.count(role) {
            *readers -= 1;
            let last = *readers == 0;
            drop(left);
            if last {
                self.control.more.notify_all();
            }
        }
        // Release: the caller sees the failure, if there was one.
        self.running.fetch_sub(1, Ordering::Release);
        self.caller.unpark();
    }

    /// Whether no reader is running.
    pub(super) fn is_idle(&self) -> bool {
        self.running.load(Ordering::Acquire) == 0
    }

    /// Whether jobs have been left that no one is there for yet.
    pub(super) fn wants_past(&self) -> bool {
        self.wants_past.load(Ordering::Acquire)
    }

    /// Stops all readers; the first error is the one that is told.
    pub(super) fn fail(&self, error: Error) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.control.stop();
    }

    /// Notes that a reader goes away for want of staging memory.
    pub(super) fn refuse(&self, error: Error) {
        tracing::debug!(%error, "a reader gets no staging memory");
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    /// The first failure.
    pub(super) fn failure(&self) -> Option<Error> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The first refusal.
    pub(super) fn refusal(&self) -> Option<Error> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The next job of the plan, unless there is none or the load is over.
    fn next(&self) -> Option<(usize, &'a Job)> {
        if self.control.is_stopped() {
            return None;
        }
        let index = self.next_job.fetch_add(1, Ordering::Relaxed);
        self.plan.jobs.get(index).map(|job| (index, job))
    }

    /// Whether the load was stopped.
    pub(super) fn is_over(&self) -> bool {
        self.control.is_stopped()
    }

    /// The next group of jobs, for readers that share their memory.
    pub(super) fn next_group(&self) -> Option<Range<usize>> {
        self.plan.groups.get(self.next_group.fetch_add(1, Ordering::Relaxed)).cloned()
    }

    /// The next job to read through the page cache; those better read past it are left.
    pub(super) fn next_through(&self, routes: &Routes<'_>) -> Option<(usize, &'a Job, Way)> {
        loop {
            let (index, job) = self.next()?;
            match routes.way(job) {
                Way::Past => self.leave(index),
                way => return Some((index, job, way)),
            }
        }
    }

    /// Leaves a job to be read past the page cache.
    pub(super) fn leave(&self, index: usize) {
        self.control.left().jobs.push_back(index);
        self.control.more.notify_one();
        if !self.wants_past.swap(true, Ordering::AcqRel) {
            self.caller.unpark();
        }
    }

    /// The next job for a reader of that role, which is not through the page cache. With `wait`, waits until there is one or there can be none.
    pub(super) fn next_past(&self, role: Role, wait: bool) -> Option<usize> {
        if self.only_past {
            return self.next().map(|(index, _)| index);
        }
        let mut left = self.control.left();
        loop {
            if self.control.is_stopped() {
                return None;
            }
            if let Some(index) = left.jobs.pop_front() {
                return Some(index);
            }
            if !wait || !left.may_come(role) {
                return None;
            }
            left = self.control.more.wait(left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Counts a job's bytes as read that way.
    pub(super) fn count(&self, job: &Job, way: Way) {
        let (counter, bytes) = match (way, self.plan.part(job)) {
            (Way::Past, _) => (&self.past_bytes, job.file_bytes),
            (_, Some(part)) if part.reading == Reading::Runs => (&self.through_bytes, part.run_bytes),
            _ => (&self.through_bytes, job.file_bytes),
        };
        counter.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts all that a job has in the file as read through the page cache, though that may be planned otherwise.
    pub(super) fn count_whole(&self, job: &Job) {
        self.through_bytes.fetch_add(job.file_bytes, Ordering::Relaxed);
    }

    /// Counts a job's bytes as read by cuFile.
    pub(super) fn count_gds(&self, job: &Job) {
        self.gds_bytes.fetch_add(job.file_bytes, Ordering::Relaxed);
    }

    /// Bytes read through the page cache, past it, and by cuFile.
    pub(super) fn counted(&self) -> [u64; 3] {
        [&self.through_bytes, &self.past_bytes, &self.gds_bytes].map(|bytes| bytes.load(Ordering::Relaxed))
    }

    /// A job's bytes are where they belong.
    pub(super) fn landed(&self, index: usize) {
        let job = &self.plan.jobs[index];
        self.landed_bytes.fetch_add(job.bytes(), Ordering::Relaxed);
        if let Some(arrivals) = self.arrivals {
            arrivals.landed(job);
        }
        if self.wake_each_job {
            self.caller.unpark();
        }
    }

    pub(super) fn landed_bytes(&self) -> u64 {
        self.landed_bytes.load(Ordering::Relaxed)
    }
}
