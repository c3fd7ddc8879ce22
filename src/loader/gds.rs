//! Reads by cuFile: whole blocks into scratch on the device, and from there, by a copy within it, to their places.
//!
//! [`past`](super::past) reads so as it reads otherwise; only the memory of its lanes is another's, and the copies out of it. Everything
//! that cuFile needs is opened when there is something to read for it, and goes when the readers have ended.
//!
//! Where cuFile is required, it reads everything. Otherwise it reads what is not cached, if it does so directly for each of the
//! files; when it then refuses some read after all, it is left, and the usual readers past the page cache go on.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tensorhold_allocator::{Bytes, Fragment, Pool};

use super::fill::Fill;
use super::lane::{FIRST_SLOTS, Lane};
use super::plan::Job;
use super::prepare::check_pool;
use super::route::refusal;
use super::staging::{self, Budget};
use crate::device::{ContextGuard, DeviceKind};
use crate::error::{Error, Remedy, Result};
use crate::io::gds::{self, CuFile, Registered};
use crate::io::{Access, Backend, BackendKind, Engine, Queue, WhenFull};
use crate::report::Choice;

/// Reads shorter than this, on average, go in batches: a thread for each costs more than it reads.
const SHORT_BYTES: u64 = 64 << 10;

/// What a load has of cuFile.
pub(super) struct ByCuFile {
    cufile: Arc<CuFile>,
    /// By file.
    accesses: Vec<Access>,
    pool: Pool,
    /// The pool goes with the load.
    owns_pool: bool,
    /// All slots in one piece, and how many have been handed out.
    scratch: Mutex<(Option<Fragment>, usize)>,
    scratch_bytes: u64,
    slots: usize,
    /// Slots of a reader that reads one at a time.
    each: usize,
    slot_bytes: u64,
    /// No slots are made beside them.
    budget: Budget,
    /// It has refused a read, and others shall read what is left.
    refused: AtomicBool,
}

/// Readers by cuFile that can be started.
pub(super) struct Readers {
    pub(super) load: ByCuFile,
    pub(super) queues: Vec<Box<dyn Queue>>,
    pub(super) why: String,
}

/// What becomes of the question whether cuFile reads.
pub(super) enum Answer {
    Reads(Box<Readers>),
    /// It does not; with the reason, where one might have expected it to.
    Not(Option<String>),
}

/// Opens cuFile for a load, if it is to read.
///
/// # Errors
/// When it is required and cannot be had, or does not take one of the files.
pub(super) fn open(fill: &Fill<'_>) -> Result<Answer> {
    match fill.readers.backend {
        Backend::Require(BackendKind::Gds) => {}
        Backend::Auto if fill.engines.gds.serves(fill.device) && fill.engines.gds.is_likely() => {
            // For the usual readers, should cuFile refuse a read after all.
            if !fill.budget.take(FIRST_SLOTS) {
                return Ok(Answer::Not(Some("staging memory has no room for two kinds of readers".into())));
            }
        }
        _ => return Ok(Answer::Not(None)),
    }
    match Readers::open(fill) {
        Ok(readers) => Ok(Answer::Reads(Box::new(readers))),
        // A pool that cannot serve is the caller's mistake, whatever backend there is.
        Err(error @ Error::Option { option: "scratch", .. }) => Err(error),
        Err(error) if fill.readers.backend == Backend::Auto => {
            tracing::debug!(%error, "not read by cuFile");
            leave_room(fill);
            Ok(Answer::Not(Some(error.reason())))
        }
        Err(error) => Err(error),
    }
}

/// Gives the usual readers the room that [`open`] has kept for them, under [`Backend::Auto`].
pub(super) fn leave_room(fill: &Fill<'_>) {
    fill.budget.give(FIRST_SLOTS);
}

