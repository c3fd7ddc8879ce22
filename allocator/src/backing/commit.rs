//! [`Backing`]: the memory behind the parts of one region.

use std::fmt;
use std::mem;
use std::ptr::NonNull;
use std::sync::{Arc, PoisonError};

use super::cut::RegionPart;
use crate::error::MemoryError;
use crate::fork::Process;
use crate::memory::{Memory, RawRegion};
use crate::sync::{Condvar, Mutex, MutexGuard};

/// The parts of a region, and which of them are committed.
pub(crate) struct Backing {
    memory: Arc<dyn Memory>,
    base: NonNull<u8>,
    /// Ascending.
    parts: Vec<RegionPart>,
    state: Mutex<State>,
    moved: Condvar,
    process: Process,
}

impl Drop for Backing {
    fn drop(&mut self) {
        if self.is_forked_child() {
            // It may be the last reference, and the memory's drop would call a driver.
            mem::forget(Arc::clone(&self.memory));
        }
    }
}

impl fmt::Debug for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backing").field("parts", &self.parts.len()).finish_non_exhaustive()
    }
}

// SAFETY: an address and numbers; the memory is Send and Sync.
unsafe impl Send for Backing {}
// SAFETY: as above.
unsafe impl Sync for Backing {}

#[derive(Debug)]
struct State {
    /// By part: the number of live fragments in it. Before the region is cut into fragments, 1.
    users: Vec<usize>,
    /// By part.
    stage: Vec<Stage>,
    /// Parts that are not `Gone`, or were `Present` and could not be decommitted (J2).
    kept: usize,
    /// Parts before this one are committed, or need not be.
    next: usize,
    /// Why no more parts can be committed.
    failed: Option<Arc<str>>,
}

/// The stage of a part (J1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Absent,
    Coming,
    Present,
    Gone,
}

/// A part that is being committed. If the memory panics, it becomes absent again.
struct Uncommitted<'a> {
    backing: &'a Backing,
    part: usize,
}

impl Drop for Uncommitted<'_> {
    fn drop(&mut self) {
        self.backing.came(self.part, Err("the memory panicked".into()));
    }
}

