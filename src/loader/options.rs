//! The options of a load, and what they come to on this machine.

use std::thread;

use tensorhold_allocator::{Bytes, Pool, Quoted, RegionParts};

use super::asked::Asked;
use super::engines::Engines;
use super::lane::FIRST_SLOTS;
use super::parts;
use super::plan::Limits;
use super::rule::Rule;
use super::staging::{Budget, Staging};
use crate::error::{Error, Result};
use crate::io::{Backend, BackendKind, MAX_ALIGNMENT, SLACK_BYTES};
use crate::report::Choice;
use crate::settings;

/// More readers than this gain nothing: 16 saturate a PCIe 5 x16 bus (`docs/performance.md`).
const MAX_THREADS: usize = 16;

/// A read of this size is near the best (`docs/performance.md`): smaller ones cost more calls, larger ones more cache.
const READ_BYTES: u64 = 1 << 20;

/// Virtual disks may count what is read in blocks of so much: staged reads begin and end with them.
const STORAGE_BYTES: u64 = 256 << 10;

/// What a staged job takes beside its bytes: whole blocks at both ends, and as much padding between tensors.
const ROOM_BYTES: u64 = 2 * SLACK_BYTES;

/// A staged job takes at most so much.
const JOB_BYTES: u64 = READ_BYTES + ROOM_BYTES;

/// A read by cuFile, where it reads everything: each is a call that waits, so there are fewer and longer ones.
const GDS_JOB_BYTES: u64 = (4 << 20) + ROOM_BYTES;

/// The staging memory is at least so many reads by cuFile: of a disk, for which longer ones gain nothing, and of the page cache
/// (`docs/gds.md`).
const GDS_SHARES: u64 = 31;
const GDS_CACHED_SHARES: u64 = 15;

/// Reads in place: two huge pages at a time, so that no two readers wait for the same page to be cleared.
const IN_PLACE_JOB_BYTES: u64 = (4 << 20) + SLACK_BYTES;

/// Reads shorter than this would be mostly overhead.
const MIN_JOB_BYTES: u64 = 24 << 10;

/// A load is at least so many jobs, unless they would be shorter than [`STORAGE_BYTES`]: enough for all readers, many times over.
const JOBS: u64 = 256;

/// At most so many bytes are copied together. A bus rests for 4 microseconds behind each copy that is waited for; longer
/// copies mean fewer slots, all of which wait where a few readers are kept from running (`docs/performance.md`).
const GROUP_BYTES: u64 = 8 * JOB_BYTES;

/// So much is made ready at once, while the load is planned: by default all of the ring. Later, each slot by itself, in the way
/// of those that are being filled: while the driver pins memory, no copy can be submitted.
const FIRST_BYTES: u64 = 6 * GROUP_BYTES;

/// The ring has so many slots or more: one is copied while another is filled, and one waits for its turn.
const RING_SLOTS: usize = 3;

/// Staging memory, by default.
const STAGING_BYTES: u64 = 64 << 20;

/// The least staging memory: a ring of two jobs, a lane of two, and one for good measure.
const MIN_STAGING_BYTES: u64 = 128 << 10;

/// How many threads may read, as errors say it.
const THREADS_RANGE: &str = "1 to 1024";

/// How much staging memory there may be, as errors say it.
fn least_staging() -> String {
    format!("at least {MIN_STAGING_BYTES} B")
}

/// More reads in flight past the page cache gain nothing on a disk.
const MAX_PAST_SLOTS: usize = 64;

/// What the setting of the backend may say.
const BACKENDS: [&str; 5] = ["auto", "buffered", "direct", "io-uring", "gds"];

/// How many cores read, unless it is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cores {
    All,
    /// Copies to a device take a part of the machine too.
    Most,
}

/// What the caller has set. Loads of one checkpoint begin with the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Options {
    /// Of the weights in folders.
    pub(super) variant: Option<String>,
    pub(super) select: Option<Rule<bool>>,
    pub(super) threads: Option<usize>,
    pub(super) staging_bytes: Option<u64>,
    pub(super) memory_budget: Option<u64>,
    pub(super) pool: Option<Pool>,
    /// Of a pool that is the load's own.
    pub(super) region_parts: RegionParts,
    pub(super) staging: Option<Pool>,
    pub(super) scratch: Option<Pool>,
    pub(super) backend: Option<Backend>,
    /// What is asked of the tensors.
    pub(super) asked: Asked,
    pub(super) engines: Engines,
    /// How many cores there are, where that has been asked: the system takes longer to say it than to read a small tensor.
    pub(super) cores: Option<usize>,
}