impl Readers {
    fn open(fill: &Fill<'_>) -> Result<Self> {
        let provider = &fill.engines.gds;
        if fill.in_place() || !provider.serves(fill.device) {
            return Err(Error::Option {
                option: "backend",
                got: match fill.device.kind() {
                    DeviceKind::Host => "gds onto host memory".into(),
                    _ => format!("gds onto {}", fill.device),
                },
                expected: "a CUDA device with memory that the CPU does not share".into(),
                remedy: Remedy::AUTO_BACKEND,
            });
        }
        if !fill.landing.plan.parts.is_empty() && !fill.landing.changes.on_device {
            return Err(Error::Option {
                option: "transform_on",
                got: format!("tensors that the CPU changes, of bytes that cuFile brings to {}", fill.device),
                expected: "tensors that stay as they are, or a device that changes them".into(),
                remedy: Remedy::AUTO_BACKEND_OR_TRANSFORM,
            });
        }
        let cufile = provider.open().map_err(gds::Missing::into_error)?;
        let _current = fill.device.make_current()?;
        let engine = provider.engine(&cufile);
        let required = fill.readers.backend != Backend::Auto;
        let open = |file: &super::headers::Opened| {
            let directly = if required { Ok(()) } else { provider.check_directness(&cufile, &file.source) };
            directly
                .and_then(|()| engine.open(&file.source, WhenFull::Wait))
                .map_err(|error| refusal(BackendKind::Gds, &file.source, &error))
        };
        let accesses = fill.files.iter().map(open).collect::<Result<Vec<_>>>()?;
        let pool = scratch_pool(fill, &cufile)?;
        let Queues { mut queues, mut slots, each, mut taken, why } = Queues::open(fill, &*engine, &cufile)?;
        let slot_bytes = fill.readers.job_bytes;
        // Others have use for the room that is not needed after all.
        let mut keep = |slots: usize| {
            fill.budget.give(taken.saturating_sub(slots));
            taken = taken.min(slots);
        };
        let block = loop {
            match staging::place(&pool, slot_bytes * slots as u64) {
                Ok(block) => break block,
                // A device that is almost full may have room for fewer.
                Err(error) if slots > FIRST_SLOTS => {
                    tracing::debug!(%error, slots, "less scratch");
                    slots = (slots / 2).max(FIRST_SLOTS);
                    keep(slots);
                    queues.truncate((slots / each).max(1));
                }
                Err(error) => {
                    keep(0);
                    return Err(error.into());
                }
            }
        };
        let load = ByCuFile {
            cufile,
            accesses,
            owns_pool: fill.scratch.is_none(),
            pool,
            scratch: Mutex::new((Some(block), 0)),
            scratch_bytes: slot_bytes * slots as u64,
            slots,
            each,
            slot_bytes,
            budget: Budget::new(0),
            refused: AtomicBool::new(false),
        };
        Ok(Self { load, queues, why })
    }
}

/// The pool that scratch comes from.
fn scratch_pool(fill: &Fill<'_>, cufile: &Arc<CuFile>) -> Result<Pool> {
    let memory = Registered::new(fill.device, cufile);
    match fill.scratch {
        Some(pool) => {
            check_pool("scratch", pool, &memory, "make it over gds_memory of the device")?;
            Ok(pool.clone())
        }
        // A region for just the slots: it is registered whole.
        None => Ok(Pool::builder(Arc::new(memory))
            .name(format!("scratch for {}", fill.device))
            .region_bytes(1)
            .build()?),
    }
}

/// A queue for each reader, the slots that they share, and why it is those.
struct Queues {
    queues: Vec<Box<dyn Queue>>,
    slots: usize,
    /// Slots of a reader that reads one at a time: a copy within the device is over so soon that one is enough where there is no room for two.
    each: usize,
    /// Room that was taken for them.
    taken: usize,
    why: String,
}

