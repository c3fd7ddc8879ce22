//! Regions that are backed, and given back, in parts: each tensor's memory goes when the tensor does, though its neighbours live.
//!
//! A region is one range of addresses, laid out without regard to parts. The whole units of memory that one fragment has to
//! itself are a part of their own; the units between them, which neighbours share, are cut into parts of bounded size.
//! So nothing is padded, and a dropped fragment gives back all of its bytes but those in the units at its two ends, which go
//! with the neighbours there.
//!
//! ```text
//! fragments  |aaaaaaaaaaaaaaaaa|b|c|dddddddddddddddddddd|
//! units      |.....|.....|.....|.....|.....|.....|.....|
//! parts      |     a           |a b c d|       d       |
//! ```
//!
//! Memory is put behind the parts in the order of their addresses, by [`Bases::bring_up`](crate::Bases::bring_up), while others wait for
//! those that they need.

use std::fmt;
use std::ptr::NonNull;
use std::sync::{Arc, PoisonError};

use crate::memory::{Memory, MemoryError, RawRegion};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Condvar, Mutex, MutexGuard};

/// A part of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

/// The longest part that fragments share, where units are not longer.
const SHARED_BYTES: u64 = 32 << 20;

/// Cuts a region of so many bytes, a multiple of the unit, whose fragments lie at these offsets, ascending, and are so long (more
/// than 0), into parts of whole units.
pub(crate) fn cut(
    fragments: impl IntoIterator<Item = (u64, u64)>,
    region_bytes: u64,
    unit: u64,
) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut done = 0;
    let share = |parts: &mut Vec<Part>, from: u64, to: u64| {
        let longest = (SHARED_BYTES / unit).max(1) * unit;
        let mut offset = from;
        while offset < to {
            let bytes = longest.min(to - offset);
            parts.push(Part { offset, bytes });
            offset += bytes;
        }
    };
    for (offset, bytes) in fragments {
        let (first, end) = (offset.next_multiple_of(unit), (offset + bytes) / unit * unit);
        if first < end {
            share(&mut parts, done, first);
            parts.push(Part { offset: first, bytes: end - first });
            done = end;
        }
    }
    share(&mut parts, done, region_bytes);
    parts
}

/// What is behind a region.
pub(crate) struct Backing {
    memory: Arc<dyn Memory>,
    base: NonNull<u8>,
    parts: Vec<Part>,
    state: Mutex<State>,
    moved: Condvar,
    /// Parts that are on their way back.
    leaving: AtomicUsize,
}

impl fmt::Debug for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backing").field("parts", &self.parts.len()).field("state", &self.state()).finish()
    }
}

// SAFETY: an address and numbers; the memory is Send and Sync.
unsafe impl Send for Backing {}
// SAFETY: as above.
unsafe impl Sync for Backing {}

#[derive(Debug)]
struct State {
    /// By part: how many live fragments lie in it. Before the region has been cut into fragments, 1.
    users: Vec<u32>,
    /// By part.
    stage: Vec<Stage>,
    /// Parts before this one have been brought up, or need not be.
    next: usize,
    /// Why a part cannot be brought up.
    failed: Option<Arc<str>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Absent,
    Coming,
    Present,
    Gone,
}

impl Backing {
    pub(crate) fn new(memory: Arc<dyn Memory>, region: RawRegion, parts: Vec<Part>) -> Self {
        let state = State {
            users: vec![1; parts.len()],
            stage: vec![Stage::Absent; parts.len()],
            next: 0,
            failed: None,
        };
        let (state, moved, leaving) = (Mutex::new(state), Condvar::new(), AtomicUsize::new(0));
        Self { memory, base: region.base, parts, state, moved, leaving }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.moved.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn raw(&self, index: usize) -> RawRegion {
        let Part { offset, bytes } = self.parts[index];
        // SAFETY: M1, V1: the parts lie within the range that was reserved.
        RawRegion { base: unsafe { self.base.add(offset as usize) }, bytes }
    }

    /// The parts that a fragment lies in.
    fn parts_of(&self, offset: u64, bytes: u64) -> std::ops::Range<usize> {
        let first = self.parts.partition_point(|part| part.offset + part.bytes <= offset);
        let end = self.parts.partition_point(|part| part.offset < offset + bytes);
        first..end
    }

    /// The region has been cut into these fragments: offsets and bytes (more than 0).
    pub(crate) fn cut_into(&self, fragments: impl Iterator<Item = (u64, u64)>) {
        let mut state = self.state();
        state.users.fill(0);
        for (offset, bytes) in fragments {
            for part in self.parts_of(offset, bytes) {
                state.users[part] += 1;
            }
        }
    }

    /// A fragment is free: returns the parts in which no other lies, to be passed to [`give_back`](Self::give_back).
    pub(crate) fn leave(&self, offset: u64, bytes: u64) -> Vec<usize> {
        let mut state = self.state();
        let left = self.parts_of(offset, bytes).filter(|&part| {
            state.users[part] = state.users[part].saturating_sub(1);
            state.users[part] == 0
        });
        let left: Vec<usize> = left.collect();
        self.leaving.fetch_add(left.len(), Ordering::Relaxed);
        left
    }

    /// Whether parts are on their way back.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed) > 0
    }

    /// Bytes of a part.
    pub(crate) fn bytes(&self, part: usize) -> u64 {
        self.parts[part].bytes
    }

