//! A reader through the page cache: in place where the CPU can write the target, into the ring elsewhere.

use std::io::{self, IoSliceMut};

use super::fill::Fill;
use super::plan::Job;
use super::remake::{self, Scratch};
use super::ring::Ring;
use super::route::Way;
use super::stopwatch::Stage;
use super::work::Work;
use crate::error::{Error, Result};
use crate::io::retries::Retries;
use crate::io::{BackendKind, CachedFile, FileLease, Queue, Read, WhenFull, address, too_many};

/// What became of a read that relies on the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Complete,
    /// Some of it was not cached.
    NotCached,
}

/// Takes jobs off the plan until there are no more; leaves to others what is better read past the page cache.
pub(super) fn read(fill: &Fill<'_>, work: &Work<'_>) -> Result<()> {
    let mut queue =
        fill.engines.buffered.queue(1).map_err(|error| fill.queue_refused(BackendKind::Buffered, &error))?;
    let Some(mut scratch) = Scratch::open(fill, work)? else { return Ok(()) };
    match &fill.ring {
        Some(ring) => {
            if let Err(error) = into_ring(fill, work, &mut *queue, ring, &mut scratch) {
                work.fail(error);
            }
            // After that, so that those who wait for this reader's part of a slot see that it will not come.
            ring.wake();
            Ok(())
        }
        None => in_place(fill, work, &mut *queue, &mut scratch),
    }
}

fn in_place(fill: &Fill<'_>, work: &Work<'_>, queue: &mut dyn Queue, scratch: &mut Scratch) -> Result<()> {
    let mut watch = fill.totals.watch();
    while let Some((index, job, way)) = work.next_through(&fill.routes) {
        let to = fill.landing.address(job)?;
        // SAFETY: W1, P2: the job's span lies in a host-accessible region that the target keeps.
        match unsafe { remake::read(fill, queue, job, to, way, scratch) }? {
            Outcome::Complete => {
                work.count(job, Way::Buffered);
                work.landed(index);
            }
            Outcome::NotCached => work.leave(index),
        }
    }
    watch.lap(Stage::Read);
    Ok(())
}

fn into_ring(
    fill: &Fill<'_>,
    work: &Work<'_>,
    queue: &mut dyn Queue,
    ring: &Ring<'_>,
    scratch: &mut Scratch,
) -> Result<()> {
    let mut watch = fill.totals.watch();
    loop {
        let claim = match ring.claim(work, &fill.routes) {
            Ok(Some(claim)) => claim,
            Ok(None) => break,
            Err(error @ Error::Memory(_)) => {
                work.refuse(error);
                break;
            }
            Err(error) => return Err(error),
        };
        watch.lap(Stage::Wait);
        let job = &fill.landing.plan.jobs[claim.index];
        // SAFETY: G2: the place is as long as what the job leaves there, and ours until the job is counted as done.
        let outcome = unsafe { remake::read(fill, queue, job, ring.start(&claim), claim.way, scratch) }?;
        match outcome {
            Outcome::Complete => work.count(job, claim.way),
            Outcome::NotCached => work.leave(claim.index),
        }
        watch.lap(Stage::Read);
        ring.done(&claim, outcome == Outcome::Complete, fill)?;
        watch.lap(Stage::Send);
    }
    watch.lap(Stage::Wait);
    Ok(())
}

/// How one job is read through the page cache.
#[derive(Debug)]
pub(super) struct Reads {
    /// Only what is cached, so far.
    cached_only: bool,
    retries: Retries,
    /// Keeps the file open from one read to the next.
    lease: Option<FileLease>,
}

impl Reads {
    pub(super) fn new(way: Way) -> Self {
        Self { cached_only: way == Way::Cached, retries: Retries::default(), lease: None }
    }

    /// Of a file that is open.
    pub(super) fn of(way: Way, lease: FileLease) -> Self {
        Self { lease: Some(lease), ..Self::new(way) }
    }
}

