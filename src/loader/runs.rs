//! Reading the runs of a part one by one, through the page cache.
//!
//! Each read counts itself in what the system knows of an open file: short reads by many threads of one that they share take three times as long, so each
//! reader opens it for itself (`docs/performance.md`).

use std::io::IoSliceMut;

use rustix::fs::OFlags;
use tensorhold_kernels::Block;

use super::fill::Fill;
use super::parts::Part;
use super::plan::Job;
use super::route::Way;
use super::through::{self, Outcome, Reads};
use crate::error::Result;
use crate::io::{CachedFile, FileLease, Queue, WhenFull};

/// A file that one reader opens for itself.
pub(super) struct Own {
    number: usize,
    file: CachedFile,
}

impl Own {
    /// Opens the file for one reader, or returns the lease of the file that all readers share where it cannot be opened once more.
    fn open(own: &mut Option<Self>, fill: &Fill<'_>, number: usize) -> Result<FileLease> {
        let source = &fill.files[number].source;
        let file = match own.take_if(|own| own.number == number) {
            Some(Self { file, .. }) => file,
            None => source.with_flags(OFlags::empty(), None),
        };
        match file.lease(WhenFull::Wait) {
            Ok(lease) => {
                *own = Some(Self { number, file });
                Ok(lease)
            }
            Err(error) => {
                tracing::debug!(path = ?source.path(), %error, "not opened for one reader");
                source.lease().map_err(|error| source.open_error(error))
            }
        }
    }
}

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
        let mut reads = Reads::of(way, Own::open(own, fill, job.file)?);
        // Where the lease is returned, the rest is read by that of all readers.
        let file = &fill.routes.buffered(job.file)?.file;
        for (number, offset) in self.offsets().enumerate() {
            let buffers = |done: u64| {
                let (start, bytes) = (number * self.bytes as usize + done as usize, self.bytes - done);
                // SAFETY: the caller promises as many bytes as all runs have, and each has its own.
                let buffer = unsafe { std::slice::from_raw_parts_mut(to.add(start), bytes as usize) };
                [IoSliceMut::new(buffer)]
            };
            let range = (offset, self.bytes);
            // SAFETY: the buffers are as the caller promises.
            let outcome = unsafe { through::read_range(fill, queue, job, file, range, &mut reads, buffers) }?;
            if outcome == Outcome::NotCached {
                return Ok(outcome);
            }
        }
        Ok(Outcome::Complete)
    }
}
