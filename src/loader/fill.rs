//! What is filled: the parts of a load that every reader knows.
//!
//! # Invariants
//! - **W1** Each job is one reader's at a time, so each byte of a region is written by one thread at a time, and no one
//!   else knows the regions before they are published (I3).
//! - **W2** When [`crew::run`](super::crew::run) returns or unwinds, every reader has ended and what it enqueued has ended
//!   too (T2), or its device failed to say so. Then regions and slots are still fragments whose addresses were given out: their pools
//!   synchronize the memory before it is used again (Q3), or keep it (I1).

use std::io;
use std::sync::OnceLock;

use tensorhold_allocator::Pool;

use super::engines::Engines;
use super::gds::ByCuFile;
use super::headers::Opened;
use super::landing::Landing;
use super::lane::Lane;
use super::options::Readers;
use super::plan::Job;
use super::ring::Ring;
use super::route::Routes;
use super::staging::Budget;
use super::stopwatch::Totals;
use super::tally::Tally;
use super::work::Work;
use crate::device::Device;
use crate::error::{Error, Remedy, Result};
use crate::io::BackendKind;
use crate::limits;

/// What is filled from what, and how.
pub(super) struct Fill<'a> {
    pub(super) landing: Landing<'a>,
    /// How many tensors there are.
    pub(super) tensors: usize,
    pub(super) files: &'a [Opened],
    pub(super) device: &'a Device,
    pub(super) readers: &'a Readers,
    pub(super) engines: &'a Engines,
    pub(super) routes: Routes<'a>,
    /// Where slots come from.
    pub(super) staging: &'a Pool,
    pub(super) budget: &'a Budget,
    /// Where readers by cuFile take their scratch from, if not from a pool of the load's own.
    pub(super) scratch: Option<&'a Pool>,
    /// What they share, once there are some.
    pub(super) gds: OnceLock<ByCuFile>,
    /// Where readers through the page cache leave what the device copies; `None` where they read in place.
    pub(super) ring: Option<Ring<'a>>,
    /// What conversions meet, if that is counted.
    pub(super) tally: Option<&'a Tally>,
    pub(super) totals: Totals,
}

impl Fill<'_> {
    /// The error for an engine that makes no queue. Where no descriptor is left, the limit is to blame and not the engine.
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

    /// Opens a lane of at most so many slots, `first` of them at once; `None` when there is no memory for it, which is noted.
    pub(super) fn open_lane(&self, work: &Work<'_>, slots: usize, first: usize) -> Result<Option<Lane<'_>>> {
        let staging = self.readers.lane(self.staging, self.budget, slots);
        match Lane::open(self.device, staging, first) {
            Ok(lane) => Ok(Some(lane)),
            Err(error @ Error::Memory(_)) => {
                work.refuse(error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Says that staging memory is not used any more.
    ///
    /// # Safety
    /// All readers have ended, and so has what they enqueued.
    pub(super) unsafe fn settle(&self) {
        // SAFETY: as the caller promises, for both.
        unsafe {
            self.budget.settle();
            self.ring.iter().for_each(|ring| ring.settle());
        }
    }

    pub(super) fn in_place(&self) -> bool {
        self.device.is_host_accessible()
    }

    /// The error for a part that the CPU is to transform where there is no scratch memory for it.
    pub(super) fn without_scratch(&self, job: &Job) -> Error {
        Error::Device {
            device: self.device.name().into(),
            operation: "transform on the CPU",
            detail: format!("there is no scratch memory for {} bytes", job.file_bytes),
            remedy: Remedy::RAISE_STAGING,
        }
    }

    /// The counters of a job's conversions in the device's memory, if they are counted.
    pub(super) fn device_counters(&self, job: &Job) -> Option<*mut u64> {
        self.tally?.on_device(self.landing.part(job)?.0.change)
    }

    /// The error for a file that ends at `end`, before the job's bytes do.
    pub(super) fn cut_short(&self, job: &Job, end: u64) -> Error {
        let source = &self.files[job.file].source;
        source.changed(format!("it was cut short: {} bytes when opened, now it ends at {end}", source.len()))
    }
}

/// Why an engine makes no queue, with the limit that was reached if one was.
pub(super) fn refusal_of_queue(kind: BackendKind, error: &io::Error) -> String {
    match limits::of_rings(error).filter(|_| kind == BackendKind::IoUring) {
        Some(limit) => format!("{error} ({}; {})", limit.problem, limit.remedy),
        None => error.to_string(),
    }
}
