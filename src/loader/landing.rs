//! Where a job's bytes belong, in a region or in a slot that stands for a part of it.
//!
//! ```text
//! file    |aaaaaaaaaaa|bbb|ccccc|
//! packed  ..|aaaaaaaaaaa|bbb|ccccc|.....     read past the page cache: whole blocks, the job's bytes begin at `head`
//! spread    |aaaaaaaaaaa....|bbb.......|ccccc|   as in the region
//! ```

use std::io::IoSliceMut;
use std::ptr;

use smallvec::SmallVec;
use tensorhold_allocator::Bases;
use tensorhold_kernels::Block;

use super::change::{Change, Changes};
use super::parts::Part;
use super::plan::{Job, Plan};
use crate::device::Transform;
use crate::error::Result;

/// The regions that are filled.
#[derive(Debug, Clone, Copy)]
pub(super) struct Landing<'a> {
    pub(super) plan: &'a Plan,
    pub(super) changes: &'a Changes,
    pub(super) bases: &'a Bases,
}

/// Where a job's bytes lie in a buffer.
#[derive(Debug, Clone, Copy)]
pub(super) enum Form {
    /// One after the other, from this offset on.
    Packed(u64),
    /// As in the region.
    Spread,
}

/// How what a job has of a changed tensor lies in a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PartForm {
    /// From the first byte to the last, as in the file.
    AsInFile,
    /// Its runs, one behind the other.
    Dense,
}

pub(super) type Buffers<'a> = SmallVec<[IoSliceMut<'a>; 16]>;

impl<'a> Landing<'a> {
    /// What a job has of a changed tensor, and how that is changed.
    pub(super) fn part(&self, job: &Job) -> Option<(&'a Part, &'a Change)> {
        let part = self.plan.part(job)?;
        self.changes.changed.get(part.change).map(|(_, change)| (part, change))
    }

    /// What makes so many jobs' spans, which lie side by side, of what lies at `source` in this form. `None` when none of it is changed.
    pub(super) fn transform(
        &self,
        jobs: &[Job],
        source: *const u8,
        form: PartForm,
        target: *mut u8,
        counters: Option<*mut u64>,
    ) -> Option<Transform> {
        let (part, change) = self.part(jobs.first()?)?;
        let target_bytes = jobs.iter().map(|job| job.span).sum();
        let dense = form == PartForm::Dense || part.block.counts == [1; 3];
        let (block, source_bytes) = match dense {
            true => (
                Block::whole(target_bytes / change.target_unit),
                target_bytes / change.target_unit * change.unit,
            ),
            false => (part.block, jobs.first()?.file_bytes),
        };
        let conversion = change.conversion;
        Some(Transform { conversion, block, source, source_bytes, target, target_bytes, counters })
    }

    /// Where a job's span begins in its region. Where regions are backed in parts, waits until there is memory up to the
    /// end of the span.
    ///
    /// # Errors
    /// When there will be none.
    pub(super) fn address(&self, job: &Job) -> Result<*mut u8> {
        self.bases.wait_for(job.region, job.offset + job.span)?;
        // The plan and the memory come from one layout, so they have the same regions.
        Ok(self.bases[job.region].as_ptr().wrapping_add(job.offset as usize))
    }

    /// The buffers for a job's bytes after the first `done`, spread from `base` on.
    ///
    /// # Safety
    /// `base` is valid for writes of the job's span, which only the caller touches for as long as it uses the result,
    /// and the bytes there have values.
    pub(super) unsafe fn buffers<'b>(&self, job: &Job, base: *mut u8, done: u64) -> Buffers<'b> {
        let mut skip = done;
        let mut buffers = Buffers::new();
        for piece in self.plan.pieces_of(job) {
            let skipped = skip.min(piece.bytes);
            skip -= skipped;
            let (offset, bytes) = (piece.offset + skipped, piece.bytes - skipped);
            if bytes > 0 {
                // SAFETY: P2: the piece lies within the span and overlaps no other; the caller promises the rest.
                let bytes =
                    unsafe { std::slice::from_raw_parts_mut(base.add(offset as usize), bytes as usize) };
                buffers.push(IoSliceMut::new(bytes));
            }
        }
        buffers
    }

    /// Moves a job's bytes from where they were read to their places in the region, each once (I2).
    ///
    /// # Errors
    /// As [`address`](Self::address).
    ///
    /// # Safety
    /// `from` holds the job's bytes in that form and is not in the region; the region is host-accessible, and no one
    /// else touches the job's part of it.
    pub(super) unsafe fn place(&self, job: &Job, from: *const u8, form: Form) -> Result<()> {
        let (to, mut packed) = (self.address(job)?, 0);
        for piece in self.plan.pieces_of(job) {
            let at = match form {
                Form::Packed(head) => head + packed,
                Form::Spread => piece.offset,
            };
            packed += piece.bytes;
            // SAFETY: P2: the piece lies within the span; the caller promises the rest.
            unsafe {
                ptr::copy_nonoverlapping(
                    from.add(at as usize),
                    to.add(piece.offset as usize),
                    piece.bytes as usize,
                );
            };
        }
        Ok(())
    }

    /// Spreads packed bytes within their slot, from `head` on, so that one copy can move the span.
    ///
    /// # Safety
    /// `slot` holds the job's bytes packed from `head` on, and is valid for writes of the job's span from there on.
    pub(super) unsafe fn spread(&self, job: &Job, slot: *mut u8, head: u64) {
        // SAFETY: the caller promises that the slot is that long.
        let base = unsafe { slot.add(head as usize) };
        let mut packed = job.file_bytes;
        // From the last to the first: each moves up, if at all, to where nothing that is still needed lies.
        for piece in self.plan.pieces_of(job).iter().rev() {
            packed -= piece.bytes;
            if packed == piece.offset {
                // Neither this one nor those before it have a gap below them.
                return;
            }
            // SAFETY: P2: both places lie within the span; they may overlap.
            unsafe {
                ptr::copy(base.add(packed as usize), base.add(piece.offset as usize), piece.bytes as usize);
            };
        }
    }
}
