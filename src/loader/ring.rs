//! The ring: staging memory that the readers through the page cache fill together, and the stream that empties it.
//!
//! A device takes few large copies far better than many small ones, and a processor reads best into little memory at a
//! time. So a slot holds a *group* of consecutive jobs: several readers fill it, a job each, and the last of them
//! submits one copy for all, or what the device is to transform. Slots are made as they are first needed. Where none is free and no more may be made, one
//! reader waits for the oldest copy, and the others for that reader. When all groups have been handed out, slots are left
//! to the readers past the page cache as their copies end.
//!
//! # Invariants
//! - **G1** A slot is one group's at a time. It is free when the event with its number, recorded after the last copy out of
//!   it, has passed (T3), or when nothing was copied out of it. What is left to others is free, and not used here again. A slot of which something
//!   failed is never free.
//! - **G2** A job's place in a slot is written by the reader that claimed the job, before it counts the job as done; the
//!   copy is submitted by the reader that counts the last one, after it has seen all others' counts.
//! - The slots are fragments of a pool, so that they too go back only when the memory has been synchronized (I1, Q3),
//!   whatever else fails.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use smallvec::SmallVec;
use tensorhold_allocator::Fragment;

use super::fill::Fill;
use super::landing::{Landing, PartForm};
use super::parts::Part;
use super::plan::Job;
use super::route::{Routes, Way};
use super::staging::Staging;
use super::work::Work;
use crate::device::{Device, Stream};
use crate::error::Result;

/// The device goes from one launch to the next, and has the other stream's to do meanwhile.
const LAUNCH_STREAMS: usize = 2;

pub(super) struct Ring<'a> {
    landing: Landing<'a>,
    staging: Staging<'a>,
    /// Copies go down one; where the device transforms, its work goes down several by turns, so that it does not rest between two.
    streams: Vec<Box<dyn Stream>>,
    state: Mutex<State>,
    /// Something has changed that a waiting reader may want to know.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// By number; `None` once left to others.
    slots: Vec<Option<Fragment>>,
    free: Vec<usize>,
    /// Groups whose copies run, oldest first.
    copying: VecDeque<Arc<Group>>,
    /// How many readers ask how their group is read.
    routing: usize,
    /// Groups that wait for a slot.
    routed: VecDeque<Routed>,
    /// The group whose jobs are being handed out.
    current: Option<Arc<Group>>,
    /// Slots may be made.
    grows: bool,
    /// A slot is being made. One at a time: the driver would wait for the system to make the other ready, and all who
    /// call the driver for it.
    growing: bool,
    /// No more can be made.
    full: bool,
    /// A reader waits for the oldest copy.
    waiting: bool,
    /// All groups have been handed out.
    ended: bool,
}

impl State {
    fn add(&mut self, memory: Fragment) {
        self.free.push(self.slots.len());
        self.slots.push(Some(memory));
    }

    /// Whether a reader may make another slot now.
    fn may_grow(&self, most: usize) -> bool {
        self.grows && !self.growing && !self.full && self.slots.len() < most
    }
}

/// Consecutive jobs that share a slot.
struct Group {
    slot: usize,
    memory: Fragment,
    routed: Routed,
    /// The next of the routed jobs to be claimed.
    next: AtomicUsize,
    /// Jobs that are not done.
    left: AtomicUsize,
    /// By routed job: whether its bytes lie in the slot.
    filled: SmallVec<[AtomicBool; 8]>,
}

/// A group's jobs that are read through the page cache, and how; the others have been left. At least one.
#[derive(Default)]
struct Routed {
    jobs: SmallVec<[(usize, Way); 8]>,
}

/// A job that a reader has claimed, and where it is to put the bytes.
pub(super) struct Claim {
    group: Arc<Group>,
    /// Which of the group's routed jobs it is.
    place: usize,
    pub(super) index: usize,
    pub(super) way: Way,
}

impl<'a> Ring<'a> {
    /// A ring with the slots that memory is long enough for; without any, they are made when they are needed. Memory for
    /// more of them, as where little of a file is wanted, is left to others.
    pub(super) fn open(
        device: &Device,
        staging: Staging<'a>,
        first: Option<Fragment>,
        landing: Landing<'a>,
    ) -> Result<Self> {
        let mut state = State::default();
        let cut = |slot: usize| first.as_ref()?.slice(slot as u64 * staging.slot_bytes, staging.slot_bytes);
        for memory in (0..).map_while(cut) {
            // All of it is there, so all of it is taken; the first slot is the ring's by rights.
            let taken = staging.budget.take(staging.slot_jobs);
            if state.slots.len() < staging.slots && (taken || state.slots.is_empty()) {
                state.add(memory);
            } else if taken {
                staging.budget.leave(&memory, staging.slot_jobs);
            }
        }
        // What is no whole slot is in the way of others all the same.
        let rest = first.as_ref().map_or(0, Fragment::len) % staging.slot_bytes;
        staging.budget.take((rest * staging.slot_jobs as u64).div_ceil(staging.slot_bytes) as usize);
        let launches = landing.plan.parts.iter().any(|part| part.on_device);
        let count = if launches { LAUNCH_STREAMS } else { 1 };
        let streams = (0..count).map(|_| device.driver().stream()).collect::<Result<_>>()?;
        Ok(Self { landing, staging, streams, state: Mutex::new(state), changed: Condvar::new() })
    }

