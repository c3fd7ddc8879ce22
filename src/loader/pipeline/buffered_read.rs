//! Reading a job's bytes through the page cache.

use std::io::{self, IoSliceMut};

use super::context::ReadContext;
use super::route::ReadRoute;
use crate::error::{Error, Result};
use crate::io::retries::Retries;
use crate::io::{CachedFile, FileLease, Queue, Read, WhenFull, address, too_many};
use crate::loader::plan::Job;

/// The outcome of a read that relies on the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadOutcome {
    Complete,
    /// Some of the bytes were not cached.
    NotCached,
}

/// The state of one job's reads.
#[derive(Debug)]
pub(super) struct ReadState {
    /// Reads fail instead of waiting for the disk.
    cached_only: bool,
    retries: Retries,
    /// Keeps the file open from one read to the next.
    lease: Option<FileLease>,
}

impl ReadState {
    pub(super) fn new(route: ReadRoute) -> Self {
        Self { cached_only: route == ReadRoute::Cached, retries: Retries::default(), lease: None }
    }

    /// The state of reads of a file that is open already.
    pub(super) fn with_lease(route: ReadRoute, lease: FileLease) -> Self {
        Self { lease: Some(lease), ..Self::new(route) }
    }
}

/// Reads a job's bytes, scattered from `base` on as in the region, one read at a time. May wait for a
/// descriptor: the caller holds no lease.
///
/// # Safety
/// `base` is valid for writes of the job's span (its span of the file, if the job is transformed). Only the
/// caller accesses those bytes, and they are initialized.
pub(super) unsafe fn read_job(
    context: &ReadContext<'_>,
    queue: &mut dyn Queue,
    job: &Job,
    base: *mut u8,
    route: ReadRoute,
) -> Result<ReadOutcome> {
    // SAFETY: passed on; a buffer is used in one read at a time.
    let buffers = |done| unsafe { context.scatter.buffers(job, base, done) };
    let (file, range) = (&context.routes.buffered(job.file)?.file, (job.file_offset, job.file_bytes));
    // SAFETY: passed on.
    unsafe { read_range(context, queue, job, file, range, &mut ReadState::new(route), buffers) }
}

/// Reads `bytes` bytes of a job's file from offset `start`, one read at a time. `buffers(done)` returns the
/// buffers for the bytes after the first `done`. May wait for a descriptor: the caller holds no lease other
/// than that of `state`.
///
/// # Safety
/// Only the caller accesses the buffers' bytes, and they are initialized.
pub(super) unsafe fn read_range<'b, B: AsMut<[IoSliceMut<'b>]>>(
    context: &ReadContext<'_>,
    queue: &mut dyn Queue,
    job: &Job,
    file: &CachedFile,
    (start, bytes): (u64, u64),
    state: &mut ReadState,
    buffers: impl Fn(u64) -> B,
) -> Result<ReadOutcome> {
    let ReadState { cached_only, retries, lease } = state;
    let mut done = 0;
    while done < bytes {
        let mut buffers = buffers(done);
        let offset = start + done;
        let file = match lease {
            Some(file) => file,
            None => lease.insert(
                file.lease(WhenFull::Wait)
                    .map_err(|error| context.files[job.file].source.open_error(error))?,
            ),
        };
        let requested: usize = buffers.as_mut().iter().map(|buffer| address(buffer).1).sum();
        let read = Read { ticket: 0, file, offset, buffers: buffers.as_mut(), cached_only: *cached_only };
        // SAFETY: the buffers are as the caller promises, and the completion is taken below; the lease keeps
        // the file open for as long.
        let ended = unsafe { queue.submit(read) }.and_then(|()| queue.complete());
        match ended.and_then(|completion| completion.result) {
            Ok(read) if read > requested => return Err(read_error(context, job, too_many(read, requested))),
            Ok(read) if done + read as u64 >= bytes => {
                *retries = Retries::default();
                return Ok(ReadOutcome::Complete);
            }
            // A short read does not prove that the next byte is not cached.
            Ok(read) if *cached_only => {
                // Probing may wait for a descriptor (F4).
                *lease = None;
                match context.routes.reroute(job) {
                    ReadRoute::Direct => return Ok(ReadOutcome::NotCached),
                    _ => (done, *cached_only) = (done + read as u64, false),
                }
            }
            Ok(0) => return Err(context.cut_short(job, start + done)),
            Ok(read) => (done, *retries) = (done + read as u64, Retries::default()),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock if *cached_only => {
                    *lease = None;
                    match context.routes.reroute(job) {
                        ReadRoute::Direct => return Ok(ReadOutcome::NotCached),
                        _ => *cached_only = false,
                    }
                }
                _ if retries.allow(&error) => {}
                io::ErrorKind::Unsupported if *cached_only => {
                    context.routes.refuse_cached(job.file);
                    *cached_only = false;
                }
                _ => return Err(read_error(context, job, retries.explain(error))),
            },
        }
    }
    Ok(ReadOutcome::Complete)
}

/// The error for a read of a job that failed.
pub(super) fn read_error(context: &ReadContext<'_>, job: &Job, error: io::Error) -> Error {
    context.files[job.file].source.read_error(job.file_offset, job.file_bytes, error)
}
