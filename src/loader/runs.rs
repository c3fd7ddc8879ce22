//! Reading the runs of a part one by one, through the page cache.
//!
//! Each read counts itself in what the system knows of an open file: short reads by many threads of one that they share take three times as long, so each
//! reader opens it for itself (`docs/performance.md`).

use std::io::IoSliceMut;
use std::sync::Arc;

use rustix::fs::OFlags;
use tensorhold_kernels::Block;

use super::fill::Fill;
use super::parts::Part;
use super::plan::Job;
use super::route::Way;
use super::through::{self, Outcome, Reads};
use crate::error::Result;
use crate::io::{Access, Queue};

/// A file that one reader has opened for itself.
pub(super) struct Own {
    file: usize,
    access: Access,
}

impl Own {
    /// The file that was opened last, or this one; that of all readers where it cannot be opened once more.
    fn open<'a>(own: &'a mut Option<Self>, fill: &'a Fill<'_>, file: usize) -> Result<&'a Access> {
        if own.as_ref().is_none_or(|own| own.file != file) {
            let source = &fill.files[file].source;
            let opened = source.reopen(OFlags::empty()).inspect_err(|error| {
                tracing::debug!(path = ?source.path(), %error, "not opened for one reader");
            });
            let access = opened.map(|opened| Access { file: Arc::new(opened), alignment: 1 });
            *own = access.ok().map(|access| Self { file, access });
        }
        match own {
            Some(own) => Ok(&own.access),
            None => fill.routes.buffered(file),
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
        let access = Own::open(own, fill, job.file)?;
        let mut reads = Reads::new(way);
        for (number, offset) in self.offsets().enumerate() {
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
    }
}