    /// What empties this slot.
    fn stream(&self, slot: usize) -> &dyn Stream {
        &*self.streams[slot % self.streams.len()]
    }

    /// Lets slots be made, now that all readers have been started: a thread starts slowly while memory is made ready.
    pub(super) fn let_grow(&self) {
        self.state().grows = true;
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'g>(&self, state: MutexGuard<'g, State>) -> MutexGuard<'g, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job and its place; waits for a free slot if it must. `None` when no job is left, or the load is over.
    /// What is better read past the page cache is left to others, and takes no slot.
    pub(super) fn claim(&self, work: &Work<'_>, routes: &Routes<'_>) -> Result<Option<Claim>> {
        let mut state = self.state();
        loop {
            if let Some(group) = &state.current {
                let place = group.next.fetch_add(1, Ordering::Relaxed);
                if let Some(&(index, way)) = group.routed.jobs.get(place) {
                    return Ok(Some(Claim { group: Arc::clone(group), place, index, way }));
                }
                state.current = None;
            }
            if work.is_over() {
                return Ok(None);
            }
            if state.routed.is_empty() {
                let Some(jobs) = work.next_group() else { return self.end(state, work).map(|()| None) };
                // Asking what is cached takes a while: not under the lock.
                state.routing += 1;
                drop(state);
                let routed = self.route(jobs, work, routes);
                state = self.state();
                state.routing -= 1;
                state.routed.extend(routed);
            } else if let Some(slot) = state.free.pop() {
                let (memory, routed) = (state.slots[slot].clone(), state.routed.pop_front());
                state.current =
                    memory.zip(routed).map(|(memory, routed)| Arc::new(Group::new(slot, memory, routed)));
                self.changed.notify_all();
            } else if state.may_grow(self.staging.slots) {
                let first = state.slots.is_empty();
                state.growing = true;
                drop(state);
                state = self.grow(first)?;
            } else if !state.waiting
                && let Some(group) = state.copying.pop_front()
            {
                state.waiting = true;
                drop(state);
                state = self.wait_for(&group, work)?;
            } else if state.full && state.slots.is_empty() {
                // Whoever was refused says so.
                return Ok(None);
            } else {
                state = self.wait(state);
            }
        }
    }

