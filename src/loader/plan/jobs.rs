//! The plan of a load: its jobs, each a read of file bytes and a copy to a region.
//!
//! Tensors are laid out in the order of their bytes in the files. A run of a file is therefore a run of a
//! region, except for the padding that aligns each tensor. A *job* is such a run of limited length: one
//! vectored read scatters the file's bytes into *pieces* of a buffer that has the layout of the region,
//! padding included, and one copy moves the buffer. So the number of reads and copies depends on the bytes,
//! not on the number of tensors.
//!
//! ```text
//! file    |aaaaaaaaaaa|bbb|ccccccccccccccc|        one read
//! buffer  |aaaaaaaaaaa....|bbb.............|ccccccccccccccc|   three pieces, one copy
//! ```
//!
//! # Invariants
//! - **P1** Each byte of each selected tensor is in exactly one piece (I2).
//! - **P2** A job's pieces lie in order, without overlap, within its span; the span lies within its region.
//! - **P3** If [`Limits::cut`] is set, a job's bytes lie between two neighbouring multiples of it. Jobs of
//!   transformed tensors are exempt (P4, P5).

use std::ops::Range;

use tensorhold_allocator::Request;
use tensorhold_kernels::Block;

use crate::io::MAX_BUFFERS;

/// The bytes of a selected tensor in its file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    /// Index of the file.
    pub(crate) file: usize,
    /// Offset in the file.
    pub(crate) start: u64,
    /// Length of the tensor in the region, in bytes; the same in the file, unless the tensor is transformed.
    pub(crate) bytes: u64,
}

impl Extent {
    /// The request to the allocator.
    pub(crate) fn request(&self) -> Request {
        Request::new(self.bytes, TENSOR_ALIGN)
    }
}

/// Every tensor starts at a multiple of this number of bytes, on every device.
pub(crate) const TENSOR_ALIGN: u64 = 256;

/// One read and, if the target is not host-accessible, one copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) file: usize,
    /// Offset of the first byte in the file.
    pub(crate) file_offset: u64,
    /// Bytes to read.
    pub(crate) file_bytes: u64,
    /// Index of the target region in the layout.
    pub(crate) region: usize,
    /// Offset of the span in the region.
    pub(crate) offset: u64,
    /// Length of the span: the bytes to read and the padding between them.
    pub(crate) span: u64,
    /// The pieces, in [`Plan::pieces`].
    pub(crate) pieces: Range<usize>,
    /// The tensors that have bytes in the job: indices of extents.
    pub(crate) tensors: Range<usize>,
    /// Index in [`Plan::transforms`]; the one piece is then the job's span of the file. `None` if the bytes
    /// are not transformed.
    pub(crate) transform: Option<usize>,
    /// Readers through the page cache find out by reading whether the bytes are cached, since they read
    /// little of the job's span of the file.
    pub(crate) probes_by_reading: bool,
    /// Bytes that readers through the page cache leave in a slot: the span, or the input of the device's
    /// transform.
    pub(crate) staged: u64,
    /// Offset of those bytes in the slot of the job's group.
    pub(crate) slot: u64,
}

impl Job {
    /// Bytes of tensors that have arrived once the job has landed.
    pub(crate) fn bytes(&self) -> u64 {
        if self.transform.is_some() { self.span } else { self.file_bytes }
    }
}

/// How the runs of a strided block are read through the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StridedRead {
    /// One read for each run, packed one after the other.
    Runs,
    /// One read, from the first byte to the last.
    Span,
}

/// The block of a transformed tensor that a job reads, and how it is read and transformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct JobTransform {
    /// Index of the [tensor's transform](crate::loader::transform::TensorTransforms::tensors).
    pub(crate) index: usize,
    /// Maps elements in the job's span of the file to elements in its span of the region.
    pub(crate) block: Block,
    pub(crate) reading: StridedRead,
    /// Bytes of the runs in the file.
    pub(crate) run_bytes: u64,
    /// The device transforms the bytes that readers through the page cache leave in staging memory.
    pub(crate) on_device: bool,
    /// Bytes from a multiple of 256 to the block's start in its slot. Elements then have the same position
    /// within a word as in the region, and a kernel reads each word once.
    pub(crate) phase: u64,
}

impl JobTransform {
    /// Whether readers through the page cache leave the elements dense: they read runs, or there is a single
    /// run.
    pub(crate) fn is_dense(&self) -> bool {
        self.reading == StridedRead::Runs || self.block.counts == [1; 3]
    }
}

/// A part of a job's span that receives bytes of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Offset in the span.
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

/// The maximum lengths of jobs and groups, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// The longest span of a job; more than 0.
    pub(crate) span: u64,
    /// A job does not extend over a file offset that is a multiple of this; more than 0.
    pub(crate) cut: Option<u64>,
    /// The longest span of a group's jobs together; `span` or more.
    pub(crate) group: u64,
}

impl Limits {
    /// Bytes from a file offset to the next multiple of `cut`.
    pub(crate) fn until_cut(&self, start: u64) -> u64 {
        self.cut.map_or(u64::MAX, |cut| cut - start % cut)
    }
}