impl Backing {
    /// The backing of a range that was just reserved. The parts lie within it.
    pub(crate) fn new(memory: Arc<dyn Memory>, range: RawRegion, parts: Vec<RegionPart>) -> Self {
        let count = parts.len();
        let state = State {
            users: vec![1; count],
            stage: vec![Stage::Absent; count],
            kept: count,
            next: 0,
            failed: None,
        };
        let (state, moved, process) = (Mutex::new(state), Condvar::new(), Process::current());
        Self { memory, base: range.base, parts, state, moved, process }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.moved.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn raw(&self, index: usize) -> RawRegion {
        let RegionPart { offset, bytes } = self.parts[index];
        // SAFETY: M1, V1: the parts lie within the range that was reserved.
        RawRegion { base: unsafe { self.base.add(offset as usize) }, bytes }
    }

    /// The parts that a fragment lies in.
    fn parts_of(&self, offset: u64, bytes: u64) -> std::ops::Range<usize> {
        let end = offset.saturating_add(bytes);
        let first = self.parts.partition_point(|part| part.end() <= offset);
        first..self.parts.partition_point(|part| part.offset < end).max(first)
    }

    /// Whether parts cover each byte of a fragment.
    pub(crate) fn covers(&self, offset: u64, bytes: u64) -> bool {
        let parts = &self.parts[self.parts_of(offset, bytes)];
        let gapless = parts.windows(2).all(|pair| pair[0].end() == pair[1].offset);
        let (first, last) = (parts.first(), parts.last());
        first.is_some_and(|first| first.offset <= offset)
            && last.is_some_and(|last| offset.checked_add(bytes).is_some_and(|end| end <= last.end()))
            && gapless
    }

    /// The region was cut into these fragments, given by offsets and bytes (more than 0). Returns the parts in which none lies; pass them
    /// to [`give_back`](Self::give_back).
    pub(crate) fn cut_into(&self, fragments: impl Iterator<Item = (u64, u64)>) -> Vec<usize> {
        let mut state = self.state();
        state.users.fill(0);
        for (offset, bytes) in fragments {
            for part in self.parts_of(offset, bytes) {
                // Each is a fragment in memory, so the count cannot overflow.
                state.users[part] += 1;
            }
        }
        (0..self.parts.len()).filter(|&part| state.users[part] == 0).collect()
    }

    /// A fragment, or the whole region if it was not cut yet, is free. Returns the parts in which no other fragment lies; pass them to
    /// [`give_back`](Self::give_back).
    pub(crate) fn leave(&self, offset: u64, bytes: u64) -> Vec<usize> {
        let mut state = self.state();
        let last = |&part: &usize| {
            // A part without users was returned already, and must not be returned twice.
            let left = state.users[part].checked_sub(1);
            debug_assert!(left.is_some(), "part {part} has no user to leave it");
            state.users[part] = left.unwrap_or_default();
            left == Some(0)
        };
        self.parts_of(offset, bytes).filter(last).collect()
    }

    /// Whether each part is gone, so that the range can be released (J2).
    pub(crate) fn is_gone(&self) -> bool {
        self.state().stage.iter().all(|stage| *stage == Stage::Gone)
    }

    /// Whether a part could not be decommitted, so that the range stays reserved (J2). For a region that is gone.
    pub(crate) fn is_lost(&self) -> bool {
        self.state().kept > 0
    }

    /// Bytes of a part.
    pub(crate) fn bytes(&self, part: usize) -> u64 {
        self.parts[part].bytes
    }

    /// Decommits a part in which no fragment lies. I1: nothing can touch it.
    pub(crate) fn give_back(&self, part: usize) -> Result<(), MemoryError> {
        let mut state = self.state();
        while state.stage[part] == Stage::Coming {
            state = self.wait(state);
        }
        let stage = mem::replace(&mut state.stage[part], Stage::Gone);
        drop(state);
        // Wakes threads that wait for this part.
        self.moved.notify_all();
        let decommitted = match stage {
            Stage::Present => self.memory.parted().and_then(|parted| {
                // SAFETY: J1: it was committed as just this part, and is decommitted once, here. The caller answers for the rest.
                unsafe { parted.decommit(self.raw(part)) }
            }),
            Stage::Absent | Stage::Coming => Ok(()),
            Stage::Gone => return Ok(()),
        };
        if decommitted.is_ok() {
            self.state().kept -= 1;
        }
        decommitted
    }

    /// Whether this is a forked child of the process that reserved the range, where the memory must not be called.
    pub(crate) fn is_forked_child(&self) -> bool {
        !self.process.is_current()
    }

    /// Commits all parts in order, until `stop` returns true or one is refused. Waits for parts that another thread is committing.
    pub(crate) fn bring_up(&self, stop: &dyn Fn() -> bool) {
        if self.is_forked_child() {
            return;
        }
        for index in 0..self.parts.len() {
            // Without the lock: it runs the caller's code.
            let stopped = stop();
            let mut state = self.state();
            while state.stage[index] == Stage::Coming {
                state = self.wait(state);
            }
            if state.failed.is_none() && stopped && state.stage[index] == Stage::Absent {
                state.failed = Some("what it was for has been stopped".into());
                self.moved.notify_all();
            }
            if state.failed.is_some() {
                return;
            }
            if state.stage[index] == Stage::Absent {
                state.stage[index] = Stage::Coming;
                drop(state);
                let panicked = Uncommitted { backing: self, part: index };
                let committed = self.memory.parted().and_then(|parted| {
                    // SAFETY: V1: the part is whole units of the range. J1: it was absent, and no one else commits it. J2: the range is not
                    // released before it is gone.
                    unsafe { parted.commit(self.raw(index)) }
                });
                mem::forget(panicked);
                if !self.came(index, committed) {
                    return;
                }
            } else {
                state.next = state.next.max(index + 1);
                drop(state);
                self.moved.notify_all();
            }
        }
    }

    /// Ends the commit of a part that was `Coming`. Returns whether it succeeded.
    fn came(&self, part: usize, committed: Result<(), MemoryError>) -> bool {
        // Without the lock: formatting the error runs the memory's code.
        let refusal = committed.err().map(|error| Arc::from(error.to_string()));
        let came = refusal.is_none();
        let mut state = self.state();
        state.stage[part] = if came { Stage::Present } else { Stage::Absent };
        if came {
            state.next = state.next.max(part + 1);
        } else {
            state.failed = refusal;
        }
        drop(state);
        self.moved.notify_all();
        came
    }

    /// Bytes of all parts.
    pub(crate) fn parts_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }

    /// Bytes from the start to the end of the last part.
    pub(crate) fn len(&self) -> u64 {
        self.parts.last().map_or(0, RegionPart::end)
    }

    /// Bytes of the committed parts.
    pub(crate) fn present_bytes(&self) -> u64 {
        let state = self.state();
        let parts = self.parts.iter().zip(&state.stage);
        parts.filter(|(_, stage)| **stage == Stage::Present).map(|(part, _)| part.bytes).sum()
    }

    /// Waits until every part before `end` in which fragments lie is committed.
    pub(crate) fn wait_for(&self, end: u64) -> Result<(), Arc<str>> {
        let parts = self.parts.partition_point(|part| part.offset < end);
        let mut state = self.state();
        loop {
            // Only the last of these parts matters: those before it may be gone.
            let last = parts.checked_sub(1).map(|last| state.stage[last]);
            if last == Some(Stage::Gone) {
                return Err("it has been given back: no fragment lies there any more".into());
            }
            if state.next >= parts {
                return Ok(());
            }
            if let Some(failed) = &state.failed {
                return Err(Arc::clone(failed));
            }
            state = self.wait(state);
        }
    }
}
