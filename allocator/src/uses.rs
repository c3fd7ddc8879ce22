//! What is known of the uses of a range: fences of those that were recorded, or that it was exposed, so that they
//! cannot all be known.

use std::fmt;
use std::mem;
use std::sync::{Arc, OnceLock, PoisonError};

use crate::error::{Error, Result};
use crate::fence::{Fence, OrderedStream};
use crate::fragment::Fragment;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, MutexGuard};

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
    /// The latest use on each stream. Most ranges have none, and a load makes very many ranges.
    recorded: OnceLock<Box<Mutex<Vec<Recorded>>>>,
}

impl Uses {
    pub(crate) fn new(exposed: bool, recorded: Vec<Recorded>) -> Self {
        let uses = Self { exposed: AtomicBool::new(exposed), recorded: OnceLock::new() };
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

    fn add(&self, stream: u64, fence: Arc<dyn Fence>) {
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

    /// Whether all recorded uses are known to have ended.
    pub(crate) fn have_ended(&self) -> bool {
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
        (self.exposed.load(Ordering::Relaxed), recorded.unwrap_or_default())
    }

    fn recorded(&self) -> MutexGuard<'_, Vec<Recorded>> {
        let recorded = self.recorded.get_or_init(Box::default);
        recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A fragment in use on a stream; see [`Fragment::use_on`].
#[must_use = "the use ends with the guard: keep it until the work has been enqueued"]
pub struct StreamUse<'a> {
    fragment: &'a Fragment,
    stream: &'a dyn OrderedStream,
}

impl<'a> StreamUse<'a> {
    pub(crate) fn new(fragment: &'a Fragment, stream: &'a dyn OrderedStream) -> Result<Self> {
        match stream.check() {
            Ok(()) => Ok(Self { fragment, stream }),
            Err(source) => Err(failed(fragment, source)),
        }
    }

    /// First address, for work that is enqueued on the stream before the guard ends.
    pub fn as_ptr(&self) -> *const u8 {
        self.fragment.address()
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.fragment.len()
    }

    /// Whether the length is 0.
    pub fn is_empty(&self) -> bool {
        self.fragment.is_empty()
    }

    /// Ends the use: its range goes back, once it is dropped, when what has been enqueued so far has ended. A drop of the guard does the
    /// same, and logs an error.
    ///
    /// # Errors
    /// When the stream records no event, as while it is captured. Its uses cannot be known then, and the range is never
    /// given back.
    pub fn end(self) -> Result<()> {
        mem::ManuallyDrop::new(self).record()
    }

    fn record(&self) -> Result<()> {
        match self.stream.record() {
            Ok(fence) => {
                self.fragment.uses().add(self.stream.id(), fence);
                Ok(())
            }
            Err(source) => {
                // I1: what uses it, and for how long, is not known.
                self.fragment.keep_for_good();
                Err(failed(self.fragment, source))
            }
        }
    }
}

impl Drop for StreamUse<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.record() {
            tracing::error!(%error, "a use was not recorded: its memory is never given back");
        }
    }
}

impl fmt::Debug for StreamUse<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamUse")
            .field("fragment", &self.fragment)
            .field("stream", &self.stream.id())
            .finish()
    }
}

/// The only owner of a range, in use on a stream for writing; see [`Fragment::use_mut_on`].
#[derive(Debug)]
#[must_use = "the use ends with the guard: keep it until the work has been enqueued"]
pub struct StreamUseMut<'a>(StreamUse<'a>);

impl<'a> StreamUseMut<'a> {
    pub(crate) fn new(fragment: &'a mut Fragment, stream: &'a dyn OrderedStream) -> Result<Self> {
        StreamUse::new(fragment, stream).map(Self)
    }

    /// First address, for work that is enqueued on the stream before the guard ends.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.0.as_ptr().cast_mut()
    }

    /// As [`StreamUse::len`].
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// Whether the length is 0.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As [`StreamUse::end`].
    ///
    /// # Errors
    /// As [`StreamUse::end`].
    pub fn end(self) -> Result<()> {
        self.0.end()
    }
}

fn failed(fragment: &Fragment, source: crate::memory::MemoryError) -> Error {
    Error::Stream { pool: fragment.pool_name().into(), bytes: fragment.len(), source }
}