    /// No group is left for the caller: leaves what is free to others, and waits for the copies that no one waits for,
    /// since no one else may come.
    fn end<'g>(&'g self, mut state: MutexGuard<'g, State>, work: &Work<'_>) -> Result<()> {
        state.ended = true;
        for slot in std::mem::take(&mut state.free) {
            self.freed(&mut state, slot);
        }
        while !state.waiting
            && let Some(group) = state.copying.pop_front()
        {
            state.waiting = true;
            drop(state);
            state = self.wait_for(&group, work)?;
        }
        Ok(())
    }

    /// A slot is not used any more, or not for now.
    fn freed(&self, state: &mut State, slot: usize) {
        match state.ended && state.routing == 0 && state.routed.is_empty() {
            true => {
                let memory = state.slots[slot].take();
                memory.iter().for_each(|memory| self.staging.budget.leave(memory, self.staging.slot_jobs));
            }
            false => state.free.push(slot),
        }
    }

    /// Decides how a group's jobs are read. `None` when all of them are left to others.
    fn route(&self, jobs: Range<usize>, work: &Work<'_>, routes: &Routes<'_>) -> Option<Routed> {
        let mut routed = Routed::default();
        for index in jobs {
            match routes.way(&self.landing.plan.jobs[index]) {
                Way::Past => work.leave(index),
                way => routed.jobs.push((index, way)),
            }
        }
        (!routed.jobs.is_empty()).then_some(routed)
    }

    /// Makes a slot. When that is refused, those there are have to do; without any, it is an error. Room for the first is
    /// there by rights.
    fn grow(&self, first: bool) -> Result<MutexGuard<'_, State>> {
        let room = self.staging.budget.take(self.staging.slot_jobs);
        let placed = match room || first {
            true => self.staging.place(1).map(Some),
            false => Ok(None),
        };
        let mut state = self.state();
        state.growing = false;
        self.changed.notify_all();
        match placed {
            // What is left is for readers past the page cache.
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

    /// Waits for a group's copy, and frees its slot and those whose copies have ended too.
    fn wait_for(&self, group: &Arc<Group>, work: &Work<'_>) -> Result<MutexGuard<'_, State>> {
        let waited = self.stream(group.slot).wait(group.slot);
        let mut state = self.state();
        state.waiting = false;
        self.changed.notify_all();
        waited?;
        self.landed(&mut state, group, work);
        while let Some(next) = state.copying.front()
            && self.stream(next.slot).has_passed(next.slot)?
        {
            if let Some(group) = state.copying.pop_front() {
                self.landed(&mut state, &group, work);
            }
        }
        Ok(state)
    }

    fn landed(&self, state: &mut State, group: &Group, work: &Work<'_>) {
        self.freed(state, group.slot);
        group.filled_jobs().for_each(|job| work.landed(job));
    }

    /// Counts a claimed job as done: its bytes lie in their place, or (`filled` is false) it is left to others. The last
    /// of a group submits the copy.
    pub(super) fn done(&self, claim: &Claim, filled: bool, fill: &Fill<'_>) -> Result<()> {
        let group = &claim.group;
        group.filled[claim.place].store(filled, Ordering::Relaxed);
        // AcqRel (G2): whoever counts the last job sees what the others have written.
        if group.left.fetch_sub(1, Ordering::AcqRel) != 1 {
            return Ok(());
        }
        let copies = self.submit(group, fill)?;
        let mut state = self.state();
        match copies {
            0 => self.freed(&mut state, group.slot),
            _ => state.copying.push_back(Arc::clone(group)),
        }
        self.changed.notify_all();
        Ok(())
    }

    /// Enqueues the copies of a group, one for each run of jobs that are filled, and what the device is to transform. Returns how many.
    fn submit(&self, group: &Group, fill: &Fill<'_>) -> Result<usize> {
        let (mut submitted, stream) = (0, self.stream(group.slot));
        let plan = self.landing.plan;
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
            // For the memory of the whole run.
            self.landing.address(last)?;
            let (to, from) = (self.landing.address(first)?, self.place(group, first));
            if launches {
                let (form, counters) = (self.form(first), fill.device_counters(first));
                let Some(transform) = self.landing.transform(jobs, from, form, to, counters) else {
                    continue;
                };
                // SAFETY: P4, P5: as for the copy below. The counters outlive the fill.
                unsafe { stream.transform(&transform) }?;
            } else {
                let bytes = last.offset + last.span - first.offset;
                // SAFETY: W1, P2: the run's span lies in a region that the target keeps, and no other copy's overlaps it. G1,
                // G2: its bytes lie in the slot, which is not free before the event recorded below has passed. The load waits
                // for the stream and, should that fail, the region's pool synchronizes its memory before anything is
                // reused (W2); so does that of the slots.
                unsafe { stream.copy_to_device(to, from, bytes) }?;
            }
            submitted += 1;
        }
        if submitted > 0 {
            stream.record(group.slot)?;
        }
        Ok(submitted)
    }

    /// How readers leave what is to be transformed.
    fn form(&self, job: &Job) -> PartForm {
        match self.landing.plan.part(job).is_some_and(Part::is_dense) {
            true => PartForm::Dense,
            false => PartForm::AsInFile,
        }
    }

    /// Where a claimed job's bytes go.
    pub(super) fn start(&self, claim: &Claim) -> *mut u8 {
        self.place(&claim.group, &self.landing.plan.jobs[claim.index])
    }

    fn place(&self, group: &Group, job: &Job) -> *mut u8 {
        group.memory.as_ptr().cast_mut().wrapping_add(job.slot as usize)
    }

    /// Wakes the readers that wait, so that they see that the load is over.
    pub(super) fn wake(&self) {
        drop(self.state());
        self.changed.notify_all();
    }

    /// Says that no one uses the slots, so that the pool need not wait for the device before they are used again.
    ///
    /// # Safety
    /// All readers have ended, and so has what they enqueued.
    pub(super) unsafe fn settle(&self) {
        // SAFETY: as the caller promises.
        self.state().slots.iter().flatten().for_each(|memory| unsafe { memory.assume_unused() });
    }

    /// Waits until every copy has ended; after an error too, as far as that can be told. All readers have ended.
    pub(super) fn drain(&self, work: &Work<'_>) -> Result<()> {
        self.streams.iter().map(|stream| stream.synchronize()).fold(Ok(()), Result::and)?;
        let copied = std::mem::take(&mut self.state().copying);
        copied.iter().flat_map(|group| group.filled_jobs()).for_each(|job| work.landed(job));
        Ok(())
    }
}

impl Group {
    fn new(slot: usize, memory: Fragment, routed: Routed) -> Self {
        let filled = routed.jobs.iter().map(|_| AtomicBool::new(false)).collect();
        let left = AtomicUsize::new(routed.jobs.len());
        Self { slot, memory, routed, next: AtomicUsize::new(0), left, filled }
    }

    /// The jobs whose bytes lie in the slot, once all are done.
    fn filled_jobs(&self) -> impl Iterator<Item = usize> {
        let filled = self.filled.iter().map(|filled| filled.load(Ordering::Relaxed));
        self.routed.jobs.iter().zip(filled).filter_map(|(&(job, _), filled)| filled.then_some(job))
    }
}
