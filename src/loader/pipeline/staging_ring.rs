//! [`StagingRing`]: slots of staging memory that all buffered readers fill, and the streams that empty them.
//!
//! A device is most efficient with few large copies, and a processor with reads into little memory. So a slot
//! holds a *group* of consecutive jobs: several readers fill it, one job each, and the last of them submits
//! one copy, or the transforms, of the whole slot. Slots are placed when they are first needed. If none is
//! free and no more may be placed, one reader waits for the oldest copy, and the others wait for that reader.
//! Once all groups have been handed out, slots whose copies end are donated to direct readers.
//!
//! # Invariants
//! - **G1** A slot belongs to one group at a time. It is free when the event with its number, recorded after
//!   the last copy out of it, has passed (T3), or when nothing was copied out of it. A donated slot was free,
//!   and is not used here again. A slot is never free after a failure.
//! - **G2** A job's place in a slot is written by the reader that claimed the job, before it counts the job
//!   as complete. The reader that counts the last job submits the copy, after it has seen all other counts.
//! - The slots are fragments of a pool, so their memory is reused only after it has been synchronized (I1,
//!   Q3), whatever else fails.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tensorhold_allocator::Fragment;

use super::job_queue::JobQueue;
use super::route::{ReadRoute, Routes};
use super::scatter::{Scatter, SourceLayout};
use super::slot_group::{JobClaim, RoutedJobs, SlotGroup};
use super::stats::ConversionStats;
use crate::device::{Device, Stream};
use crate::error::Result;
use crate::loader::plan::{Job, JobTransform};
use crate::loader::staging::SlotPool;

/// Launches alternate between two streams, so that the device does not idle between them.
const LAUNCH_STREAMS: usize = 2;

/// The slots of all buffered readers.
pub(crate) struct StagingRing<'a> {
    scatter: Scatter<'a>,
    slot_pool: SlotPool<'a>,
    conversion_stats: Option<&'a ConversionStats>,
    /// One for copies; several for transforms, which alternate between them.
    streams: Vec<Box<dyn Stream>>,
    state: Mutex<RingState>,
    /// Notified when the state changes in a way that a waiting reader may wait for.
    changed: Condvar,
}

#[derive(Default)]
struct RingState {
    /// By number; `None` once donated.
    slots: Vec<Option<Fragment>>,
    free: Vec<usize>,
    /// Groups whose copies are in flight, oldest first.
    copying: VecDeque<Arc<SlotGroup>>,
    /// Number of readers that are routing a group.
    routing: usize,
    /// Groups that wait for a slot.
    routed: VecDeque<RoutedJobs>,
    /// The group whose jobs are being handed out.
    current: Option<Arc<SlotGroup>>,
    /// Slots may be placed.
    grows: bool,
    /// A slot is being placed. One at a time: the driver would hold its lock while the system pins memory,
    /// and block all other calls.
    growing: bool,
    /// No more slots can be placed.
    full: bool,
    /// A reader waits for the oldest copy.
    waiting: bool,
    /// All groups have been handed out.
    ended: bool,
}

impl RingState {
    fn add(&mut self, memory: Fragment) {
        self.free.push(self.slots.len());
        self.slots.push(Some(memory));
    }

    /// Whether a reader may place another slot now.
    fn may_grow(&self, most: usize) -> bool {
        self.grows && !self.growing && !self.full && self.slots.len() < most
    }
}

impl<'a> StagingRing<'a> {
    /// A ring with as many slots as `first` has memory for, and no more than the tuning's number. The rest of
    /// `first` is donated to direct readers.
    ///
    /// # Errors
    /// When the device makes no stream.
    pub(crate) fn open(
        device: &Device,
        slot_pool: SlotPool<'a>,
        first: Option<Fragment>,
        scatter: Scatter<'a>,
        conversion_stats: Option<&'a ConversionStats>,
    ) -> Result<Self> {
        let mut state = RingState::default();
        let cut =
            |slot: usize| first.as_ref()?.slice(slot as u64 * slot_pool.slot_bytes, slot_pool.slot_bytes);
        for memory in (0..).map_while(cut) {
            // All of the memory exists, so room for all of it is taken. The first slot is always the ring's.
            let taken = slot_pool.budget.take(slot_pool.slot_jobs);
            if state.slots.len() < slot_pool.slots && (taken || state.slots.is_empty()) {
                state.add(memory);
            } else if taken {
                slot_pool.budget.donate(&memory, slot_pool.slot_jobs);
            }
        }
        // The remainder, less than a slot, takes room all the same.
        let rest = first.as_ref().map_or(0, Fragment::len) % slot_pool.slot_bytes;
        slot_pool.budget.take((rest * slot_pool.slot_jobs as u64).div_ceil(slot_pool.slot_bytes) as usize);
        let launches = scatter.plan.transforms.iter().any(|transform| transform.on_device);
        let count = if launches { LAUNCH_STREAMS } else { 1 };
        let streams = (0..count).map(|_| device.driver().stream()).collect::<Result<_>>()?;
        Ok(Self {
            scatter,
            slot_pool,
            conversion_stats,
            streams,
            state: Mutex::new(state),
            changed: Condvar::new(),
        })
    }