impl Queues {
    /// As many slots as staging memory has room for, and as jobs and readers have use for.
    fn open(fill: &Fill<'_>, engine: &dyn Engine, cufile: &CuFile) -> Result<Self> {
        let (plan, readers) = (fill.landing.plan, fill.readers);
        let most = match readers.backend {
            Backend::Auto => readers.past_slots.max(FIRST_SLOTS),
            Backend::Require(_) => readers.staging_jobs.max(FIRST_SLOTS),
        };
        // A CUDA device rounds what is aligned so up to its pages.
        let rounding = if matches!(fill.device.kind(), DeviceKind::Cuda(_)) { 2 << 20 } else { 0 };
        let room = readers
            .scratch_bytes
            .map_or(u64::MAX, |bytes| bytes.saturating_sub(rounding) / readers.job_bytes);
        if room < FIRST_SLOTS as u64 {
            let left = readers.scratch_bytes.unwrap_or_default();
            let least = FIRST_SLOTS as u64 * readers.job_bytes + rounding;
            return Err(Error::Option {
                option: "memory_budget",
                got: format!("{} beside the tensors", Bytes(left).beside(&[least])),
                expected: format!("{} for what cuFile reads into", Bytes(least).beside(&[left])),
                remedy: Remedy::BUDGET_OR_BACKEND,
            });
        }
        let most = most.min(usize::try_from(room).unwrap_or(usize::MAX));
        // Two are there in any case where nothing else reads; where others do, there may be less.
        let take = |slots: usize| {
            let taken = fill.budget.take_up_to(slots.clamp(FIRST_SLOTS, most));
            if taken >= FIRST_SLOTS || readers.backend != Backend::Auto {
                return Ok((taken.max(FIRST_SLOTS), taken));
            }
            fill.budget.give(taken);
            Err(Error::Option {
                option: "staging_bytes",
                got: "no room for two slots beside those of the other readers".into(),
                expected: "room for two".into(),
                remedy: "allow more".into(),
            })
        };
        let jobs = plan.jobs.len().max(1);
        let mode = cufile.mode().describe();
        let depth = jobs.min(most).min(cufile.max_batch());
        let are_short = plan.bytes / (jobs as u64) < SHORT_BYTES;
        if are_short && depth > 1 && readers.job_bytes <= cufile.max_batch_read() {
            match engine.queue(depth) {
                Ok(queue) => {
                    let why = format!("{mode}, {depth} short reads at a time");
                    let (slots, taken) = take(depth)?;
                    return Ok(Self { queues: vec![queue], slots, each: slots, taken, why });
                }
                Err(error) => tracing::debug!(%error, "cuFile makes no batch; it reads one by one"),
            }
        }
        let threads = readers.threads.min(jobs);
        let (slots, taken) = take(FIRST_SLOTS * threads)?;
        let each = (slots / threads).clamp(1, FIRST_SLOTS);
        let queues = (0..slots / each).map(|_| engine.queue(1)).collect::<io::Result<Vec<_>>>();
        let queues = queues.map_err(|error| {
            fill.budget.give(taken);
            fill.queue_refused(BackendKind::Gds, &error)
        })?;
        Ok(Self { queues, slots, each, taken, why: mode.into() })
    }
}

impl ByCuFile {
    /// A lane in the scratch for so many reads at a time; `None` when there is no more.
    pub(super) fn open_lane(&self, fill: &Fill<'_>, depth: usize) -> Result<Option<Lane<'_>>> {
        let slots = if depth > 1 { depth } else { self.each };
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let (block, taken) = &mut *scratch;
        let slots = slots.min(self.slots - *taken);
        let part = block
            .as_ref()
            .and_then(|block| block.slice(*taken as u64 * self.slot_bytes, slots as u64 * self.slot_bytes));
        let Some(part) = part.filter(|_| slots > 0) else { return Ok(None) };
        *taken += slots;
        let staging = staging::Staging {
            pool: &self.pool,
            budget: &self.budget,
            slot_bytes: self.slot_bytes,
            slot_jobs: 1,
            slots,
        };
        Lane::over(fill.device, staging, part).map(Some)
    }

    /// Keeps the device current for calls of cuFile on this thread.
    pub(super) fn make_current<'a>(&self, fill: &'a Fill<'_>) -> Result<ContextGuard<'a>> {
        fill.device.make_current()
    }

    /// The file of a job.
    pub(super) fn access(&self, job: &Job) -> &Access {
        &self.accesses[job.file]
    }

    /// Whether an error says that cuFile does not read like this.
    pub(super) fn is_refusal(error: &io::Error) -> bool {
        gds::is_from_library(error)
    }

    /// Notes that it has refused a read: others shall go on.
    pub(super) fn refuse(&self) {
        self.refused.store(true, Ordering::Release);
    }

    pub(super) fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Acquire)
    }

    /// Bytes of the scratch.
    pub(super) fn scratch_bytes(&self) -> u64 {
        self.scratch_bytes
    }

    /// What the report says beside the backend.
    pub(super) fn choices(&self) -> [Choice; 2] {
        let scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let start = scratch.0.as_ref().map(Fragment::as_ptr);
        let registered = start.is_some_and(|start| self.cufile.is_registered(start));
        let why = match self.cufile.refusal().filter(|_| !registered) {
            _ if registered => {
                "registered with cuFile; tensors move on from there, to regions that are not".into()
            }
            Some(refusal) => format!("not registered: {refusal}"),
            None => "not registered".into(),
        };
        let scratch = format!("{} on the device, in one region", Bytes(self.scratch_bytes));
        [
            Choice {
                about: "cufile",
                picked: self.cufile.describe(),
                why: self.cufile.mode().describe().into(),
            },
            Choice { about: "scratch", picked: scratch, why },
        ]
    }
}

impl Drop for ByCuFile {
    fn drop(&mut self) {
        // Every reader has ended, and with it the lanes and queues. The device gets its memory back before the load returns (I4).
        *self.scratch.get_mut().unwrap_or_else(PoisonError::into_inner) = (None, 0);
        if self.owns_pool {
            self.pool.trim();
        }
    }
}
