//! Reading and transforming the jobs of transformed tensors.
//!
//! | | buffered readers | direct readers |
//! |---|---|---|
//! | read | runs, or the span of the block | the disk blocks around the span |
//! | device transforms | into a slot, from which a kernel writes to the region | the same |
//! | CPU transforms | into scratch, from which the CPU writes to the region or to a slot | into a slot, from which the CPU writes to the region or to the end of the slot |
//!
//! So each element is written once: to its final place, or to the slot from which it is copied (I2).

use tensorhold_allocator::{Fragment, Request};

use super::buffered_read::{self, ReadOutcome};
use super::context::ReadContext;
use super::job_queue::JobQueue;
use super::route::ReadRoute;
use super::scatter::SourceLayout;
use super::strided_read::{PrivateFile, StridedRuns};
use crate::error::{Error, Result};
use crate::io::Queue;
use crate::loader::plan::{Job, JobTransform, StridedRead, is_transformed, transform_job_bytes};

/// The resources of one buffered reader for transformed jobs.
#[derive(Default)]
pub(super) struct TransformScratch {
    /// Holds the input of the CPU's transforms.
    memory: Option<Fragment>,
    /// The file of the last strided read.
    file: Option<PrivateFile>,
}

impl TransformScratch {
    /// Places memory for one block if the CPU transforms. `None` if there is no memory, which the queue
    /// records.
    pub(super) fn open(context: &ReadContext<'_>, job_queue: &JobQueue<'_>) -> Result<Option<Self>> {
        let on_cpu = |transform: &JobTransform| {
            !transform.on_device && is_transformed(context.scatter.transforms, transform)
        };
        if !context.scatter.plan.transforms.iter().any(on_cpu) {
            return Ok(Some(Self::default()));
        }
        let bytes = transform_job_bytes(context.tuning.limits(), false);
        match context.staging.place("scratch", Request::new(bytes, 4096)) {
            Ok(memory) => Ok(Some(Self { memory: Some(memory), file: None })),
            Err(error) => {
                job_queue.refuse(Error::Memory(error));
                Ok(None)
            }
        }
    }
}

impl Drop for TransformScratch {
    fn drop(&mut self) {
        if let Some(memory) = &self.memory {
            // SAFETY: only this reader used it, and has ended. No device has read it.
            unsafe { memory.assume_unused() };
        }
    }
}

/// Reads a job's bytes through the page cache to `to`: in the layout of the region or, if the device
/// transforms them, in that of the transform's input.
///
/// # Safety
/// `to` is valid for writes of the bytes that the job leaves in a slot (its span, unless the device
/// transforms it). Only the caller accesses them, and they are initialized.
pub(super) unsafe fn read(
    context: &ReadContext<'_>,
    queue: &mut dyn Queue,
    job: &Job,
    to: *mut u8,
    route: ReadRoute,
    scratch: &mut TransformScratch,
) -> Result<ReadOutcome> {
    let Some((transform, _)) = context.scatter.transform_of(job) else {
        // SAFETY: passed on.
        return unsafe { buffered_read::read_job(context, queue, job, to, route) };
    };
    if transform.on_device || !is_transformed(context.scatter.transforms, transform) {
        // SAFETY: passed on.
        return unsafe { read_block(context, queue, job, transform, to, route, scratch) };
    }
    let Some(memory) = &scratch.memory else { return Err(context.without_scratch(job)) };
    let from = memory.as_ptr().cast_mut();
    // SAFETY: P5: the scratch, which is this reader's, is as long as the longest block, and its bytes are
    // initialized (M2).
    let outcome = unsafe { read_block(context, queue, job, transform, from, route, scratch) }?;
    if outcome == ReadOutcome::Complete {
        let layout =
            if transform.reading == StridedRead::Runs { SourceLayout::Dense } else { SourceLayout::AsInFile };
        // SAFETY: the scratch holds the job's bytes; the caller promises the rest.
        unsafe { transform_on_cpu(context, job, from, layout, to) }?;
    }
    Ok(outcome)
}

/// Transforms a job's bytes at `from` to its span at `to`, on the CPU.
///
/// # Safety
/// `from` holds the job's bytes in that layout. `to` is valid for writes of the job's span, which does not
/// overlap them. Only the caller accesses the span, and its bytes are initialized.
pub(super) unsafe fn transform_on_cpu(
    context: &ReadContext<'_>,
    job: &Job,
    from: *const u8,
    layout: SourceLayout,
    to: *mut u8,
) -> Result<()> {
    let counters = context
        .conversion_stats
        .and_then(|conversion_stats| conversion_stats.on_cpu(context.scatter.transform_of(job)?.0.index));
    match context.scatter.transform(std::slice::from_ref(job), from, layout, to, counters) {
        // SAFETY: as the caller promises; the counters are atomic, and live as long as the load.
        Some(transform) => unsafe { transform.on_cpu() },
        None => Ok(()),
    }
}

/// Reads a block as planned: its runs, packed, or its span.
///
/// # Safety
/// As [`read`], for the bytes that are read.
unsafe fn read_block(
    context: &ReadContext<'_>,
    queue: &mut dyn Queue,
    job: &Job,
    transform: &JobTransform,
    to: *mut u8,
    route: ReadRoute,
    scratch: &mut TransformScratch,
) -> Result<ReadOutcome> {
    if transform.reading == StridedRead::Span {
        // SAFETY: passed on: the job's one piece is its span of the file.
        return unsafe { buffered_read::read_job(context, queue, job, to, route) };
    }
    let Some((_, tensor)) = context.scatter.transform_of(job) else { return Ok(ReadOutcome::Complete) };
    let runs = StridedRuns::new(job, transform, tensor.unit);
    // SAFETY: passed on.
    unsafe { runs.read(context, queue, job, to, route, &mut scratch.file) }
}

/// The offset in a slot, which holds a job's bytes from `head` on, at which the CPU may write the job's span.
pub(super) fn offset_after(job: &Job, head: u64) -> u64 {
    (head + job.file_bytes).next_multiple_of(16)
}
