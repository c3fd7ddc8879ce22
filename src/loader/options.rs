//! [`Options`]: what a caller has set, and the defaults from the environment and the machine.

use std::thread;

use tensorhold_allocator::{Bytes, Pool, Quoted, RegionParts};

use super::tuning::ReaderTuning;
use crate::error::{Error, Result};
use crate::io::{Backend, BackendKind, Engines};
use crate::loader::transform::{Rule, TransformSpec};
use crate::report::Choice;
use crate::settings;

/// The most threads by default: 16 readers saturate a PCIe 5 x16 bus (`docs/performance.md`).
const MAX_THREADS: usize = 16;

/// Staging memory by default.
const STAGING_BYTES: u64 = 64 << 20;

/// The least staging memory: two jobs for the ring, two for a direct reader, and one to spare.
const MIN_STAGING_BYTES: u64 = 128 << 10;

/// The valid numbers of threads, for errors.
const THREADS_RANGE: &str = "1 to 1024";

/// The valid amounts of staging memory, for errors.
fn least_staging() -> String {
    format!("at least {MIN_STAGING_BYTES} B")
}

/// The values of the environment variable for the backend.
const BACKENDS: [&str; 5] = ["auto", "buffered", "direct", "io-uring", "gds"];

/// How many cores read by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cores {
    All,
    /// An eighth of the cores is left to copies to a device.
    Most,
}

/// The options of a load. All loads of a checkpoint start with the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Options {
    /// The variant of the weights in directories.
    pub(super) variant: Option<String>,
    pub(super) select: Option<Rule<bool>>,
    pub(super) threads: Option<usize>,
    pub(super) staging_bytes: Option<u64>,
    pub(super) memory_budget: Option<u64>,
    pub(super) pool: Option<Pool>,
    /// For a pool that the load makes.
    pub(super) region_parts: RegionParts,
    pub(super) staging: Option<Pool>,
    pub(super) scratch: Option<Pool>,
    pub(super) backend: Option<Backend>,
    /// Conversions and cuts.
    pub(super) transform: TransformSpec,
    pub(super) engines: Engines,
    /// The number of cores, if it is known: asking the system takes longer than reading a small tensor.
    pub(super) cores: Option<usize>,
}

/// The number of cores that this process may use.
pub(super) fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

impl Options {
    /// The options with other conversions and cuts, for files that are selected already.
    pub(super) fn with_transforms(&self, transform: TransformSpec) -> Self {
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
            transform,
            engines: engines.clone(),
        }
    }

    /// The requested variant.
    ///
    /// # Errors
    /// When it cannot be a part of a file name.
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

    /// The most staging memory of a load, in bytes.
    pub(super) fn staging_limit(&self) -> Result<u64> {
        Ok(self.staging_bytes()?.0)
    }

    /// Decides on threads and sizes, from the options, the environment and the machine.
    ///
    /// # Errors
    /// When an option or a setting is out of range.
    pub(super) fn reader_tuning(&self, in_place: bool, cores: Cores) -> Result<ReaderTuning> {
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
        let choices = vec![
            Choice { about: "threads", picked: threads.to_string(), why: why_threads },
            Choice { about: "staging", picked: format!("at most {}", Bytes(staging)), why: why_staging },
        ];
        Ok(ReaderTuning::new(self.backend()?, threads, staging, in_place, choices))
    }

    /// The backend, and whether an environment variable requires it.
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
            // The default is in range.
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
    use super::super::tuning::{READ_BYTES, STORAGE_BYTES};
    use super::*;
    use crate::loader::plan::{Limits, transform_job_bytes};
    use crate::loader::staging::FIRST_SLOTS;

    #[test]
    fn staged_jobs_are_cut_where_storage_is_and_fit_into_the_staging_memory() {
        let options = |staging_bytes| Options { staging_bytes, threads: Some(8), ..Options::default() };
        for staging in [None, Some(MIN_STAGING_BYTES), Some(1 << 20), Some(20 << 20), Some(1 << 30)] {
            let tuning = options(staging).reader_tuning(false, Cores::Most).unwrap();
            for bytes in [0, 1, 90_000_000, 150_000_000, 16_000_000_000, 1 << 44] {
                let tuning = tuning.for_bytes(bytes);
                let Limits { span, cut: Some(cut), group } = tuning.limits() else { panic!("not cut") };
                assert!(cut <= span && span <= group && cut > span / 2, "{staging:?}, {bytes}: {tuning:?}");
                assert!(cut.is_multiple_of(if span < STORAGE_BYTES { 4096 } else { STORAGE_BYTES }));
                let ring = tuning.group_bytes() * tuning.ring_slots as u64;
                let past = tuning.job_bytes * FIRST_SLOTS as u64;
                assert!(ring + past <= staging.unwrap_or(STAGING_BYTES), "{staging:?}, {bytes}: {tuning:?}");
            }
        }
        for staging in [None, Some(MIN_STAGING_BYTES), Some(1 << 20), Some(20 << 20)] {
            for (in_place, threads) in [(true, 16), (false, 16), (false, 1000)] {
                let options = Options { threads: Some(threads), ..options(staging) };
                let tuning = options.reader_tuning(in_place, Cores::Most).unwrap().with_scratch();
                for bytes in [0, 90_000_000, 16_000_000_000] {
                    let tuning = tuning.for_bytes(bytes);
                    let scratch = transform_job_bytes(tuning.limits(), false) * tuning.threads as u64;
                    let ring = tuning.group_bytes() * tuning.ring_slots as u64;
                    let past = tuning.job_bytes * FIRST_SLOTS as u64;
                    let all = scratch + ring + past;
                    assert!(all <= staging.unwrap_or(STAGING_BYTES), "{staging:?}, {bytes}: {tuning:?}");
                    assert!(in_place || tuning.ring_slots > 0, "{staging:?}, {bytes}: {tuning:?}");
                }
                assert!(staging.is_some() || tuning.threads >= 16, "{tuning:?}");
            }
        }
        let default = options(None).reader_tuning(false, Cores::Most).unwrap().for_bytes(16_000_000_000);
        assert_eq!((default.limits().cut, default.group_jobs, default.ring_slots), (Some(READ_BYTES), 8, 6));
        assert_eq!(default.first_slots(), Some(6 * default.group_bytes()));
        assert_eq!(options(None).reader_tuning(true, Cores::All).unwrap().limits().cut, None);
    }
}