    /// The stream that empties a slot.
    fn stream(&self, slot: usize) -> &dyn Stream {
        &*self.streams[slot % self.streams.len()]
    }

    /// Allows slots to be placed, now that all readers have started: threads start slowly while memory is
    /// being pinned.
    pub(super) fn allow_growth(&self) {
        self.state().grows = true;
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, RingState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'g>(&self, state: MutexGuard<'g, RingState>) -> MutexGuard<'g, RingState> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims the next job and its place in a slot; may wait for a free slot. `None` if no job is left, or
    /// the load was stopped. Jobs that take the direct route are deferred, and take no slot.
    ///
    /// # Errors
    /// When a stream fails, or there is no memory for a first slot.
    pub(super) fn claim(&self, job_queue: &JobQueue<'_>, routes: &Routes<'_>) -> Result<Option<JobClaim>> {
        let mut state = self.state();
        loop {
            if let Some(group) = &state.current {
                if let Some(claim) = SlotGroup::claim(group) {
                    return Ok(Some(claim));
                }
                state.current = None;
            }
            if job_queue.is_over() {
                return Ok(None);
            }
            if state.routed.is_empty() {
                let Some(jobs) = job_queue.next_group() else {
                    return self.end(state, job_queue).map(|()| None);
                };
                // Probes take a while: not under the lock.
                state.routing += 1;
                drop(state);
                let routed = self.route_group(jobs, job_queue, routes);
                state = self.state();
                state.routing -= 1;
                state.routed.extend(routed);
            } else if let Some(slot) = state.free.pop() {
                let (memory, routed) = (state.slots[slot].clone(), state.routed.pop_front());
                state.current =
                    memory.zip(routed).map(|(memory, routed)| Arc::new(SlotGroup::new(slot, memory, routed)));
                self.changed.notify_all();
            } else if state.may_grow(self.slot_pool.slots) {
                let first = state.slots.is_empty();
                state.growing = true;
                drop(state);
                state = self.grow(first)?;
            } else if !state.waiting
                && let Some(group) = state.copying.pop_front()
            {
                state.waiting = true;
                drop(state);
                state = self.wait_for(&group, job_queue)?;
            } else if state.full && state.slots.is_empty() {
                // The reader that was refused memory reports it.
                return Ok(None);
            } else {
                state = self.wait(state);
            }
        }
    }

