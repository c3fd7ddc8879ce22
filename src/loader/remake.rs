//! What readers do with the parts of changed tensors: reading them, and making of them what the region will have.
//!
//! | | through the page cache | past it |
//! |---|---|---|
//! | read | by runs, or as a whole | whole blocks |
//! | on a device that transforms | into a slot, from which a kernel writes to the region | the same |
//! | else | into scratch, from which the CPU writes to the region or to a slot | into a slot, from which the CPU writes to the region or to the same slot's end |
//!
//! So each element is written once to where it stays, or to the slot that it is copied from (I2).

use tensorhold_allocator::{Fragment, Request};

use super::fill::Fill;
use super::landing::PartForm;
use super::parts::{self, Part, Reading};
use super::plan::Job;
use super::route::Way;
use super::runs::{Own, Runs};
use super::through::{self, Outcome};
use super::work::Work;
use crate::error::{Error, Result};
use crate::io::Queue;

/// What one reader through the page cache has for parts alone.
#[derive(Default)]
pub(super) struct Scratch {
    /// Where it reads what the CPU then transforms.
    memory: Option<Fragment>,
    /// The file that it last read by runs.
    own: Option<Own>,
}

impl Scratch {
    /// As much as a part takes, where that is needed; `None` when it cannot be had, which is noted.
    pub(super) fn open(fill: &Fill<'_>, work: &Work<'_>) -> Result<Option<Self>> {
        let on_cpu = |part: &Part| !part.on_device && fill.landing.changes.is_transformed(part);
        if !fill.landing.plan.parts.iter().any(on_cpu) {
            return Ok(Some(Self::default()));
        }
        let bytes = parts::part_bytes(fill.readers.limits(), false);
        match fill.staging.place("scratch", Request::new(bytes, 4096)) {
            Ok(memory) => Ok(Some(Self { memory: Some(memory), own: None })),
            Err(error) => {
                work.refuse(Error::Memory(error));
                Ok(None)
            }
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(memory) = &self.memory {
            // SAFETY: it was this reader's alone, which is done with it. No device has read it.
            unsafe { memory.assume_unused() };
        }
    }
}

/// Reads a job's bytes through the page cache to `to`: as the region will have them or, where the device transforms them, as it takes them.
///
/// # Safety
/// `to` is valid for writes of what the job has in a slot (its span where that is not transformed on the device), which only the caller touches, and
/// its bytes have values.
pub(super) unsafe fn read(
    fill: &Fill<'_>,
    queue: &mut dyn Queue,
    job: &Job,
    to: *mut u8,
    way: Way,
    scratch: &mut Scratch,
) -> Result<Outcome> {
    let Some((part, _)) = fill.landing.part(job) else {
        // SAFETY: passed on.
        return unsafe { through::read_job(fill, queue, job, to, way) };
    };
    if part.on_device || !fill.landing.changes.is_transformed(part) {
        // SAFETY: passed on.
        return unsafe { read_part(fill, queue, job, part, to, way, scratch) };
    }
    let Some(memory) = &scratch.memory else { return Err(fill.without_scratch(job)) };
    let from = memory.as_ptr().cast_mut();
    // SAFETY: P5: the scratch, which is this reader's, is as long as the longest part, and its bytes have values (M2).
    let outcome = unsafe { read_part(fill, queue, job, part, from, way, scratch) }?;
    if outcome == Outcome::Complete {
        let form = if part.reading == Reading::Runs { PartForm::Dense } else { PartForm::AsInFile };
        // SAFETY: the scratch holds the job's bytes; the caller promises the rest.
        unsafe { transform(fill, job, from, form, to) }?;
    }
    Ok(outcome)
}

/// Makes a job's span at `to` of its bytes at `from`, on the CPU.
///
/// # Safety
/// `from` holds the job's bytes in that form. `to` is valid for writes of the job's span, which does not overlap them, which only the caller
/// touches, and whose bytes have values.
pub(super) unsafe fn transform(
    fill: &Fill<'_>,
    job: &Job,
    from: *const u8,
    form: PartForm,
    to: *mut u8,
) -> Result<()> {
    let counters = fill.tally.and_then(|tally| tally.on_cpu(fill.landing.part(job)?.0.change));
    match fill.landing.transform(std::slice::from_ref(job), from, form, to, counters) {
        // SAFETY: as the caller promises; the counters are atomic, and live as long as the load.
        Some(transform) => unsafe { transform.on_cpu() },
        None => Ok(()),
    }
}

/// Reads a part as the plan says: by runs, one behind the other, or as a whole.
///
/// # Safety
/// As [`read`], of what is read.
unsafe fn read_part(
    fill: &Fill<'_>,
    queue: &mut dyn Queue,
    job: &Job,
    part: &Part,
    to: *mut u8,
    way: Way,
    scratch: &mut Scratch,
) -> Result<Outcome> {
    if part.reading == Reading::Whole {
        // SAFETY: passed on: the job's one piece is all that it has in the file.
        return unsafe { through::read_job(fill, queue, job, to, way) };
    }
    let Some((_, change)) = fill.landing.part(job) else { return Ok(Outcome::Complete) };
    let runs = Runs::new(job, part, change.unit);
    // SAFETY: passed on.
    unsafe { runs.read(fill, queue, job, to, way, &mut scratch.own) }
}

/// Where, in a slot that holds a job's bytes from `head` on, the CPU may make its span.
pub(super) fn behind(job: &Job, head: u64) -> u64 {
    (head + job.file_bytes).next_multiple_of(16)
}
