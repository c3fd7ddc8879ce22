//! [`JobQueue`]: the remaining jobs of a load, the bytes that have landed, and the first failure. All readers
//! share it.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;

use tensorhold_allocator::offsets::Placement;

use super::route::{ReadRoute, Routes};
use crate::error::Error;
use crate::loader::plan::{Job, Plan, StridedRead};

/// Stops a load, and holds the jobs that are deferred to direct readers. Outlives the readers.
#[derive(Debug, Default)]
pub(crate) struct LoadControl {
    stop: AtomicBool,
    deferred: Mutex<DeferredJobs>,
    more: Condvar,
}

/// Jobs that some readers have deferred to others.
#[derive(Debug, Default)]
struct DeferredJobs {
    jobs: VecDeque<usize>,
    /// Running readers that may defer jobs: buffered ones, if bytes are not cached; cuFile's, if it refuses a
    /// read.
    buffered: usize,
    cufile: usize,
}

/// How a reader reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReaderKind {
    /// Through the page cache.
    Buffered,
    /// By cuFile: jobs that buffered readers defer.
    CuFile,
    /// Past the page cache: jobs that either defers.
    Direct,
}

impl DeferredJobs {
    /// The number of running readers of a kind that may defer jobs.
    fn count(&mut self, kind: ReaderKind) -> Option<&mut usize> {
        match kind {
            ReaderKind::Buffered => Some(&mut self.buffered),
            ReaderKind::CuFile => Some(&mut self.cufile),
            ReaderKind::Direct => None,
        }
    }

    /// Whether a reader of this kind may still receive deferred jobs.
    fn may_receive(&self, kind: ReaderKind) -> bool {
        self.buffered > 0 || kind == ReaderKind::Direct && self.cufile > 0
    }
}

impl LoadControl {
    fn deferred(&self) -> MutexGuard<'_, DeferredJobs> {
        self.deferred.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops every reader after its current job.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        // The lock excludes readers between their check of the flag and their wait.
        drop(self.deferred());
        self.more.notify_all();
    }

    /// Whether the load was stopped.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Sends the numbers of tensors whose bytes have all landed.
pub(crate) struct Arrivals {
    /// By tensor.
    placements: Vec<Placement>,
    /// By tensor: bytes that have not landed yet.
    missing: Vec<AtomicU64>,
    sender: Sender<usize>,
}

impl Arrivals {
    /// Sends tensors without bytes at once.
    pub(crate) fn new(placements: Vec<Placement>, sender: Sender<usize>) -> Self {
        let missing = placements.iter().map(|placement| AtomicU64::new(placement.bytes)).collect();
        // A send to a dropped receiver is no failure.
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
            // All tensors of a job are in the job's region.
            let Placement { offset, bytes, .. } = self.placements[tensor];
            let part = (offset + bytes).min(end).saturating_sub(offset.max(job.offset));
            // AcqRel: whoever sends a tensor has seen all of its parts land (I3).
            if part > 0 && self.missing[tensor].fetch_sub(part, Ordering::AcqRel) == part {
                let _ = self.sender.send(tensor);
            }
        }
    }
}

pub(super) struct JobQueue<'a> {
    plan: &'a Plan,
    control: &'a LoadControl,
    arrivals: Option<&'a Arrivals>,
    next_job: AtomicUsize,
    next_group: AtomicUsize,
    landed_bytes: AtomicU64,
    /// Bytes read through the page cache.
    buffered_bytes: AtomicU64,
    /// Bytes read past it.
    direct_bytes: AtomicU64,
    /// Bytes read by cuFile.
    gds_bytes: AtomicU64,
    running: AtomicUsize,
    /// Jobs have been deferred.
    wants_direct: AtomicBool,
    /// Direct readers take jobs off the plan: there are no buffered readers.
    direct_only: bool,
    failure: Mutex<Option<Error>>,
    /// Why a reader ended for lack of staging memory. Not a failure while other readers remain.
    refusal: Mutex<Option<Error>>,
    /// Woken when the first job is deferred, when a reader ends and, with `wake_each_job`, after each job.
    caller: Thread,
    wake_each_job: bool,
}

