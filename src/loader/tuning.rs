//! [`ReaderTuning`]: how the readers of a load work. Sizes of jobs and slots, numbers of threads and slots.

use tensorhold_allocator::Pool;

use crate::error::Error;
use crate::io::{Backend, BackendKind, MAX_ALIGNMENT, SLACK_BYTES};
use crate::loader::plan::{Limits, transform_job_bytes};
use crate::loader::staging::{FIRST_SLOTS, SlotPool, StagingBudget};
use crate::report::Choice;
use crate::settings;

/// A read of this size is close to the optimum (`docs/performance.md`): smaller ones need more calls, larger
/// ones more cache.
pub(super) const READ_BYTES: u64 = 1 << 20;

/// Virtual disks may account for reads in units of this size: staged reads are aligned to it.
pub(super) const STORAGE_BYTES: u64 = 256 << 10;

/// Room in a staged job in addition to its bytes: whole disk blocks at both ends, and the same again for
/// padding between tensors.
const ROOM_BYTES: u64 = 2 * SLACK_BYTES;

/// The largest staged job.
const JOB_BYTES: u64 = READ_BYTES + ROOM_BYTES;

/// The largest job where cuFile reads everything: each read is a call that blocks, so fewer and longer ones
/// are faster.
const GDS_JOB_BYTES: u64 = (4 << 20) + ROOM_BYTES;

/// The staging memory holds at least this many reads by cuFile: from a disk, where longer ones gain nothing,
/// and from the page cache (`docs/gds.md`).
const GDS_SHARES: u64 = 31;
const GDS_CACHED_SHARES: u64 = 15;

/// The largest job in place: two huge pages, so that no two readers wait for the kernel to clear one page.
const IN_PLACE_JOB_BYTES: u64 = (4 << 20) + SLACK_BYTES;

/// The smallest job: shorter reads are mostly overhead.
const MIN_JOB_BYTES: u64 = 24 << 10;

/// A load has at least this many jobs, unless they would be shorter than [`STORAGE_BYTES`]: many for each
/// reader.
const JOBS: u64 = 256;

/// The largest copy. The bus idles for 4 microseconds after each copy that is waited for. Longer copies mean
/// fewer slots, all of which wait if a few readers are descheduled (`docs/performance.md`).
const GROUP_BYTES: u64 = 8 * JOB_BYTES;

/// Staging memory that is pinned in one piece while the load is planned: by default all of the ring. Later
/// slots are pinned one at a time, and delay the copies: while the driver pins memory, it accepts no copy.
const FIRST_BYTES: u64 = 6 * GROUP_BYTES;

/// The least number of slots of the ring: one is copied, one is filled, and one waits.
const RING_SLOTS: usize = 3;

/// The most direct reads in flight: more gain nothing on a disk.
const MAX_DIRECT_SLOTS: usize = 64;

/// How the readers of a load work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ReaderTuning {
    pub(super) backend: Backend,
    /// Number of buffered readers.
    pub(super) threads: usize,
    /// The most bytes of a job, including the disk blocks at its ends. A multiple of the page size.
    pub(super) job_bytes: u64,
    /// Jobs that fit into the staging memory.
    pub(super) staging_jobs: usize,
    /// Staging memory in bytes, of which the ring takes a part; `None` if files are read in place.
    pub(super) ring_bytes: Option<u64>,
    /// Jobs that share a slot of the ring.
    pub(super) group_jobs: usize,
    pub(super) ring_slots: usize,
    /// The most slots of all direct readers together, which is the most reads in flight.
    pub(super) direct_slots: usize,
    /// Number of direct readers with an `io_uring`, which share those slots.
    pub(super) rings: usize,
    /// The limit of scratch on the device, in bytes; `None` if there is no limit.
    pub(super) scratch_bytes: Option<u64>,
    /// An environment variable, not the caller, requires the backend.
    pub(super) backend_by_setting: bool,
    pub(super) choices: Vec<Choice>,
}

impl ReaderTuning {
    /// The tuning for a load of unknown size. `staging` is the staging memory in bytes.
    pub(super) fn new(
        (backend, backend_by_setting): (Backend, bool),
        threads: usize,
        staging: u64,
        in_place: bool,
        choices: Vec<Choice>,
    ) -> Self {
        let (shares, most) = match backend {
            _ if in_place => (15, IN_PLACE_JOB_BYTES),
            Backend::Require(BackendKind::Gds) => (GDS_SHARES, GDS_JOB_BYTES),
            _ => (63, JOB_BYTES),
        };
        let job_bytes = (staging / shares / 4096 * 4096).clamp(MIN_JOB_BYTES, most);
        let staging_jobs = (staging / job_bytes) as usize;
        let direct_slots = staging_jobs.clamp(FIRST_SLOTS, MAX_DIRECT_SLOTS);
        // In place, the thread of an `io_uring` also moves bytes to their places.
        let rings = if in_place { threads.min(2).min(direct_slots / FIRST_SLOTS) } else { 1 };
        Self {
            backend,
            threads,
            job_bytes,
            ring_bytes: (!in_place).then_some(staging),
            staging_jobs,
            group_jobs: 1,
            ring_slots: 0,
            direct_slots,
            rings,
            scratch_bytes: None,
            backend_by_setting,
            choices,
        }
    }