/// How the readers work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Readers {
    pub(super) backend: Backend,
    /// Readers through the page cache.
    pub(super) threads: usize,
    /// Bytes that a job takes at most, with what whole blocks add to it. A multiple of the page size.
    pub(super) job_bytes: u64,
    /// How many jobs the staging memory has room for.
    pub(super) staging_jobs: usize,
    /// Staging memory that a ring may have a part of; `None` where files are read in place.
    pub(super) ring_bytes: Option<u64>,
    /// Jobs of a slot of the ring, and slots.
    pub(super) group_jobs: usize,
    pub(super) ring_slots: usize,
    /// The most slots of all readers past the page cache together: the reads in flight.
    pub(super) past_slots: usize,
    /// How many threads share them if they use `io_uring`.
    pub(super) rings: usize,
    /// The most scratch on the device, in bytes, if that is limited.
    pub(super) scratch_bytes: Option<u64>,
    /// The backend is that of a setting, not of the caller.
    pub(super) backend_by_setting: bool,
    pub(super) choices: Vec<Choice>,
}

impl Readers {
    /// How long jobs and groups may be. Staged jobs end where storage's blocks do, or at least the system's; those in place
    /// where the region's huge pages do.
    pub(super) fn limits(&self) -> Limits {
        let span = self.job_bytes - SLACK_BYTES;
        let block = if span < STORAGE_BYTES { MAX_ALIGNMENT } else { STORAGE_BYTES };
        let cut = self.ring_bytes.map(|_| span / block * block);
        Limits { span, cut, group: self.group_bytes() }
    }

    /// The longest span of jobs that are copied together.
    pub(super) fn group_bytes(&self) -> u64 {
        self.job_bytes * self.group_jobs as u64
    }

    /// The same where each reader through the page cache needs scratch, for what the CPU transforms: so much of the staging memory is set aside, a
    /// quarter at most.
    pub(super) fn with_scratch(&self) -> Self {
        let scratch = parts::part_bytes(self.limits(), false);
        let staging = self.staging_jobs as u64 * self.job_bytes;
        let threads = (self.threads as u64).min(staging / 4 / scratch).max(1);
        let aside = threads * scratch;
        let staging_jobs = self.staging_jobs.saturating_sub(aside.div_ceil(self.job_bytes) as usize);
        Self {
            threads: threads as usize,
            staging_jobs,
            ring_bytes: self.ring_bytes.map(|bytes| bytes.saturating_sub(aside)),
            past_slots: self.past_slots.min(staging_jobs).max(FIRST_SLOTS),
            rings: self.rings.min(staging_jobs / FIRST_SLOTS).max(1),
            ..self.clone()
        }
    }

    /// The same for a load of so many bytes: a short one pins little, which is soon done, and divides that among many.
    pub(super) fn for_bytes(&self, bytes: u64) -> Self {
        let Some(staging) = self.ring_bytes else { return self.clone() };
        let read = (bytes / JOBS / STORAGE_BYTES * STORAGE_BYTES).max(STORAGE_BYTES);
        let job_bytes = (read + ROOM_BYTES).min(self.job_bytes);
        let staging_jobs = (staging / job_bytes) as usize;
        // The ring leaves a quarter of the room to readers past the page cache, and they leave it two slots; between that,
        // whoever needs it first has it.
        let most = staging_jobs - (staging_jobs / 4).max(FIRST_SLOTS);
        let ring_jobs = most.min((bytes / 8 / job_bytes) as usize).max(2 * RING_SLOTS).min(most);
        let group_jobs = (ring_jobs / RING_SLOTS).clamp(1, (GROUP_BYTES / job_bytes) as usize);
        let past_slots = (staging_jobs - 2 * group_jobs).clamp(FIRST_SLOTS, MAX_PAST_SLOTS);
        Self {
            job_bytes,
            staging_jobs,
            group_jobs,
            ring_slots: ring_jobs / group_jobs,
            past_slots,
            ..self.clone()
        }
    }

    /// The same for cuFile that reads everything, from the page cache: longer jobs.
    pub(super) fn by_cufile_from_the_cache(self) -> Self {
        let Some(staging) = self.ring_bytes else { return self };
        let job_bytes = (staging / GDS_CACHED_SHARES / 4096 * 4096).clamp(MIN_JOB_BYTES, GDS_JOB_BYTES);
        Self { job_bytes, staging_jobs: (staging / job_bytes) as usize, ..self }
    }

    /// How long the first slots of a ring are that surely are needed: all of a short ring.
    pub(super) fn first_slots(&self) -> Option<u64> {
        let through = matches!(self.backend, Backend::Auto | Backend::Require(BackendKind::Buffered));
        let slots = (FIRST_BYTES / self.group_bytes()).clamp(1, self.ring_slots.max(1) as u64);
        (through && self.ring_bytes.is_some()).then(|| self.group_bytes() * slots)
    }