impl<'a> JobQueue<'a> {
    pub(super) fn new(
        plan: &'a Plan,
        control: &'a LoadControl,
        arrivals: Option<&'a Arrivals>,
        direct_only: bool,
        (caller, wake_each_job): (Thread, bool),
    ) -> Self {
        // An earlier attempt may have deferred jobs, of another plan, without staging memory to read them.
        control.deferred().jobs.clear();
        Self {
            plan,
            control,
            arrivals,
            next_job: AtomicUsize::new(0),
            next_group: AtomicUsize::new(0),
            landed_bytes: AtomicU64::new(0),
            buffered_bytes: AtomicU64::new(0),
            direct_bytes: AtomicU64::new(0),
            gds_bytes: AtomicU64::new(0),
            running: AtomicUsize::new(0),
            wants_direct: AtomicBool::new(false),
            direct_only,
            failure: Mutex::new(None),
            refusal: Mutex::new(None),
            caller,
            wake_each_job,
        }
    }

    /// Registers a reader, before it starts.
    pub(super) fn begin(&self, kind: ReaderKind) {
        self.running.fetch_add(1, Ordering::Relaxed);
        self.control.deferred().count(kind).into_iter().for_each(|readers| *readers += 1);
    }

    /// Unregisters a reader, as its last action.
    pub(super) fn end(&self, kind: ReaderKind) {
        let mut deferred = self.control.deferred();
        if let Some(readers) = deferred.count(kind) {
            *readers -= 1;
            let last = *readers == 0;
            drop(deferred);
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

    /// Whether jobs have been deferred.
    pub(super) fn wants_direct(&self) -> bool {
        self.wants_direct.load(Ordering::Acquire)
    }

    /// Stops all readers. The first error is reported.
    pub(super) fn fail(&self, error: Error) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.control.stop();
    }

    /// Records that a reader ends for lack of staging memory.
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

    /// The next job of the plan; `None` if none is left or the load was stopped.
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

    /// The next job to read through the page cache. Defers those that are read past it.
    pub(super) fn next_buffered(&self, routes: &Routes<'_>) -> Option<(usize, &'a Job, ReadRoute)> {
        loop {
            let (index, job) = self.next()?;
            match routes.route(job) {
                ReadRoute::Direct => self.defer(index),
                route => return Some((index, job, route)),
            }
        }
    }

    /// Defers a job to direct readers.
    pub(super) fn defer(&self, index: usize) {
        self.control.deferred().jobs.push_back(index);
        self.control.more.notify_one();
        if !self.wants_direct.swap(true, Ordering::AcqRel) {
            self.caller.unpark();
        }
    }

    /// The next job for a cuFile or direct reader. With `wait`, waits until there is one or there cannot be
    /// another.
    pub(super) fn next_direct(&self, kind: ReaderKind, wait: bool) -> Option<usize> {
        if self.direct_only {
            return self.next().map(|(index, _)| index);
        }
        let mut deferred = self.control.deferred();
        loop {
            if self.control.is_stopped() {
                return None;
            }
            if let Some(index) = deferred.jobs.pop_front() {
                return Some(index);
            }
            if !wait || !deferred.may_receive(kind) {
                return None;
            }
            deferred = self.control.more.wait(deferred).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Counts a job's bytes as read by this route.
    pub(super) fn count(&self, job: &Job, route: ReadRoute) {
        let (counter, bytes) = match (route, self.plan.transform_of(job)) {
            (ReadRoute::Direct, _) => (&self.direct_bytes, job.file_bytes),
            (_, Some(part)) if part.reading == StridedRead::Runs => (&self.buffered_bytes, part.run_bytes),
            _ => (&self.buffered_bytes, job.file_bytes),
        };
        counter.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts a job's span of the file as read through the page cache, also if runs were planned.
    pub(super) fn count_span(&self, job: &Job) {
        self.buffered_bytes.fetch_add(job.file_bytes, Ordering::Relaxed);
    }

    /// Counts a job's bytes as read by cuFile.
    pub(super) fn count_gds(&self, job: &Job) {
        self.gds_bytes.fetch_add(job.file_bytes, Ordering::Relaxed);
    }

    /// Bytes read through the page cache, past it, and by cuFile.
    pub(super) fn counted(&self) -> [u64; 3] {
        [&self.buffered_bytes, &self.direct_bytes, &self.gds_bytes].map(|bytes| bytes.load(Ordering::Relaxed))
    }

    /// Counts a job as landed: its bytes are in their region.
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

    /// Bytes of tensors that have landed.
    pub(super) fn landed_bytes(&self) -> u64 {
        self.landed_bytes.load(Ordering::Relaxed)
    }
}
