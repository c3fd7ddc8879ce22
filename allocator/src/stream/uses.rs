//! [`Uses`]: the recorded uses of a range on streams, and whether its address was given out, so that there may be others.

use std::fmt;
use std::mem;
use std::sync::{Arc, PoisonError};

use super::fence::Fence;
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use crate::sync::{Mutex, MutexGuard, OnceLock};

/// A use that was recorded on a stream; it ends when the fence passes.
#[derive(Clone)]
pub(crate) struct RecordedUse {
    pub(crate) stream: u64,
    pub(crate) fence: Arc<dyn Fence>,
    /// Work before the fence may write to the range.
    pub(crate) writes: bool,
}

/// How a use accesses the range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// The number of open guards. Guards can be forgotten, billions of them: a count that has reached its maximum stays there, as
/// forgotten guards do.
#[derive(Debug, Default)]
struct Guards(AtomicU32);

impl Guards {
    fn open(&self) {
        let more = |count: u32| count.checked_add(1);
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    fn close(&self) {
        let fewer = |count: u32| if count == u32::MAX { None } else { count.checked_sub(1) };
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer);
    }

    fn any(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

impl fmt::Debug for RecordedUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordedUse").field("stream", &self.stream).finish_non_exhaustive()
    }
}

/// The uses of a range, by all its owners.
#[derive(Debug, Default)]
pub(crate) struct Uses {
    /// Its address was given out: after the last drop, the memory is synchronized whatever was recorded.
    exposed: AtomicBool,
    /// Guards of uses that have not ended. Those of a range without owners were forgotten, and their uses are unknown.
    open: Guards,
    /// The guards among them that write.
    writing: Guards,
    /// The latest use on each stream. Boxed on first use: most ranges have none, and a load makes very many ranges.
    recorded: OnceLock<Box<Mutex<Vec<RecordedUse>>>>,
}

impl Uses {
    pub(crate) fn new(exposed: bool, recorded: Vec<RecordedUse>) -> Self {
        let uses = Self { exposed: AtomicBool::new(exposed), ..Self::default() };
        if !recorded.is_empty() {
            *uses.recorded() = recorded;
        }
        uses
    }

    /// Notes that the address is given out. The count of owners orders its uses before the last drop.
    #[inline]
    pub(crate) fn expose(&self) {
        // Loads first, so that the cache line of a range that many threads view stays shared.
        if !self.exposed.load(Ordering::Relaxed) {
            self.exposed.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn settle(&self) {
        self.exposed.store(false, Ordering::Relaxed);
    }

    /// A use begins; [`end`](Self::end) is its end.
    pub(crate) fn begin(&self, access: Access) {
        self.open.open();
        if access == Access::Write {
            self.writing.open();
        }
    }

    pub(crate) fn end(&self, access: Access) {
        self.open.close();
        if access == Access::Write {
            self.writing.close();
        }
    }

    /// A use on a stream that ends with the fence.
    pub(crate) fn add(&self, stream: u64, fence: Arc<dyn Fence>, access: Access) {
        let writes = access == Access::Write;
        let mut recorded = self.recorded();
        // A stream's later fence passes after its earlier ones (O2).
        let earlier = match recorded.iter_mut().find(|use_| use_.stream == stream) {
            Some(use_) => {
                use_.writes |= writes;
                Some(mem::replace(&mut use_.fence, fence))
            }
            None => {
                recorded.push(RecordedUse { stream, fence, writes });
                None
            }
        };
        // A fence may belong to a driver: it is dropped without the lock.
        drop(recorded);
        drop(earlier);
    }

    /// Whether all uses through guards are known to have ended. Fences that cannot be queried count as not passed.
    pub(crate) fn have_ended(&self, can_ask: impl FnOnce() -> bool) -> bool {
        !self.open.any() && self.have_passed(|_| true, can_ask)
    }

    /// As [`have_ended`](Self::have_ended), for uses that write.
    pub(crate) fn writes_have_ended(&self, can_ask: impl FnOnce() -> bool) -> bool {
        !self.writing.any() && self.have_passed(|use_| use_.writes, can_ask)
    }

    /// Whether the fences of these uses have passed.
    fn have_passed(&self, which: impl Fn(&RecordedUse) -> bool, can_ask: impl FnOnce() -> bool) -> bool {
        if self.recorded.get().is_none() {
            return true;
        }
        if !can_ask() {
            return false;
        }
        // Fences are queried and dropped without the lock: they may be a driver's code.
        let uses: Vec<RecordedUse> = self.recorded().iter().filter(|use_| which(use_)).cloned().collect();
        uses.iter().all(|use_| matches!(use_.fence.has_passed(), Ok(true)))
    }

    /// For the last owner: whether the range was exposed, and the recorded uses.
    pub(crate) fn into_parts(self) -> (bool, Vec<RecordedUse>) {
        let recorded = self.recorded.into_inner().map(|recorded| recorded.into_inner());
        let recorded = recorded.map(|recorded| recorded.unwrap_or_else(PoisonError::into_inner));
        let exposed = self.exposed.load(Ordering::Relaxed) || self.open.any();
        (exposed, recorded.unwrap_or_default())
    }

    fn recorded(&self) -> MutexGuard<'_, Vec<RecordedUse>> {
        let recorded = self.recorded.get_or_init(Box::default);
        recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn guards_that_are_forgotten_stay_open_however_many_there_are() {
        for access in [Access::Read, Access::Write] {
            let uses = Uses::default();
            uses.begin(access);
            // Billions of others have been forgotten since.
            uses.open.0.store(u32::MAX - 1, Ordering::Relaxed);
            uses.writing.0.store(u32::MAX - 1, Ordering::Relaxed);
            (0..3).for_each(|_| uses.begin(access));
            assert!(!uses.have_ended(|| true));
            // That these end says nothing of those.
            (0..3).for_each(|_| uses.end(access));
            assert!(!uses.have_ended(|| true) && uses.into_parts().0);
        }
    }

    #[test]
    fn guards_that_end_leave_nothing() {
        let uses = Uses::default();
        uses.begin(Access::Read);
        uses.begin(Access::Write);
        assert!(!uses.have_ended(|| true) && !uses.writes_have_ended(|| true));
        uses.end(Access::Write);
        assert!(!uses.have_ended(|| true) && uses.writes_have_ended(|| true));
        uses.end(Access::Read);
        assert!(uses.have_ended(|| true) && !uses.into_parts().0);
    }
}
