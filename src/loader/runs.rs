//! Reading the runs of a part one by one, through the page cache.
//!
//! Each read counts itself in what the system knows of an open file: short reads by many threads of one that they share take three times as long, so each
//! reader opens it for itself. Where all is said to be cached, an `io_uring` makes many reads of one call. What it leaves is read by itself, which
//! tells why it was left. `docs/performance.md` has the figures.

use std::io::{self, IoSliceMut};
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::OFlags;
use smallvec::SmallVec;
use tensorhold_kernels::Block;

use super::fill::Fill;
use super::parts::Part;
use super::plan::Job;
use super::route::Way;
use super::through::{self, Outcome, Reads};
use crate::error::Result;
use crate::io::{Access, Completion, Queue, Read, buffer_at};

/// A ring takes so many runs with one call.
const RING_RUNS: usize = 128;

/// Fewer runs are not worth a ring.
const MANY_RUNS: u64 = 16;

/// A file that one reader has opened for itself.
pub(super) struct Own {
    file: usize,
    /// For many runs at a time. Dropped before the file that it reads.
    ring: Ring,
    access: Access,
}

enum Ring {
    /// Until there are many runs.
    Unopened,
    Open(Box<dyn Queue>),
    /// By the system, or it failed.
    Refused,
}

impl Own {
    /// The file that was opened last, or this one, if it can be opened once more.
    fn open<'a>(own: &'a mut Option<Self>, fill: &Fill<'_>, file: usize) -> Option<&'a mut Self> {
        if own.as_ref().is_none_or(|own| own.file != file) {
            let source = &fill.files[file].source;
            let opened = source.reopen(OFlags::empty()).inspect_err(|error| {
                tracing::debug!(path = ?source.path(), %error, "not opened for one reader");
            });
            let access = opened.map(|opened| Access { file: Arc::new(opened), alignment: 1 });
            *own = access.ok().map(|access| Self { file, ring: Ring::Unopened, access });
        }
        own.as_mut()
    }

    /// Reads what of the runs is cached, by as few calls as a ring allows; returns the numbers and offsets of those that were not read whole. `None`
    /// where there is no ring, or none any more: then nothing is known of any, and no read is in flight.
    ///
    /// # Safety
    /// As [`Runs::read`].
    unsafe fn read_at_once(&mut self, fill: &Fill<'_>, runs: &Runs, to: *mut u8) -> Option<Unread> {
        if matches!(self.ring, Ring::Unopened) {
            self.ring = fill.engines.uring.queue(RING_RUNS).map_or_else(refused, Ring::Open);
        }
        let Ring::Open(ring) = &mut self.ring else { return None };
        // SAFETY: passed on; where it fails, the ring is dropped here, and else with the file's owner, before the file.
        match unsafe { runs.read_by(&mut **ring, &self.access, to) } {
            Ok(unread) => Some(unread),
            Err(error) => {
                self.ring = refused(error);
                None
            }
        }
    }
}

fn refused(error: io::Error) -> Ring {
    tracing::debug!(%error, "runs are read one by one");
    Ring::Refused
}

/// Runs that are still to be read: their numbers and offsets in the file.
type Unread = SmallVec<[(usize, u64); 4]>;

/// The runs of a job, which are as long as each other.
pub(super) struct Runs {
    block: Block,
    /// Where the first is in the file.
    start: u64,
    /// Bytes of a unit, and of a run.
    unit: u64,
    bytes: u64,
}

impl Runs {
    pub(super) fn new(job: &Job, part: &Part, unit: u64) -> Self {
        Self { block: part.block, start: job.file_offset, unit, bytes: part.block.run * unit }
    }

    fn count(&self) -> u64 {
        self.block.counts.iter().product()
    }

    /// Where they are in the file.
    fn offsets(&self) -> impl Iterator<Item = u64> {
        let ([a, b, c], [x, y, z]) = (self.block.counts, self.block.source_strides);
        let (start, unit) = (self.start, self.unit);
        (0..a).flat_map(move |i| {
            (0..b).flat_map(move |j| (0..c).map(move |k| start + (i * x + j * y + k * z) * unit))
        })
    }

    /// Reads them, one behind the other.
    ///
    /// # Safety
    /// `to` is valid for writes of all runs, which only the caller touches, and its bytes have values.
    pub(super) unsafe fn read(
        &self,
        fill: &Fill<'_>,
        queue: &mut dyn Queue,
        job: &Job,
        to: *mut u8,
        way: Way,
        own: &mut Option<Own>,
    ) -> Result<Outcome> {
        let mut own = Own::open(own, fill, job.file);
        let unread = match &mut own {
            // Only what is surely there: where a read may wait, the system hands it to threads of its own.
            // SAFETY: passed on.
            Some(own) if way == Way::Cached && self.count() >= MANY_RUNS => unsafe {
                own.read_at_once(fill, self, to)
            },
            _ => None,
        };
        let access = match own {
            Some(own) => &own.access,
            None => fill.routes.buffered(job.file)?,
        };
        let mut reads = Reads::new(way);
        let mut each = |runs: &mut dyn Iterator<Item = (usize, u64)>| {
            for (number, offset) in runs {
                let buffers = |done: u64| {
                    let (start, bytes) = (number * self.bytes as usize + done as usize, self.bytes - done);
                    // SAFETY: the caller promises as many bytes as all runs have, and each has its own.
                    let buffer = unsafe { std::slice::from_raw_parts_mut(to.add(start), bytes as usize) };
                    [IoSliceMut::new(buffer)]
                };
                let range = (offset, self.bytes);
                // SAFETY: the buffers are as the caller promises.
                let outcome =
                    unsafe { through::read_range(fill, queue, job, access, range, &mut reads, buffers) }?;
                if outcome == Outcome::NotCached {
                    return Ok(outcome);
                }
            }
            Ok(Outcome::Complete)
        };
        match unread {
            Some(unread) => each(&mut unread.into_iter()),
            None => each(&mut self.offsets().enumerate()),
        }
    }

    /// Reads what of them is cached by a ring.
    ///
    /// # Errors
    /// When the ring fails. It is to be dropped then, which waits for its reads, before anything else is done with the memory.
    ///
    /// # Safety
    /// As [`read`](Self::read). The ring is dropped before the file is closed.
    unsafe fn read_by(&self, ring: &mut dyn Queue, access: &Access, to: *mut u8) -> io::Result<Unread> {
        let (depth, bytes) = (ring.depth().min(RING_RUNS), self.bytes as usize);
        let mut unread = SmallVec::new();
        let mut offsets = self.offsets().enumerate().peekable();
        while let Some(&(first, _)) = offsets.peek() {
            let mut flying = SmallVec::<[u64; RING_RUNS]>::new();
            for (number, offset) in offsets.by_ref().take(depth) {
                // SAFETY: the caller promises as many bytes as all runs have, and each has its own.
                let buffer = unsafe { buffer_at(to.wrapping_add(number * bytes), bytes) };
                let (file, buffers) = (access.file.as_fd(), &mut [buffer]);
                let read = Read { ticket: flying.len(), file, offset, buffers, cached_only: true };
                // SAFETY: the buffer stays until the completion has been taken below, or the ring dropped, as the caller promises; the file, too.
                unsafe { ring.submit(read) }?;
                flying.push(offset);
            }
            for _ in 0..flying.len() {
                let Completion { ticket, result } = ring.complete()?;
                if !result.is_ok_and(|read| read == bytes) {
                    unread.extend(flying.get(ticket).map(|&offset| (first + ticket, offset)));
                }
            }
        }
        Ok(unread)
    }
}
