//! Fragments in use on streams: guards whose end is recorded.

use std::fmt;
use std::mem;

use super::owned::Fragment;
use crate::error::{Error, MemoryError, Result};
use crate::stream::OrderedStream;
use crate::stream::uses::Access;

impl Fragment {
    /// Uses the range on a stream. Before the range is reused or released, the pool waits for the work that is enqueued there until the
    /// guard ends, and for nothing else. So a range that is only used through guards can be reused at once on the same stream, and
    /// elsewhere as soon as that work has ended.
    ///
    /// # Errors
    /// When uses on the stream cannot be recorded, as while it is captured, or in a forked child.
    pub fn use_on<'a>(&'a self, stream: &'a dyn OrderedStream) -> Result<StreamUse<'a>> {
        StreamUse::new(self, stream, Access::Read)
    }

    /// As [`use_on`](Self::use_on), for writing; `None` if this fragment is not the only owner. The caller orders the writes after
    /// earlier uses on other streams. Until the use is known to have ended, the CPU cannot [read](Self::as_bytes) the range.
    ///
    /// # Errors
    /// When uses on the stream cannot be recorded, as while it is captured, or in a forked child.
    pub fn use_mut_on<'a>(&'a mut self, stream: &'a dyn OrderedStream) -> Result<Option<StreamUseMut<'a>>> {
        if !self.is_only_owner() {
            return Ok(None);
        }
        StreamUseMut::new(self, stream).map(Some)
    }
}

/// The operation, for errors.
const USE: &str = "use a fragment on a stream";

/// A fragment in use on a stream; see [`Fragment::use_on`].
#[must_use = "the use ends with the guard: keep it until the work has been enqueued"]
pub struct StreamUse<'a> {
    fragment: &'a Fragment,
    stream: &'a dyn OrderedStream,
    access: Access,
}

impl<'a> StreamUse<'a> {
    fn new(fragment: &'a Fragment, stream: &'a dyn OrderedStream, access: Access) -> Result<Self> {
        fragment.check_process(USE)?;
        match stream.check() {
            Ok(()) => {
                fragment.uses().begin(access);
                Ok(Self { fragment, stream, access })
            }
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

    /// Ends the use: a dropped range is free when the work enqueued so far has ended. Dropping the guard does the same, and logs
    /// errors.
    ///
    /// # Errors
    /// When the stream records no event, as while it is captured: then its uses are unknown, and the range is never freed. In a
    /// forked child, where nothing is recorded.
    pub fn end(self) -> Result<()> {
        mem::ManuallyDrop::new(self).record()
    }

    fn record(&self) -> Result<()> {
        // The child frees nothing, so no use needs to be recorded.
        self.fragment.check_process(USE)?;
        match self.stream.record() {
            Ok(fence) => {
                let uses = self.fragment.uses();
                uses.add(self.stream.id(), fence, self.access);
                uses.end(self.access);
                Ok(())
            }
            Err(source) => {
                // I1: what uses the range, and for how long, is unknown: the use does not end.
                self.fragment.keep_forever();
                Err(failed(self.fragment, source))
            }
        }
    }
}

impl Drop for StreamUse<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.record()
            && !matches!(error, Error::Forked { .. })
        {
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
    fn new(fragment: &'a mut Fragment, stream: &'a dyn OrderedStream) -> Result<Self> {
        StreamUse::new(fragment, stream, Access::Write).map(Self)
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

fn failed(fragment: &Fragment, source: MemoryError) -> Error {
    Error::Stream { pool: fragment.pool_name().into(), bytes: fragment.len(), source }
}