/// All jobs of a load.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) jobs: Vec<Job>,
    pub(crate) pieces: Vec<Piece>,
    pub(crate) transforms: Vec<JobTransform>,
    /// Consecutive jobs whose spans lie close together: they share a slot and a copy.
    pub(crate) groups: Vec<Range<usize>>,
    /// Bytes of all tensors.
    pub(crate) bytes: u64,
}

impl Plan {
    /// Forms groups of at most `max_group` bytes of a slot, and assigns each job its offset in the slot.
    pub(super) fn group(&mut self, max_group: u64) {
        let mut first = 0;
        for index in 0..self.jobs.len() {
            let (before, rest) = self.jobs.split_at_mut(index);
            let Some(job) = rest.first_mut() else { continue };
            let launched = |job: &Job| {
                job.transform
                    .and_then(|index| self.transforms.get(index))
                    .filter(|transform| transform.on_device)
            };
            let phase = launched(job).map_or(0, |transform| transform.phase);
            let fits = before.get(first).zip(before.last()).filter(|(start, _)| start.region == job.region);
            let slot = fits.map(|(_, last)| match (launched(last), launched(job)) {
                // Copied bytes have the layout of the region, in which tensors and jobs ascend: one copy
                // moves all of them.
                (None, None) => last.slot + (job.offset - last.offset),
                // One launch transforms both.
                (Some(previous), Some(next))
                    if previous.is_dense() && next.is_dense() && follows(last, job) =>
                {
                    last.slot + last.staged
                }
                _ => (last.slot + last.staged).next_multiple_of(TENSOR_ALIGN) + phase,
            });
            match slot.filter(|slot| slot + job.staged <= max_group) {
                Some(slot) => job.slot = slot,
                None => {
                    job.slot = phase;
                    if index > 0 {
                        self.groups.push(first..index);
                    }
                    first = index;
                }
            }
        }
        if first < self.jobs.len() {
            self.groups.push(first..self.jobs.len());
        }
    }

    /// Whether the device transforms the bytes that readers through the page cache leave in staging memory.
    pub(crate) fn launches(&self, job: &Job) -> bool {
        self.transform_of(job).is_some_and(|transform| transform.on_device)
    }

    /// Whether one launch can transform `job` and `next`.
    pub(crate) fn continues(&self, job: &Job, next: &Job) -> bool {
        let dense = |job: &Job| {
            self.transform_of(job).is_some_and(|transform| transform.on_device && transform.is_dense())
        };
        dense(job) && dense(next) && follows(job, next) && job.slot + job.staged == next.slot
    }

    /// The transform of a job; `None` if its bytes are not transformed.
    pub(crate) fn transform_of(&self, job: &Job) -> Option<&JobTransform> {
        self.transforms.get(job.transform?)
    }

    /// Adds the bytes of an extent after the first `done`, as many as the last job or a new one takes.
    /// Returns their number.
    pub(super) fn add(
        &mut self,
        tensor: usize,
        extent: Extent,
        region: usize,
        offset: u64,
        done: u64,
        limits: Limits,
    ) -> u64 {
        let (start, offset, rest) = (extent.start + done, offset + done, extent.bytes - done);
        if let Some(job) = self.jobs.last_mut()
            && job.transform.is_none()
            && (job.file, job.region) == (extent.file, region)
            && job.file_offset + job.file_bytes == start
            && job.file_bytes < limits.until_cut(job.file_offset)
            && let Some(room) = offset.checked_sub(job.offset).and_then(|gap| limits.span.checked_sub(gap))
            && room > 0
            && job.pieces.len() < MAX_BUFFERS
        {
            let bytes = rest.min(room).min(limits.until_cut(start));
            let at = offset - job.offset;
            match self.pieces.last_mut() {
                Some(piece) if piece.offset + piece.bytes == at => piece.bytes += bytes,
                _ => {
                    self.pieces.push(Piece { offset: at, bytes });
                    job.pieces.end += 1;
                }
            }
            job.file_bytes += bytes;
            job.span = at + bytes;
            job.staged = job.span;
            job.tensors.end = tensor + 1;
            self.bytes += bytes;
            return bytes;
        }
        let bytes = rest.min(limits.span).min(limits.until_cut(start));
        let first = self.pieces.len();
        self.pieces.push(Piece { offset: 0, bytes });
        self.jobs.push(Job {
            file: extent.file,
            file_offset: start,
            file_bytes: bytes,
            region,
            offset,
            span: bytes,
            pieces: first..first + 1,
            tensors: tensor..tensor + 1,
            transform: None,
            probes_by_reading: false,
            staged: bytes,
            slot: 0,
        });
        self.bytes += bytes;
        bytes
    }

    pub(crate) fn pieces_of(&self, job: &Job) -> &[Piece] {
        self.pieces.get(job.pieces.clone()).unwrap_or_default()
    }
}

/// Whether the elements of `next` directly follow those of `job` in the same tensor.
fn follows(job: &Job, next: &Job) -> bool {
    job.tensors == next.tensors && job.offset + job.span == next.offset
}