    /// Names the setting in an error that blames the backend, where a setting has required it.
    pub(super) fn name_setting(&self, error: Error) -> Error {
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

    /// The slots of a ring.
    pub(super) fn ring<'a>(&self, pool: &'a Pool, budget: &'a Budget) -> Staging<'a> {
        let (slot_bytes, slot_jobs) = (self.group_bytes(), self.group_jobs);
        Staging { pool, budget, slot_bytes, slot_jobs, slots: self.ring_slots }
    }

    /// The slots of a lane, at most so many.
    pub(super) fn lane<'a>(&self, pool: &'a Pool, budget: &'a Budget, slots: usize) -> Staging<'a> {
        Staging { pool, budget, slot_bytes: self.job_bytes, slot_jobs: 1, slots }
    }

    /// The same with jobs a quarter as long, of which half as many share a slot; `None` when they are as short as can be.
    pub(super) fn with_smaller_slots(&self) -> Option<Self> {
        let job_bytes = (self.job_bytes / 4 / 4096 * 4096).max(MIN_JOB_BYTES);
        let group_jobs = (self.group_jobs / 2).max(1);
        (self.job_bytes > MIN_JOB_BYTES).then(|| Self { job_bytes, group_jobs, ..self.clone() })
    }
}

/// How many cores this process may use.
pub(super) fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

impl Options {
    /// The same, but that this is asked of the tensors.
    pub(super) fn with_asked(&self, asked: Asked) -> Self {
        let Self { pool, staging, scratch, backend, engines, .. } = self;
        Self {
            variant: None,
            select: None,
            threads: self.threads,
            staging_bytes: self.staging_bytes,
            memory_budget: self.memory_budget,
            cores: self.cores,
            pool: pool.clone(),
            region_parts: self.region_parts,
            staging: staging.clone(),
            scratch: scratch.clone(),
            backend: *backend,
            asked,
            engines: engines.clone(),
        }
    }

    /// The variant that was asked for.
    ///
    /// # Errors
    /// When no file's name can say it.
    pub(super) fn variant(&self) -> Result<Option<&str>> {
        match self.variant.as_deref() {
            Some(variant) if variant.is_empty() || variant.contains(['/', '\0']) => Err(Error::Option {
                option: "variant",
                got: Quoted(variant).to_string(),
                expected: "a part of a file's name, such as fp16".into(),
                remedy: "leave it out for the weights without a variant".into(),
            }),
            variant => Ok(variant),
        }
    }

    /// How many bytes of staging memory a load may take.
    pub(super) fn staging_limit(&self) -> Result<u64> {
        Ok(self.staging_bytes()?.0)
    }

    /// Decides on threads and slots, from the options, the environment and the machine.
    pub(super) fn readers(&self, in_place: bool, cores: Cores) -> Result<Readers> {
        let (threads, why_threads) = self.threads(cores)?;
        let (staging, why_staging) = self.staging_bytes()?;
        if staging < MIN_STAGING_BYTES {
            let (got, expected) = (format!("{staging} B"), least_staging());
            return Err(match self.staging_bytes {
                Some(_) => {
                    let remedy = "allow more, or leave it unset".into();
                    Error::Option { option: "staging_bytes", got, expected, remedy }
                }
                None => Error::Setting { variable: settings::STAGING_BYTES, got, expected },
            });
        }
        let (backend, backend_by_setting) = self.backend()?;
        let (shares, most) = match backend {
            _ if in_place => (15, IN_PLACE_JOB_BYTES),
            Backend::Require(BackendKind::Gds) => (GDS_SHARES, GDS_JOB_BYTES),
            _ => (63, JOB_BYTES),
        };
        let job_bytes = (staging / shares / 4096 * 4096).clamp(MIN_JOB_BYTES, most);
        let staging_jobs = (staging / job_bytes) as usize;
        let past_slots = staging_jobs.clamp(FIRST_SLOTS, MAX_PAST_SLOTS);
        let choices = vec![
            Choice { about: "threads", picked: threads.to_string(), why: why_threads },
            Choice { about: "staging", picked: format!("at most {}", Bytes(staging)), why: why_staging },
        ];
        // A ring's thread also moves what it read, where that is not the device's work.
        let rings = if in_place { threads.min(2).min(past_slots / FIRST_SLOTS) } else { 1 };
        Ok(Readers {
            backend,
            threads,
            job_bytes,
            ring_bytes: (!in_place).then_some(staging),
            staging_jobs,
            group_jobs: 1,
            ring_slots: 0,
            past_slots,
            rings,
            scratch_bytes: None,
            backend_by_setting,
            choices,
        })
    }