    /// The limits of jobs and groups. Staged jobs end at blocks of the storage, or at least of the system;
    /// jobs in place end at huge pages of the region.
    pub(super) fn limits(&self) -> Limits {
        let span = self.job_bytes - SLACK_BYTES;
        let block = if span < STORAGE_BYTES { MAX_ALIGNMENT } else { STORAGE_BYTES };
        let cut = self.ring_bytes.map(|_| span / block * block);
        Limits { span, cut, group: self.group_bytes() }
    }

    /// Bytes of a slot of the ring.
    pub(super) fn group_bytes(&self) -> u64 {
        self.job_bytes * self.group_jobs as u64
    }

    /// The tuning for a load whose transforms run on the CPU: sets scratch aside for each buffered reader, at
    /// most a quarter of the staging memory.
    pub(super) fn with_scratch(&self) -> Self {
        let scratch = transform_job_bytes(self.limits(), false);
        let staging = self.staging_jobs as u64 * self.job_bytes;
        let threads = (self.threads as u64).min(staging / 4 / scratch).max(1);
        let aside = threads * scratch;
        let staging_jobs = self.staging_jobs.saturating_sub(aside.div_ceil(self.job_bytes) as usize);
        Self {
            threads: threads as usize,
            staging_jobs,
            ring_bytes: self.ring_bytes.map(|bytes| bytes.saturating_sub(aside)),
            direct_slots: self.direct_slots.min(staging_jobs).max(FIRST_SLOTS),
            rings: self.rings.min(staging_jobs / FIRST_SLOTS).max(1),
            ..self.clone()
        }
    }

    /// The tuning for a load of this many bytes. A short load pins little memory, which takes little time,
    /// and divides it into more slots.
    pub(super) fn for_bytes(&self, bytes: u64) -> Self {
        let Some(staging) = self.ring_bytes else { return self.clone() };
        let read = (bytes / JOBS / STORAGE_BYTES * STORAGE_BYTES).max(STORAGE_BYTES);
        let job_bytes = (read + ROOM_BYTES).min(self.job_bytes);
        let staging_jobs = (staging / job_bytes) as usize;
        // The ring leaves a quarter of the memory to direct readers, which leave two slots to the ring. The
        // rest goes to whoever takes it first.
        let most = staging_jobs - (staging_jobs / 4).max(FIRST_SLOTS);
        let ring_jobs = most.min((bytes / 8 / job_bytes) as usize).max(2 * RING_SLOTS).min(most);
        let group_jobs = (ring_jobs / RING_SLOTS).clamp(1, (GROUP_BYTES / job_bytes) as usize);
        let direct_slots = (staging_jobs - 2 * group_jobs).clamp(FIRST_SLOTS, MAX_DIRECT_SLOTS);
        Self {
            job_bytes,
            staging_jobs,
            group_jobs,
            ring_slots: ring_jobs / group_jobs,
            direct_slots,
            ..self.clone()
        }
    }

    /// The tuning for a load that cuFile reads from the page cache: longer jobs.
    pub(super) fn for_cached_cufile(self) -> Self {
        let Some(staging) = self.ring_bytes else { return self };
        let job_bytes = (staging / GDS_CACHED_SHARES / 4096 * 4096).clamp(MIN_JOB_BYTES, GDS_JOB_BYTES);
        Self { job_bytes, staging_jobs: (staging / job_bytes) as usize, ..self }
    }

    /// Bytes of the ring's first slots, which are certain to be used; all slots of a short ring. `None`
    /// without a ring.
    pub(super) fn first_slots(&self) -> Option<u64> {
        let has_ring = matches!(self.backend, Backend::Auto | Backend::Require(BackendKind::Buffered));
        let slots = (FIRST_BYTES / self.group_bytes()).clamp(1, self.ring_slots.max(1) as u64);
        (has_ring && self.ring_bytes.is_some()).then(|| self.group_bytes() * slots)
    }

    /// Names the environment variable in an error about the backend, if the variable requires that backend.
    pub(super) fn attribute_to_setting(&self, error: Error) -> Error {
        let setting = |got, expected| Error::Setting { variable: settings::BACKEND, got, expected };
        match error {
            Error::Option { option: "backend", got, expected, .. } if self.backend_by_setting => {
                setting(got, expected)
            }
            Error::Backend { backend, path, detail } if self.backend_by_setting => setting(
                format!("{backend}, by which {path:?} cannot be read: {detail}"),
                "auto, or a backend that the file system allows".into(),
            ),
            error => error,
        }
    }

    /// The source of the ring's slots.
    pub(super) fn ring_slot_pool<'a>(&self, pool: &'a Pool, budget: &'a StagingBudget) -> SlotPool<'a> {
        let (slot_bytes, slot_jobs) = (self.group_bytes(), self.group_jobs);
        SlotPool { pool, budget, slot_bytes, slot_jobs, slots: self.ring_slots }
    }

    /// The source of one direct reader's slots, at most `slots`.
    pub(super) fn reader_slot_pool<'a>(
        &self,
        pool: &'a Pool,
        budget: &'a StagingBudget,
        slots: usize,
    ) -> SlotPool<'a> {
        SlotPool { pool, budget, slot_bytes: self.job_bytes, slot_jobs: 1, slots }
    }

    /// The tuning with jobs a quarter as long, half as many to a slot; `None` if they are as short as
    /// possible.
    pub(super) fn with_smaller_slots(&self) -> Option<Self> {
        let job_bytes = (self.job_bytes / 4 / 4096 * 4096).max(MIN_JOB_BYTES);
        let group_jobs = (self.group_jobs / 2).max(1);
        (self.job_bytes > MIN_JOB_BYTES).then(|| Self { job_bytes, group_jobs, ..self.clone() })
    }
}
