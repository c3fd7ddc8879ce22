//! The options of a load, and what they come to on this machine.

use std::thread;

use tensorhold_allocator::{Bytes, Pool};

use super::lane::SLOTS;
use super::progress::Callback;
use crate::error::{Error, Result};
use crate::report::Choice;
use crate::settings;
use crate::tensor::TensorInfo;

/// More readers than this gain nothing: 16 saturate a PCIe 5 x16 bus (DESIGN measurements in `docs/performance.md`).
const MAX_THREADS: usize = 16;

/// A slot of this size is near the best on page-cached files; smaller ones cost more calls, larger ones more cache.
const SLOT_BYTES: u64 = 2 << 20;

/// Slots smaller than this would be mostly overhead.
const MIN_SLOT_BYTES: u64 = 64 << 10;

/// All lanes together, by default: 16 threads with two slots of 2 MiB.
const STAGING_BYTES: u64 = 64 << 20;

/// Reads in place are this long: enough to amortize the call, short enough to balance the threads.
const IN_PLACE_BYTES: u64 = 4 << 20;

/// Which tensors are wanted.
pub(super) type Select = Box<dyn Fn(&TensorInfo) -> bool + Send>;

/// What the caller has set.
#[derive(Default)]
pub(super) struct Options {
    pub(super) select: Option<Select>,
    pub(super) threads: Option<usize>,
    pub(super) staging_bytes: Option<u64>,
    pub(super) callback: Option<Callback>,
    pub(super) pool: Option<Pool>,
}

/// How the readers work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Readers {
    pub(super) threads: usize,
    /// The longest span of a job.
    pub(super) span: u64,
    pub(super) choices: Vec<Choice>,
}

impl Options {
    /// Decides on threads and job sizes, from the options, the environment and the machine.
    pub(super) fn readers(&self, in_place: bool) -> Result<Readers> {
        let mut choices = Vec::new();
        let (mut threads, why) = self.threads()?;
        let mut why_threads = why;
        let span = if in_place {
            IN_PLACE_BYTES
        } else {
            let (staging, why) = self.staging_bytes()?;
            let lane_minimum = SLOTS as u64 * MIN_SLOT_BYTES;
            if staging < lane_minimum {
                let (got, remedy) = (Bytes(staging).to_string(), "allow more, or leave it unset");
                let expected = format!("at least {}, for two slots", Bytes(lane_minimum));
                return Err(Error::Option { option: "staging_bytes", got, expected, remedy });
            }
            let lanes = staging / lane_minimum;
            if (threads as u64) > lanes {
                threads = lanes as usize;
                why_threads = format!("as many as {} of staging memory serve", Bytes(staging));
            }
            let slot = (staging / (threads * SLOTS) as u64 / 4096 * 4096).min(SLOT_BYTES);
            choices.push(Choice {
                about: "staging",
                picked: format!("{SLOTS} slots of {} for each thread", Bytes(slot)),
                why,
            });
            slot
        };
        choices.insert(0, Choice { about: "threads", picked: threads.to_string(), why: why_threads });
        Ok(Readers { threads, span, choices })
    }

    fn threads(&self) -> Result<(usize, String)> {
        let (threads, why) = match self.threads {
            Some(threads) => (threads, "as asked".to_owned()),
            None => match settings::number(settings::THREADS)? {
                Some(threads) => {
                    (usize::try_from(threads).unwrap_or(usize::MAX), format!("by {}", settings::THREADS))
                }
                None => {
                    let cores = thread::available_parallelism().map_or(1, usize::from);
                    (cores.min(MAX_THREADS), format!("{cores} cores, and no more than {MAX_THREADS}"))
                }
            },
        };
        if !(1..=1024).contains(&threads) {
            let (got, expected) = (threads.to_string(), "1 to 1024".to_owned());
            return Err(Error::Option {
                option: "threads",
                got,
                expected,
                remedy: "leave it unset for one a core",
            });
        }
        Ok((threads, why))
    }

    fn staging_bytes(&self) -> Result<(u64, String)> {
        Ok(match self.staging_bytes {
            Some(bytes) => (bytes, "as asked".to_owned()),
            None => match settings::number(settings::STAGING_BYTES)? {
                Some(bytes) => (bytes, format!("by {}", settings::STAGING_BYTES)),
                None => (STAGING_BYTES, format!("{} for all threads", Bytes(STAGING_BYTES))),
            },
        })
    }
}
