//! The plan of a load: what is read, from where to where. Pure: no I/O, no memory.
//!
//! Tensors are laid out in the order of their bytes in the files, so a run of a file is a run of a region, but for the
//! padding that aligns each tensor. A *job* is such a run of limited length: one vectored read scatters the file's
//! bytes into *pieces* of a buffer that looks as the region will, padding included, and one copy moves the buffer. So
//! the number of reads and copies depends on the bytes, not on the number of tensors.
//!
//! ```text
//! file    |aaaaaaaaaaa|bbb|ccccccccccccccc|        one read
//! buffer  |aaaaaaaaaaa....|bbb.............|ccccccccccccccc|   three pieces, one copy
//! ```
//!
//! # Invariants
//! - **P1** Each byte of each selected tensor is in exactly one piece (I2).
//! - **P2** A job's pieces lie in order, without overlap, within its span; the span lies within its region.
//! - **P3** A job's bytes lie between two neighbouring multiples of the length at which files are cut, if they are; those of a changed tensor need
//!   not (P4, P5).

use std::ops::Range;

use tensorhold_allocator::Request;
use tensorhold_allocator::offsets::Layout;

use super::change::Changes;
use super::parts::{Cutter, Part};
use crate::io::MAX_BUFFERS;

/// Where a selected tensor's bytes are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    /// Index of the file.
    pub(crate) file: usize,
    /// Offset in the file.
    pub(crate) start: u64,
    /// Bytes of the tensor as it will be. So many lie in the file, one after the other, unless it is changed.
    pub(crate) bytes: u64,
}

impl Extent {
    /// What the allocator is asked for.
    pub(crate) fn request(&self) -> Request {
        Request::new(self.bytes, TENSOR_ALIGN)
    }
}

/// Every tensor starts at a multiple of this, on every device.
pub(crate) const TENSOR_ALIGN: u64 = 256;

/// One read and, where the target is not host-accessible, one copy.
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
    /// The tensors whose bytes are among these: indices of extents.
    pub(crate) tensors: Range<usize>,
    /// What it has of a changed tensor, in [`Plan::parts`]; its one piece is then what it has in the file. `None` where the bytes stay as they are.
    pub(crate) part: Option<usize>,
    /// Readers through the page cache find out by reading what is cached: of much that the job spans, little is read.
    pub(crate) is_tried: bool,
    /// What readers through the page cache leave in a slot: the span, or what the device makes that of.
    pub(crate) staged: u64,
    /// Where that begins in the slot of the job's group.
    pub(crate) slot: u64,
}

impl Job {
    /// Bytes of tensors that have arrived when it has landed.
    pub(crate) fn bytes(&self) -> u64 {
        if self.part.is_some() { self.span } else { self.file_bytes }
    }
}

/// A part of a job's span that is filled from the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Offset in the span.
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

/// How long jobs and groups may be, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// The longest span of a job; more than 0.
    pub(crate) span: u64,
    /// Jobs end where the file's offset is a multiple of this (more than 0), or before.
    pub(crate) cut: Option<u64>,
    /// The longest span of a group's jobs together; `span` or more.
    pub(crate) group: u64,
}

impl Limits {
    /// How many bytes of a file there are until the next place where it is cut.
    pub(super) fn until_cut(&self, start: u64) -> u64 {
        self.cut.map_or(u64::MAX, |cut| cut - start % cut)
    }
}

/// All jobs of a load.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) jobs: Vec<Job>,
    pub(crate) pieces: Vec<Piece>,
    pub(super) parts: Vec<Part>,
    /// Consecutive jobs whose spans lie close together, for those who copy them together.
    pub(crate) groups: Vec<Range<usize>>,
    /// Bytes of tensors in all.
    pub(crate) bytes: u64,
}

impl Plan {
    /// Cuts the tensors into jobs and groups. `layout` places `extents`, one for one.
    pub(super) fn new(
        extents: impl IntoIterator<Item = Extent>,
        layout: &Layout,
        limits: Limits,
        changes: &Changes,
    ) -> Self {
        let bytes: u64 = layout.placements.iter().map(|placement| placement.bytes).sum();
        let tensors = layout.placements.len();
        // Each span but the last of a file is full, or ends for want of buffers.
        let full = limits.cut.unwrap_or(u64::MAX).min(limits.span);
        let jobs = bytes / full + (tensors / MAX_BUFFERS) as u64 + 8;
        let mut plan = Self {
            jobs: Vec::with_capacity(jobs as usize),
            // One for each job and tensor, at most.
            pieces: Vec::with_capacity(jobs as usize + tensors),
            ..Self::default()
        };
        let mut changed = changes.changed.iter().enumerate().peekable();
        for (tensor, (extent, placement)) in extents.into_iter().zip(&layout.placements).enumerate() {
            let region = placement.region as usize;
            if let Some((number, _)) = changed.next_if(|(_, (changed, _))| *changed == tensor) {
                Cutter::cut(&mut plan, limits, changes, number, extent, (region, placement.offset));
                continue;
            }
            let mut done = 0;
            while done < extent.bytes {
                done += plan.add(tensor, extent, region, placement.offset, done, limits);
            }
        }
        plan.group(limits.group);
        plan
    }

    fn group(&mut self, max_group: u64) {
        let mut first = 0;
        for index in 0..self.jobs.len() {
            let (before, rest) = self.jobs.split_at_mut(index);
            let Some(job) = rest.first_mut() else { continue };
            let launched =
                |job: &Job| job.part.and_then(|part| self.parts.get(part)).filter(|part| part.on_device);
            let phase = launched(job).map_or(0, |part| part.phase);
            let fits = before.get(first).zip(before.last()).filter(|(start, _)| start.region == job.region);
            let slot = fits.map(|(_, last)| match (launched(last), launched(job)) {
                // What is copied lies as in the region, where tensors are laid out in ascending order, and so are jobs: one copy moves it all.
                (None, None) => last.slot + (job.offset - last.offset),
                // One launch is enough.
                (Some(part), Some(next)) if part.is_dense() && next.is_dense() && follows(last, job) => {
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

    /// Whether the device transforms what readers through the page cache leave in staging memory.
    pub(super) fn launches(&self, job: &Job) -> bool {
        self.part(job).is_some_and(|part| part.on_device)
    }

    /// Whether `next` can be launched with `job`, as one.
    pub(super) fn continues(&self, job: &Job, next: &Job) -> bool {
        let dense = |job: &Job| self.part(job).is_some_and(|part| part.on_device && part.is_dense());
        dense(job) && dense(next) && follows(job, next) && job.slot + job.staged == next.slot
    }

    /// What a job has of a changed tensor.
    pub(super) fn part(&self, job: &Job) -> Option<&Part> {
        self.parts.get(job.part?)
    }

    /// Adds the rest of an extent from `done` on, or as much of it as the current job or a new one takes. Returns how
    /// much.
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
            && job.part.is_none()
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
            part: None,
            is_tried: false,
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

/// Whether a job's elements come right behind another's of the same tensor.
fn follows(job: &Job, next: &Job) -> bool {
    job.tensors == next.tensors && job.offset + job.span == next.offset
}