/// Reads a job's bytes to their places, spread from `base` on, one read at a time. Waits for a descriptor: the caller holds no lease.
///
/// # Safety
/// `base` is valid for writes of the job's span (of what it has in the file, where that is changed), which only the caller touches, and its bytes
/// have values.
pub(super) unsafe fn read_job(
    fill: &Fill<'_>,
    queue: &mut dyn Queue,
    job: &Job,
    base: *mut u8,
    way: Way,
) -> Result<Outcome> {
    // SAFETY: passed on; a buffer is used in one read at a time.
    let buffers = |done| unsafe { fill.landing.buffers(job, base, done) };
    let (file, range) = (&fill.routes.buffered(job.file)?.file, (job.file_offset, job.file_bytes));
    // SAFETY: passed on.
    unsafe { read_range(fill, queue, job, file, range, &mut Reads::new(way), buffers) }
}

/// Reads `bytes` of a job's bytes from offset `start` in its file, one read at a time. `buffers(done)` gives the buffers for what follows the
/// first `done` bytes. Waits for a descriptor: the caller holds no lease but that of `reads`.
///
/// # Safety
/// Only the caller touches the buffers' bytes, which have values.
pub(super) unsafe fn read_range<'b, B: AsMut<[IoSliceMut<'b>]>>(
    fill: &Fill<'_>,
    queue: &mut dyn Queue,
    job: &Job,
    file: &CachedFile,
    (start, bytes): (u64, u64),
    reads: &mut Reads,
    buffers: impl Fn(u64) -> B,
) -> Result<Outcome> {
    let Reads { cached_only, retries, lease } = reads;
    let mut done = 0;
    while done < bytes {
        let mut buffers = buffers(done);
        let offset = start + done;
        let file = match lease {
            Some(file) => file,
            None => lease.insert(
                file.lease(WhenFull::Wait).map_err(|error| fill.files[job.file].source.open_error(error))?,
            ),
        };
        let asked: usize = buffers.as_mut().iter().map(|buffer| address(buffer).1).sum();
        let read = Read { ticket: 0, file, offset, buffers: buffers.as_mut(), cached_only: *cached_only };
        // SAFETY: the buffers are as the caller promises, and the completion is taken below; the lease keeps the file open for
        // as long.
        let ended = unsafe { queue.submit(read) }.and_then(|()| queue.complete());
        match ended.and_then(|completion| completion.result) {
            Ok(read) if read > asked => return Err(read_error(fill, job, too_many(read, asked))),
            Ok(read) if done + read as u64 >= bytes => {
                *retries = Retries::default();
                return Ok(Outcome::Complete);
            }
            // The system also stops short for reasons of its own.
            Ok(read) if *cached_only => {
                // What is asked may wait for a descriptor (F4).
                *lease = None;
                match fill.routes.way_again(job) {
                    Way::Past => return Ok(Outcome::NotCached),
                    _ => (done, *cached_only) = (done + read as u64, false),
                }
            }
            Ok(0) => return Err(fill.cut_short(job, start + done)),
            Ok(read) => (done, *retries) = (done + read as u64, Retries::default()),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock if *cached_only => {
                    *lease = None;
                    match fill.routes.way_again(job) {
                        Way::Past => return Ok(Outcome::NotCached),
                        _ => *cached_only = false,
                    }
                }
                _ if retries.allow(&error) => {}
                io::ErrorKind::Unsupported if *cached_only => {
                    fill.routes.refuse_cached(job.file);
                    *cached_only = false;
                }
                _ => return Err(read_error(fill, job, retries.explain(error))),
            },
        }
    }
    Ok(Outcome::Complete)
}

pub(super) fn read_error(fill: &Fill<'_>, job: &Job, error: io::Error) -> Error {
    fill.files[job.file].source.read_error(job.file_offset, job.file_bytes, error)
}