    /// The backend, and whether a setting has required it.
    fn backend(&self) -> Result<(Backend, bool)> {
        if let Some(backend) = self.backend {
            return Ok((backend, false));
        }
        let name = settings::word(settings::BACKEND, &BACKENDS)?;
        let kind = BackendKind::ALL.into_iter().find(|kind| Some(kind.name()) == name);
        Ok(kind.map_or((Backend::Auto, false), |kind| (Backend::Require(kind), true)))
    }

    fn threads(&self, used: Cores) -> Result<(usize, String)> {
        let (threads, why) = match self.threads {
            Some(threads) => (threads, "as asked".to_owned()),
            None => match settings::number(settings::THREADS, THREADS_RANGE)? {
                Some(threads) => {
                    (usize::try_from(threads).unwrap_or(usize::MAX), format!("by {}", settings::THREADS))
                }
                None => {
                    let cores = self.cores.unwrap_or_else(cores);
                    let left = if used == Cores::All { 0 } else { cores / 8 };
                    let of_which =
                        if left == 0 { String::new() } else { format!(", of which {left} stay free") };
                    let why = format!("{cores} cores{of_which}, and no more than {MAX_THREADS}");
                    ((cores - left).min(MAX_THREADS), why)
                }
            },
        };
        if !(1..=1024).contains(&threads) {
            let (got, expected) = (threads.to_string(), THREADS_RANGE.to_owned());
            // The default is within.
            return Err(match self.threads {
                Some(_) => {
                    let remedy = "leave it unset for one a core".into();
                    Error::Option { option: "threads", got, expected, remedy }
                }
                None => Error::Setting { variable: settings::THREADS, got, expected },
            });
        }
        Ok((threads, why))
    }

    fn staging_bytes(&self) -> Result<(u64, String)> {
        Ok(match self.staging_bytes {
            Some(bytes) => (bytes, "as asked".to_owned()),
            None => match settings::number(settings::STAGING_BYTES, &least_staging())? {
                Some(bytes) => (bytes, format!("by {}", settings::STAGING_BYTES)),
                None => (STAGING_BYTES, format!("{} for all threads", Bytes(STAGING_BYTES))),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staged_jobs_are_cut_where_storage_is_and_fit_into_the_staging_memory() {
        let options = |staging_bytes| Options { staging_bytes, threads: Some(8), ..Options::default() };
        for staging in [None, Some(MIN_STAGING_BYTES), Some(1 << 20), Some(20 << 20), Some(1 << 30)] {
            let readers = options(staging).readers(false, Cores::Most).unwrap();
            for bytes in [0, 1, 90_000_000, 150_000_000, 16_000_000_000, 1 << 44] {
                let readers = readers.for_bytes(bytes);
                let Limits { span, cut: Some(cut), group } = readers.limits() else { panic!("not cut") };
                assert!(cut <= span && span <= group && cut > span / 2, "{staging:?}, {bytes}: {readers:?}");
                assert!(cut.is_multiple_of(if span < STORAGE_BYTES { 4096 } else { STORAGE_BYTES }));
                let ring = readers.group_bytes() * readers.ring_slots as u64;
                let past = readers.job_bytes * FIRST_SLOTS as u64;
                assert!(ring + past <= staging.unwrap_or(STAGING_BYTES), "{staging:?}, {bytes}: {readers:?}");
            }
        }
        for staging in [None, Some(MIN_STAGING_BYTES), Some(1 << 20), Some(20 << 20)] {
            for (in_place, threads) in [(true, 16), (false, 16), (false, 1000)] {
                let options = Options { threads: Some(threads), ..options(staging) };
                let readers = options.readers(in_place, Cores::Most).unwrap().with_scratch();
                for bytes in [0, 90_000_000, 16_000_000_000] {
                    let readers = readers.for_bytes(bytes);
                    let scratch = parts::part_bytes(readers.limits(), false) * readers.threads as u64;
                    let ring = readers.group_bytes() * readers.ring_slots as u64;
                    let past = readers.job_bytes * FIRST_SLOTS as u64;
                    let all = scratch + ring + past;
                    assert!(all <= staging.unwrap_or(STAGING_BYTES), "{staging:?}, {bytes}: {readers:?}");
                    assert!(in_place || readers.ring_slots > 0, "{staging:?}, {bytes}: {readers:?}");
                }
                assert!(staging.is_some() || readers.threads >= 16, "{readers:?}");
            }
        }
        let default = options(None).readers(false, Cores::Most).unwrap().for_bytes(16_000_000_000);
        assert_eq!((default.limits().cut, default.group_jobs, default.ring_slots), (Some(READ_BYTES), 8, 6));
        assert_eq!(default.first_slots(), Some(6 * default.group_bytes()));
        assert_eq!(options(None).readers(true, Cores::All).unwrap().limits().cut, None);
    }
}