    /// Takes the memory from behind a part that was left. I1: nothing can touch it.
    pub(crate) fn give_back(&self, part: usize) -> Result<(), MemoryError> {
        let mut state = self.state();
        while state.stage[part] == Stage::Coming {
            state = self.wait(state);
        }
        let stage = std::mem::replace(&mut state.stage[part], Stage::Gone);
        drop(state);
        let decommitted = match (stage, self.memory.parted()) {
            // SAFETY: V2: it was committed as just this part, and is given back once. The caller answers for the rest.
            (Stage::Present, Ok(parted)) => unsafe { parted.decommit(self.raw(part)) },
            _ => Ok(()),
        };
        self.leaving.fetch_sub(1, Ordering::Relaxed);
        decommitted
    }

    /// Puts memory behind all parts in their order, until `stop` says so or one is refused.
    pub(crate) fn bring_up(&self, stop: &dyn Fn() -> bool) {
        let Ok(parted) = self.memory.parted() else { return };
        for index in 0..self.parts.len() {
            // Without the lock: it is the caller's code.
            let stopped = stop();
            let mut state = self.state();
            // Another thread brings it up: it is there, or refused, before the next one is looked at.
            while state.stage[index] == Stage::Coming {
                state = self.wait(state);
            }
            let absent = state.stage[index] == Stage::Absent && state.failed.is_none();
            if absent && stopped {
                state.failed = Some("what it was for has been stopped".into());
            } else if absent {
                state.stage[index] = Stage::Coming;
                drop(state);
                let committed = parted.commit(self.raw(index));
                state = self.state();
                state.stage[index] = if committed.is_ok() { Stage::Present } else { Stage::Absent };
                state.failed = committed.err().map(|error| error.to_string().into());
            }
            state.next = state.next.max(index + usize::from(state.failed.is_none()));
            let failed = state.failed.is_some();
            drop(state);
            self.moved.notify_all();
            if failed {
                return;
            }
        }
    }

    /// Bytes of all parts.
    pub(crate) fn len(&self) -> u64 {
        self.parts.last().map_or(0, |part| part.offset + part.bytes)
    }

    /// Bytes of the parts that there is memory behind.
    pub(crate) fn present_bytes(&self) -> u64 {
        let state = self.state();
        let parts = self.parts.iter().zip(&state.stage);
        parts.filter(|(_, stage)| **stage == Stage::Present).map(|(part, _)| part.bytes).sum()
    }

    /// Waits until there is memory behind everything before `end`.
    pub(crate) fn wait_for(&self, end: u64) -> Result<(), Arc<str>> {
        let parts = self.parts.partition_point(|part| part.offset < end);
        let mut state = self.state();
        while state.next < parts {
            if let Some(failed) = &state.failed {
                return Err(Arc::clone(failed));
            }
            state = self.wait(state);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UNIT: u64 = 2 << 20;

    fn ends(parts: &[Part]) -> Vec<(u64, u64)> {
        parts.iter().map(|part| (part.offset / UNIT, (part.offset + part.bytes) / UNIT)).collect()
    }

    #[test]
    fn what_a_fragment_has_to_itself_is_a_part_and_the_rest_is_shared() {
        let fragments = [(0, 5 * UNIT + 1000), (5 * UNIT + 1024, 8192), (5 * UNIT + 9216, 3 * UNIT)];
        let bytes = 8 * UNIT + 9216;
        assert_eq!(
            ends(&cut(fragments, bytes.next_multiple_of(UNIT), UNIT)),
            [(0, 5), (5, 6), (6, 8), (8, 9)]
        );
        // Aligned tensors share nothing.
        assert_eq!(ends(&cut([(0, UNIT), (UNIT, 4 * UNIT)], 5 * UNIT, UNIT)), [(0, 1), (1, 5)]);
        // Small ones share parts of at most 32 MiB.
        let small = (0..4000).map(|n| (n * 20_480, 20_480));
        assert_eq!(ends(&cut(small, 40 * UNIT, UNIT)), [(0, 16), (16, 32), (32, 40)]);
    }

    proptest! {
        #[test]
        fn parts_cover_the_region_once_and_no_fragment_pins_more_than_its_ends(
            sizes in prop::collection::vec(prop_oneof![1..5000_u64, 1..200_000_u64], 1..60), shift in 8..14_u32
        ) {
            let unit = 1 << shift;
            let mut end: u64 = 0;
            let fragments: Vec<(u64, u64)> = sizes.iter().map(|&bytes| {
                let offset = end.next_multiple_of(256);
                end = offset + bytes;
                (offset, bytes)
            }).collect();
            let parts = cut(fragments.iter().copied(), end.next_multiple_of(unit), unit);
            let mut at = 0;
            for part in &parts {
                prop_assert_eq!(part.offset, at);
                prop_assert!(part.bytes > 0 && part.bytes % unit == 0);
                at += part.bytes;
            }
            prop_assert_eq!(at, end.next_multiple_of(unit));
            for (offset, bytes) in fragments {
                let alone: u64 = parts.iter()
                    .filter(|part| offset <= part.offset && part.offset + part.bytes <= offset + bytes)
                    .map(|part| part.bytes).sum();
                prop_assert!(alone + 2 * unit > bytes, "{bytes} at {offset}: only {alone} are its own");
            }
        }
    }
}
