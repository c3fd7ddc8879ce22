//! Reading the runs of a strided block one by one, through the page cache.
//!
//! Each read updates the reference count of its open file. Short reads of one open file by many threads take
//! three times as long, so each reader opens the file for itself (`docs/performance.md`).

use std::io::IoSliceMut;

use rustix::fs::OFlags;
use tensorhold_kernels::Block;

use super::buffered_read::{self, ReadOutcome, ReadState};
use super::context::ReadContext;
use super::route::ReadRoute;
use crate::error::Result;
use crate::io::{CachedFile, FileLease, Queue, WhenFull};
use crate::loader::plan::{Job, JobTransform};

/// A file that one reader has opened for itself.
pub(super) struct PrivateFile {
    number: usize,
    file: CachedFile,
}

impl PrivateFile {
    /// Opens a file for one reader. If that fails, returns a lease of the file that all readers share.
    fn open(private: &mut Option<Self>, context: &ReadContext<'_>, number: usize) -> Result<FileLease> {
        let source = &context.files[number].source;
        let file = match private.take_if(|private| private.number == number) {
            Some(Self { file, .. }) => file,
            None => source.with_flags(OFlags::empty(), None),
        };
        match file.lease(WhenFull::Wait) {
            Ok(lease) => {
                *private = Some(Self { number, file });
                Ok(lease)
            }
            Err(error) => {
                tracing::debug!(path = ?source.path(), %error, "not opened for one reader");
                source.lease().map_err(|error| source.open_error(error))
            }
        }
    }
}

/// The runs of a job, all of one length.
pub(super) struct StridedRuns {
    block: Block,
    /// Offset of the first run in the file.
    start: u64,
    /// Bytes of a unit.
    unit: u64,
    /// Bytes of a run.
    bytes: u64,
}

impl StridedRuns {
    pub(super) fn new(job: &Job, transform: &JobTransform, unit: u64) -> Self {
        Self { block: transform.block, start: job.file_offset, unit, bytes: transform.block.run * unit }
    }

    /// Offsets of the runs in the file.
    fn offsets(&self) -> impl Iterator<Item = u64> {
        let ([a, b, c], [x, y, z]) = (self.block.counts, self.block.source_strides);
        let (start, unit) = (self.start, self.unit);
        (0..a).flat_map(move |i| {
            (0..b).flat_map(move |j| (0..c).map(move |k| start + (i * x + j * y + k * z) * unit))
        })
    }

    /// Reads the runs, packed one after the other.
    ///
    /// # Safety
    /// `to` is valid for writes of all runs. Only the caller accesses those bytes, and they are initialized.
    pub(super) unsafe fn read(
        &self,
        context: &ReadContext<'_>,
        queue: &mut dyn Queue,
        job: &Job,
        to: *mut u8,
        route: ReadRoute,
        private: &mut Option<PrivateFile>,
    ) -> Result<ReadOutcome> {
        let mut reads = ReadState::with_lease(route, PrivateFile::open(private, context, job.file)?);
        // If a read gives the lease up, the remaining runs are read from the shared file.
        let file = &context.routes.buffered(job.file)?.file;
        for (number, offset) in self.offsets().enumerate() {
            let buffers = |done: u64| {
                let (start, bytes) = (number * self.bytes as usize + done as usize, self.bytes - done);
                // SAFETY: the caller promises the bytes of all runs, and each run has its own.
                let buffer = unsafe { std::slice::from_raw_parts_mut(to.add(start), bytes as usize) };
                [IoSliceMut::new(buffer)]
            };
            let range = (offset, self.bytes);
            // SAFETY: the buffers are as the caller promises.
            let outcome =
                unsafe { buffered_read::read_range(context, queue, job, file, range, &mut reads, buffers) }?;
            if outcome == ReadOutcome::NotCached {
                return Ok(outcome);
            }
        }
        Ok(ReadOutcome::Complete)
    }
}
