//! [`ReadContext`]: the state that all readers of a load share.
//!
//! # Invariants
//! - **W1** Each job belongs to one reader at a time, so one thread at a time writes each byte of a region.
//!   No one else has access to the regions before they are published (I3).
//! - **W2** When [`readers::run`](super::readers::run) returns or unwinds, every reader has ended, and so has
//!   all work that it enqueued (T2), unless the device failed to report that. In that case, regions and slots
//!   are still fragments whose addresses were given out: their pools synchronize the memory before it is
//!   reused (Q3), or keep it (I1).

use std::io;
use std::sync::OnceLock;

use tensorhold_allocator::Pool;

use super::cufile::CuFileSession;
use super::job_queue::JobQueue;
use super::route::Routes;
use super::scatter::Scatter;
use super::staging_ring::StagingRing;
use super::stats::{ConversionStats, StageTotals};
use crate::device::Device;
use crate::error::{Error, Remedy, Result};
use crate::io::{BackendKind, Engines};
use crate::limits;
use crate::loader::metadata::OpenedFile;
use crate::loader::plan::Job;
use crate::loader::staging::{ReaderSlots, StagingBudget};
use crate::loader::tuning::ReaderTuning;

/// The sources, the targets and the resources of a load.
pub(crate) struct ReadContext<'a> {
    pub(crate) scatter: Scatter<'a>,
    /// Number of tensors.
    pub(crate) tensors: usize,
    pub(crate) files: &'a [OpenedFile],
    pub(crate) device: &'a Device,
    pub(crate) tuning: &'a ReaderTuning,
    pub(crate) engines: &'a Engines,
    pub(crate) routes: Routes<'a>,
    /// The pool of slots.
    pub(crate) staging: &'a Pool,
    pub(crate) budget: &'a StagingBudget,
    /// The caller's pool for cuFile's scratch. `None`: the load makes one.
    pub(crate) scratch: Option<&'a Pool>,
    /// Set once cuFile reads.
    pub(crate) cufile: OnceLock<CuFileSession>,
    /// The slots of buffered readers; `None` if they read in place.
    pub(crate) ring: Option<StagingRing<'a>>,
    /// Counters of conversions, if they are requested.
    pub(crate) conversion_stats: Option<&'a ConversionStats>,
    pub(crate) stage_totals: StageTotals,
}

impl ReadContext<'_> {
    /// The error for an engine that cannot make a queue. If the process is out of descriptors, the error
    /// names that limit instead of the engine.
    pub(super) fn queue_refused(&self, kind: BackendKind, error: &io::Error) -> Error {
        if let Some(limit) = error.raw_os_error().map(io::Error::from_raw_os_error)
            && limits::is_of_descriptors(&limit)
            && let Some(file) = self.files.first()
        {
            let path = file.source.path().to_path_buf();
            return Error::Io { operation: "make a queue for reads of", path, source: limit };
        }
        Error::Option {
            option: "backend",
            got: format!("{kind}, which the system refuses: {}", refusal_of_queue(kind, error)),
            expected: "one that it has".into(),
            remedy: Remedy::AUTO_BACKEND,
        }
    }

    /// Opens at most `slots` slots for a direct reader, `first` of them at once. `None` if there is no
    /// memory, which the queue records.
    pub(super) fn open_slots(
        &self,
        job_queue: &JobQueue<'_>,
        slots: usize,
        first: usize,
    ) -> Result<Option<ReaderSlots<'_>>> {
        let slot_pool = self.tuning.reader_slot_pool(self.staging, self.budget, slots);
        match ReaderSlots::open(self.device, slot_pool, first) {
            Ok(slots) => Ok(Some(slots)),
            Err(error @ Error::Memory(_)) => {
                job_queue.refuse(error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Declares the staging memory unused.
    ///
    /// # Safety
    /// All readers have ended, and so has all work that they enqueued.
    pub(crate) unsafe fn settle(&self) {
        // SAFETY: as the caller promises, for both.
        unsafe {
            self.budget.settle();
            self.ring.iter().for_each(|ring| ring.settle());
        }
    }

    /// Whether the CPU can write the target.
    pub(super) fn in_place(&self) -> bool {
        self.device.is_host_accessible()
    }

    /// The error for a job that the CPU has to transform without scratch memory.
    pub(super) fn without_scratch(&self, job: &Job) -> Error {
        Error::Device {
            device: self.device.name().into(),
            operation: "transform on the CPU",
            detail: format!("there is no scratch memory for {} bytes", job.file_bytes),
            remedy: Remedy::RAISE_STAGING,
        }
    }

    /// The error for a file that ends at `end`, before the end of the job's bytes.
    pub(super) fn cut_short(&self, job: &Job, end: u64) -> Error {
        let source = &self.files[job.file].source;
        source.changed(format!("it was cut short: {} bytes when opened, now it ends at {end}", source.len()))
    }
}

/// Why an engine cannot make a queue, and the limit of the system that was reached, if any.
pub(super) fn refusal_of_queue(kind: BackendKind, error: &io::Error) -> String {
    match limits::of_rings(error).filter(|_| kind == BackendKind::IoUring) {
        Some(limit) => format!("{error} ({}; {})", limit.problem, limit.remedy),
        None => error.to_string(),
    }
}