    /// Ends the caller's reading: donates free slots, and waits for copies that no one else waits for, since
    /// no other reader may come.
    fn end<'g>(&'g self, mut state: MutexGuard<'g, RingState>, job_queue: &JobQueue<'_>) -> Result<()> {
        state.ended = true;
        for slot in std::mem::take(&mut state.free) {
            self.freed(&mut state, slot);
        }
        while !state.waiting
            && let Some(group) = state.copying.pop_front()
        {
            state.waiting = true;
            drop(state);
            state = self.wait_for(&group, job_queue)?;
        }
        Ok(())
    }

    /// Frees a slot, or donates it if no group needs it.
    fn freed(&self, state: &mut RingState, slot: usize) {
        match state.ended && state.routing == 0 && state.routed.is_empty() {
            true => {
                let memory = state.slots[slot].take();
                memory
                    .iter()
                    .for_each(|memory| self.slot_pool.budget.donate(memory, self.slot_pool.slot_jobs));
            }
            false => state.free.push(slot),
        }
    }

    /// Routes the jobs of a group. `None` if all of them are deferred.
    fn route_group(
        &self,
        jobs: Range<usize>,
        job_queue: &JobQueue<'_>,
        routes: &Routes<'_>,
    ) -> Option<RoutedJobs> {
        let mut routed = RoutedJobs::default();
        for index in jobs {
            match routes.route(&self.scatter.plan.jobs[index]) {
                ReadRoute::Direct => job_queue.defer(index),
                route => routed.jobs.push((index, route)),
            }
        }
        (!routed.jobs.is_empty()).then_some(routed)
    }

    /// Places a slot. The first one needs no room in the budget.
    ///
    /// # Errors
    /// When the first slot is refused. If a later one is, the existing slots have to suffice.
    fn grow(&self, first: bool) -> Result<MutexGuard<'_, RingState>> {
        let room = self.slot_pool.budget.take(self.slot_pool.slot_jobs);
        let placed = match room || first {
            true => self.slot_pool.place(1).map(Some),
            false => Ok(None),
        };
        let mut state = self.state();
        state.growing = false;
        self.changed.notify_all();
        match placed {
            // The remaining room is for direct readers.
            Ok(None) => state.full = true,
            Ok(Some(memory)) => state.add(memory),
            Err(error) => {
                tracing::debug!(%error, slots = state.slots.len(), "no more staging memory");
                state.full = true;
                if state.slots.is_empty() {
                    return Err(error.into());
                }
            }
        }
        Ok(state)
    }

    /// Waits for a group's copy, and frees its slot and those of other copies that have ended.
    fn wait_for(
        &self,
        group: &Arc<SlotGroup>,
        job_queue: &JobQueue<'_>,
    ) -> Result<MutexGuard<'_, RingState>> {
        let waited = self.stream(group.slot).wait(group.slot);
        let mut state = self.state();
        state.waiting = false;
        self.changed.notify_all();
        waited?;
        self.landed(&mut state, group, job_queue);
        while let Some(next) = state.copying.front()
            && self.stream(next.slot).has_passed(next.slot)?
        {
            if let Some(group) = state.copying.pop_front() {
                self.landed(&mut state, &group, job_queue);
            }
        }
        Ok(state)
    }

    /// Frees the slot of a group whose copy has ended, and counts its jobs as landed.
    fn landed(&self, state: &mut RingState, group: &SlotGroup, job_queue: &JobQueue<'_>) {
        self.freed(state, group.slot);
        group.filled_jobs().for_each(|job| job_queue.landed(job));
    }

    /// Counts a claimed job as complete: its bytes lie in their place or, if `filled` is false, it is
    /// deferred. The last job of a group submits the copy.
    pub(super) fn complete(&self, claim: &JobClaim, filled: bool) -> Result<()> {
        let group = &claim.group;
        if !group.complete(claim.place, filled) {
            return Ok(());
        }
        let copies = self.submit(group)?;
        let mut state = self.state();
        match copies {
            0 => self.freed(&mut state, group.slot),
            _ => state.copying.push_back(Arc::clone(group)),
        }
        self.changed.notify_all();
        Ok(())
    }

    /// Enqueues the copies of a group, one for each run of filled jobs, and its transforms. Returns their
    /// number.
    fn submit(&self, group: &SlotGroup) -> Result<usize> {
        let (mut submitted, stream) = (0, self.stream(group.slot));
        let plan = self.scatter.plan;
        let mut filled = group.filled_jobs().peekable();
        while let Some(first) = filled.next() {
            let launches = plan.launches(&plan.jobs[first]);
            let mut last = first;
            let joins = |last: usize, next: usize| match launches {
                true => plan.continues(&plan.jobs[last], &plan.jobs[next]),
                false => !plan.launches(&plan.jobs[next]),
            };
            while let Some(next) = filled.next_if(|&next| next == last + 1 && joins(last, next)) {
                last = next;
            }
            let jobs = &plan.jobs[first..=last];
            let (first, last) = (&plan.jobs[first], &plan.jobs[last]);
            // Waits for the memory of the whole run.
            self.scatter.address(last)?;
            let (to, from) = (self.scatter.address(first)?, group.place_of(first));
            if launches {
                let (layout, counters) =
                    (self.source_layout(first), self.scatter.device_counters(self.conversion_stats, first));
                let Some(transform) = self.scatter.transform(jobs, from, layout, to, counters) else {
                    continue;
                };
                // SAFETY: P4, P5: as for the copy below. The counters outlive the readers.
                unsafe { stream.transform(&transform) }?;
            } else {
                let bytes = last.offset + last.span - first.offset;
                // SAFETY: W1, P2: the run's span lies in a region that the target keeps, and no other copy's
                // overlaps it. G1, G2: its bytes lie in the slot, which is not free before the event recorded
                // below has passed. The load waits for the stream and, should that fail, the region's pool
                // synchronizes its memory before anything is reused (W2); so does that of the slots.
                unsafe { stream.copy_to_device(to, from, bytes) }?;
            }
            submitted += 1;
        }
        if submitted > 0 {
            stream.record(group.slot)?;
        }
        Ok(submitted)
    }

    /// How buffered readers leave the input of a job's transform.
    fn source_layout(&self, job: &Job) -> SourceLayout {
        match self.scatter.plan.transform_of(job).is_some_and(JobTransform::is_dense) {
            true => SourceLayout::Dense,
            false => SourceLayout::AsInFile,
        }
    }

    /// The place of a claimed job's bytes.
    pub(super) fn start(&self, claim: &JobClaim) -> *mut u8 {
        claim.group.place_of(&self.scatter.plan.jobs[claim.index])
    }

    /// Wakes waiting readers, so that they see that the load was stopped.
    pub(super) fn wake(&self) {
        drop(self.state());
        self.changed.notify_all();
    }

    /// Declares the slots unused, so that the pool can reuse them without waiting for the device.
    ///
    /// # Safety
    /// All readers have ended, and so has all work that they enqueued.
    pub(super) unsafe fn settle(&self) {
        // SAFETY: as the caller promises.
        self.state().slots.iter().flatten().for_each(|memory| unsafe { memory.assume_unused() });
    }

    /// Waits until every copy has ended, also after an error of one stream. All readers have ended.
    pub(super) fn drain(&self, job_queue: &JobQueue<'_>) -> Result<()> {
        self.streams.iter().map(|stream| stream.synchronize()).fold(Ok(()), Result::and)?;
        let copied = std::mem::take(&mut self.state().copying);
        copied.iter().flat_map(|group| group.filled_jobs()).for_each(|job| job_queue.landed(job));
        Ok(())
    }
}
