//! What is known of the uses of a range: fences of those that were recorded, or that it was exposed, so that they
//! cannot all be known.

use std::fmt;
use std::mem;
use std::sync::{Arc, PoisonError};

use crate::fence::Fence;
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use crate::sync::{Mutex, MutexGuard, OnceLock};

/// A recorded use: it ends with the fence.
#[derive(Clone)]
pub(crate) struct Recorded {
    pub(crate) stream: u64,
    pub(crate) fence: Arc<dyn Fence>,
}

impl fmt::Debug for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorded").field("stream", &self.stream).finish_non_exhaustive()
    }
}

/// The uses of a range, by all its owners.
#[derive(Debug, Default)]
pub(crate) struct Uses {
    /// Its address was given out: after the last drop the memory is synchronized, whatever was recorded.
    exposed: AtomicBool,
    /// Guards of uses that have not ended. Those of a range without owners were forgotten, and their uses are not known.
    open: AtomicU32,
    /// The latest use on each stream. Most ranges have none, and a load makes very many ranges.
    recorded: OnceLock<Box<Mutex<Vec<Recorded>>>>,
}

impl Uses {
    pub(crate) fn new(exposed: bool, recorded: Vec<Recorded>) -> Self {
        let uses = Self { exposed: AtomicBool::new(exposed), ..Self::default() };
        if !recorded.is_empty() {
            *uses.recorded() = recorded;
        }
        uses
    }

    /// The address is given out. What happens with it is ordered before the last drop by the count of owners.
    #[inline]
    pub(crate) fn expose(&self) {
        // A look first: of a range that many threads view, the line stays shared.
        if !self.exposed.load(Ordering::Relaxed) {
            self.exposed.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn settle(&self) {
        self.exposed.store(false, Ordering::Relaxed);
    }

    /// A use begins; [`end`](Self::end) is its end.
    pub(crate) fn begin(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn end(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// A use on a stream that ends with the fence.
    pub(crate) fn add(&self, stream: u64, fence: Arc<dyn Fence>) {
        let mut recorded = self.recorded();
        // A stream's later fence passes after its earlier ones (O2).
        let earlier = match recorded.iter_mut().find(|use_| use_.stream == stream) {
            Some(use_) => Some(mem::replace(&mut use_.fence, fence)),
            None => {
                recorded.push(Recorded { stream, fence });
                None
            }
        };
        // A fence may belong to a driver: it goes without the lock.
        drop(recorded);
        drop(earlier);
    }

    /// Whether all uses through guards are known to have ended.
    pub(crate) fn have_ended(&self) -> bool {
        if self.open.load(Ordering::Relaxed) > 0 {
            return false;
        }
        if self.recorded.get().is_none() {
            return true;
        }
        let recorded = self.recorded();
        recorded.iter().all(|use_| matches!(use_.fence.has_passed(), Ok(true)))
    }

    /// For the last owner: whether the range was exposed, and the recorded uses.
    pub(crate) fn into_parts(self) -> (bool, Vec<Recorded>) {
        let recorded = self.recorded.into_inner().map(|recorded| recorded.into_inner());
        let recorded = recorded.map(|recorded| recorded.unwrap_or_else(PoisonError::into_inner));
        let exposed = self.exposed.load(Ordering::Relaxed) || self.open.load(Ordering::Relaxed) > 0;
        (exposed, recorded.unwrap_or_default())
    }

    fn recorded(&self) -> MutexGuard<'_, Vec<Recorded>> {
        let recorded = self.recorded.get_or_init(Box::default);
        recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
