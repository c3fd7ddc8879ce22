//! [`Scatter`]: the places of a job's bytes in its region, or in a slot that has the layout of a part of it.
//!
//! ```text
//! file    |aaaaaaaaaaa|bbb|ccccc|
//! packed  ..|aaaaaaaaaaa|bbb|ccccc|.....     a direct read of whole blocks: the job's bytes begin at `head`
//! spread    |aaaaaaaaaaa....|bbb.......|ccccc|   as in the region
//! ```

use std::io::IoSliceMut;
use std::ptr;

use smallvec::SmallVec;
use tensorhold_allocator::Bases;
use tensorhold_kernels::Block;

use super::stats::ConversionStats;
use crate::device::Transform;
use crate::error::Result;
use crate::loader::plan::{Job, JobTransform, Plan};
use crate::loader::transform::{TensorTransform, TensorTransforms};

/// The plan of a load, and the regions that it fills.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scatter<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) transforms: &'a TensorTransforms,
    pub(crate) bases: &'a Bases,
}

/// How a job's bytes lie in a buffer.
#[derive(Debug, Clone, Copy)]
pub(super) enum SlotLayout {
    /// Contiguous, from this offset on.
    Packed(u64),
    /// As in the region.
    Spread,
}

/// How the input of a job's transform lies in a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SourceLayout {
    /// The span of the block, as in the file.
    AsInFile,
    /// The runs of the block, packed.
    Dense,
}

/// Buffers of a vectored read.
pub(super) type Buffers<'a> = SmallVec<[IoSliceMut<'a>; 16]>;

impl<'a> Scatter<'a> {
    /// The transform of a job, and that of its tensor; `None` if the job's bytes are not transformed.
    pub(super) fn transform_of(&self, job: &Job) -> Option<(&'a JobTransform, &'a TensorTransform)> {
        let transform = self.plan.transform_of(job)?;
        self.transforms.tensors.get(transform.index).map(|(_, tensor)| (transform, tensor))
    }

    /// The device's or the CPU's transform for jobs whose spans are contiguous, from input at `source` in
    /// this layout. `None` if the jobs are not transformed.
    pub(super) fn transform(
        &self,
        jobs: &[Job],
        source: *const u8,
        layout: SourceLayout,
        target: *mut u8,
        counters: Option<*mut u64>,
    ) -> Option<Transform> {
        let (transform, tensor) = self.transform_of(jobs.first()?)?;
        let target_bytes = jobs.iter().map(|job| job.span).sum();
        let dense = layout == SourceLayout::Dense || transform.block.counts == [1; 3];
        let (block, source_bytes) = match dense {
            true => (
                Block::whole(target_bytes / tensor.target_unit),
                target_bytes / tensor.target_unit * tensor.unit,
            ),
            false => (transform.block, jobs.first()?.file_bytes),
        };
        let conversion = tensor.conversion;
        Some(Transform { conversion, block, source, source_bytes, target, target_bytes, counters })
    }

    /// The counters in the device's memory for a job's conversions, if `stats` counts them.
    pub(super) fn device_counters(&self, stats: Option<&ConversionStats>, job: &Job) -> Option<*mut u64> {
        stats?.on_device(self.transform_of(job)?.0.index)
    }

    /// The address of a job's span in its region. If regions are backed in parts, waits until there is memory
    /// up to the end of the span.
    ///
    /// # Errors
    /// When the memory cannot be backed.
    pub(super) fn address(&self, job: &Job) -> Result<*mut u8> {
        self.bases.wait_for(job.region, job.offset + job.span)?;
        // The plan and the bases come from one layout, so they have the same regions.
        Ok(self.bases[job.region].as_ptr().wrapping_add(job.offset as usize))
    }

    /// The buffers for a job's bytes after the first `done`, spread from `base` on.
    ///
    /// # Safety
    /// `base` is valid for writes of the job's span. Only the caller accesses those bytes while it uses the
    /// result, and they are initialized.
    pub(super) unsafe fn buffers<'b>(&self, job: &Job, base: *mut u8, done: u64) -> Buffers<'b> {
        let mut skip = done;
        let mut buffers = Buffers::new();
        for piece in self.plan.pieces_of(job) {
            let skipped = skip.min(piece.bytes);
            skip -= skipped;
            let (offset, bytes) = (piece.offset + skipped, piece.bytes - skipped);
            if bytes > 0 {
                // SAFETY: P2: the piece lies within the span and overlaps no other; the caller promises the
                // rest.
                let bytes =
                    unsafe { std::slice::from_raw_parts_mut(base.add(offset as usize), bytes as usize) };
                buffers.push(IoSliceMut::new(bytes));
            }
        }
        buffers
    }

    /// Copies a job's bytes from a buffer to their places in the region, each once (I2).
    ///
    /// # Errors
    /// As [`address`](Self::address).
    ///
    /// # Safety
    /// `from` holds the job's bytes in that layout and is not in the region. The region is host-accessible,
    /// and no one else accesses the job's part of it.
    pub(super) unsafe fn place(&self, job: &Job, from: *const u8, layout: SlotLayout) -> Result<()> {
        let (to, mut packed) = (self.address(job)?, 0);
        for piece in self.plan.pieces_of(job) {
            let at = match layout {
                SlotLayout::Packed(head) => head + packed,
                SlotLayout::Spread => piece.offset,
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

    /// Spreads packed bytes within their slot, from `head` on, so that one copy moves the span.
    ///
    /// # Safety
    /// `slot` holds the job's bytes packed from `head` on, and is valid for writes of the job's span from
    /// there on.
    pub(super) unsafe fn spread(&self, job: &Job, slot: *mut u8, head: u64) {
        // SAFETY: the caller promises that the slot is that long.
        let base = unsafe { slot.add(head as usize) };
        let mut packed = job.file_bytes;
        // From the last to the first: a piece only moves up, over bytes that have moved already.
        for piece in self.plan.pieces_of(job).iter().rev() {
            packed -= piece.bytes;
            if packed == piece.offset {
                // Neither this piece nor those before it have a gap below them.
                return;
            }
            // SAFETY: P2: both places lie within the span; they may overlap.
            unsafe {
                ptr::copy(base.add(packed as usize), base.add(piece.offset as usize), piece.bytes as usize);
            };
        }
    }
}

/// The disk blocks that contain a job's bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockRange {
    /// Offset of the first block in the file.
    pub(super) start: u64,
    /// Offset of the job's bytes in the first block.
    pub(super) head: u64,
    /// Length of all blocks.
    pub(super) bytes: u64,
    /// Reads begin at multiples of this.
    pub(super) alignment: u64,
}

impl BlockRange {
    pub(super) fn of(job: &Job, alignment: u64) -> Self {
        let head = job.file_offset % alignment;
        let bytes = (head + job.file_bytes).next_multiple_of(alignment);
        Self { start: job.file_offset - head, head, bytes, alignment }
    }
}
