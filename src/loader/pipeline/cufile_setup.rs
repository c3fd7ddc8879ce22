//! Opening cuFile for a load: whether it reads, with how many queues, and into how much scratch.

use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use tensorhold_allocator::{Bytes, Pool};

use super::context::ReadContext;
use super::cufile::CuFileSession;
use super::route::refusal;
use crate::device::DeviceKind;
use crate::error::{Error, Remedy, Result};
use crate::io::gds::{self, CuFile, Registered};
use crate::io::{Backend, BackendKind, Engine, Queue, WhenFull};
use crate::loader::metadata::OpenedFile;
use crate::loader::pools::check_pool;
use crate::loader::staging::{self, FIRST_SLOTS, StagingBudget};

/// Reads that are shorter than this on average go in batches: one thread for each read costs more than the
/// read.
const SHORT_BYTES: u64 = 64 << 10;

/// cuFile readers that can be started.
pub(super) struct CuFileReaders {
    pub(super) session: CuFileSession,
    pub(super) queues: Vec<Box<dyn Queue>>,
    pub(super) why: String,
}

/// Whether cuFile reads.
pub(super) enum CuFileDecision {
    Use(Box<CuFileReaders>),
    /// It does not. With the reason, if it might have been expected to.
    Skip(Option<String>),
}

/// Opens cuFile for a load, if it is required, or likely to be faster.
///
/// # Errors
/// When it is required and not available, or does not read one of the files.
pub(super) fn open(context: &ReadContext<'_>) -> Result<CuFileDecision> {
    match context.tuning.backend {
        Backend::Require(BackendKind::Gds) => {}
        Backend::Auto if context.engines.gds.serves(context.device) && context.engines.gds.is_likely() => {
            // Reserved for direct readers, in case cuFile refuses a read later.
            if !context.budget.take(FIRST_SLOTS) {
                return Ok(CuFileDecision::Skip(Some(
                    "staging memory has no room for two kinds of readers".into(),
                )));
            }
        }
        _ => return Ok(CuFileDecision::Skip(None)),
    }
    match CuFileReaders::open(context) {
        Ok(readers) => Ok(CuFileDecision::Use(Box::new(readers))),
        // A pool over the wrong memory is the caller's error, whatever the backend.
        Err(error @ Error::Option { option: "scratch", .. }) => Err(error),
        Err(error) if context.tuning.backend == Backend::Auto => {
            tracing::debug!(%error, "not read by cuFile");
            leave_room(context);
            Ok(CuFileDecision::Skip(Some(error.reason())))
        }
        Err(error) => Err(error),
    }
}

/// Gives direct readers the room that [`open`] has reserved for them under [`Backend::Auto`].
pub(super) fn leave_room(context: &ReadContext<'_>) {
    context.budget.give_back(FIRST_SLOTS);
}

impl CuFileReaders {
    fn open(context: &ReadContext<'_>) -> Result<Self> {
        let provider = &context.engines.gds;
        if context.in_place() || !provider.serves(context.device) {
            return Err(Error::Option {
                option: "backend",
                got: match context.device.kind() {
                    DeviceKind::Host => "gds onto host memory".into(),
                    _ => format!("gds onto {}", context.device),
                },
                expected: "a CUDA device with memory that the CPU does not share".into(),
                remedy: Remedy::AUTO_BACKEND,
            });
        }
        if !context.scatter.plan.transforms.is_empty() && !context.scatter.transforms.on_device {
            return Err(Error::Option {
                option: "transform_on",
                got: format!(
                    "tensors that the CPU changes, of bytes that cuFile brings to {}",
                    context.device
                ),
                expected: "tensors that stay as they are, or a device that changes them".into(),
                remedy: Remedy::AUTO_BACKEND_OR_TRANSFORM,
            });
        }
        let cufile = provider.open().map_err(gds::Missing::into_error)?;
        let _current = context.device.make_current()?;
        let engine = provider.engine(&cufile);
        let required = context.tuning.backend != Backend::Auto;
        let open = |file: &OpenedFile| {
            let directly = if required { Ok(()) } else { provider.check_directness(&cufile, &file.source) };
            directly
                .and_then(|()| engine.open(&file.source, WhenFull::Wait))
                .map_err(|error| refusal(BackendKind::Gds, &file.source, &error))
        };
        let accesses = context.files.iter().map(open).collect::<Result<Vec<_>>>()?;
        let pool = scratch_pool(context, &cufile)?;
        let CuFileQueues { mut queues, mut slots, each, mut taken, why } =
            CuFileQueues::open(context, &*engine, &cufile)?;
        let slot_bytes = context.tuning.job_bytes;
        // Returns room that is not needed to the other readers.
        let mut keep = |slots: usize| {
            context.budget.give_back(taken.saturating_sub(slots));
            taken = taken.min(slots);
        };
        let block = loop {
            match staging::place(&pool, slot_bytes * slots as u64) {
                Ok(block) => break block,
                // A device that is almost full may have memory for fewer slots.
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
        let session = CuFileSession {
            cufile,
            accesses,
            owns_pool: context.scratch.is_none(),
            pool,
            scratch: Mutex::new((Some(block), 0)),
            scratch_bytes: slot_bytes * slots as u64,
            slots,
            each,
            slot_bytes,
            budget: StagingBudget::new(0),
            refused: AtomicBool::new(false),
        };
        Ok(Self { session, queues, why })
    }
}

/// The pool of the scratch.
///
/// # Errors
/// When the caller's pool is over another memory.
fn scratch_pool(context: &ReadContext<'_>, cufile: &Arc<CuFile>) -> Result<Pool> {
    let memory = Registered::new(context.device, cufile);
    match context.scratch {
        Some(pool) => {
            check_pool("scratch", pool, &memory, "make it over gds_memory of the device")?;
            Ok(pool.clone())
        }
        // A region as long as the slots, since it is registered as a whole.
        None => Ok(Pool::builder(Arc::new(memory))
            .name(format!("scratch for {}", context.device))
            .region_bytes(1)
            .build()?),
    }
}

/// A queue for each reader, the number of slots that they share, and the reason for the choice.
struct CuFileQueues {
    queues: Vec<Box<dyn Queue>>,
    slots: usize,
    /// Slots of a reader with one read in flight: a copy within the device is so short that one slot suffices
    /// if there is no room for two.
    each: usize,
    /// Room that was taken for them in the staging budget.
    taken: usize,
    why: String,
}

impl CuFileQueues {
    /// Takes as many slots as the staging budget allows, and as jobs and readers can use.
    ///
    /// # Errors
    /// When a budget has no room for two slots, or cuFile makes no queue.
    fn open(context: &ReadContext<'_>, engine: &dyn Engine, cufile: &CuFile) -> Result<Self> {
        let (plan, tuning) = (context.scatter.plan, context.tuning);
        let most = match tuning.backend {
            Backend::Auto => tuning.direct_slots.max(FIRST_SLOTS),
            Backend::Require(_) => tuning.staging_jobs.max(FIRST_SLOTS),
        };
        // A CUDA device rounds aligned allocations up to its pages.
        let rounding = if matches!(context.device.kind(), DeviceKind::Cuda(_)) { 2 << 20 } else { 0 };
        let room =
            tuning.scratch_bytes.map_or(u64::MAX, |bytes| bytes.saturating_sub(rounding) / tuning.job_bytes);
        if room < FIRST_SLOTS as u64 {
            let left = tuning.scratch_bytes.unwrap_or_default();
            let least = FIRST_SLOTS as u64 * tuning.job_bytes + rounding;
            return Err(Error::Option {
                option: "memory_budget",
                got: format!("{} beside the tensors", Bytes(left).beside(&[least])),
                expected: format!("{} for what cuFile reads into", Bytes(least).beside(&[left])),
                remedy: Remedy::BUDGET_OR_BACKEND,
            });
        }
        let most = most.min(usize::try_from(room).unwrap_or(usize::MAX));
        // If cuFile is required, nothing else reads and two slots always fit. Otherwise there may be room for
        // fewer.
        let take = |slots: usize| {
            let taken = context.budget.take_up_to(slots.clamp(FIRST_SLOTS, most));
            if taken >= FIRST_SLOTS || tuning.backend != Backend::Auto {
                return Ok((taken.max(FIRST_SLOTS), taken));
            }
            context.budget.give_back(taken);
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
        if are_short && depth > 1 && tuning.job_bytes <= cufile.max_batch_read() {
            match engine.queue(depth) {
                Ok(queue) => {
                    let why = format!("{mode}, {depth} short reads at a time");
                    let (slots, taken) = take(depth)?;
                    return Ok(Self { queues: vec![queue], slots, each: slots, taken, why });
                }
                Err(error) => tracing::debug!(%error, "cuFile makes no batch; it reads one by one"),
            }
        }
        let threads = tuning.threads.min(jobs);
        let (slots, taken) = take(FIRST_SLOTS * threads)?;
        let each = (slots / threads).clamp(1, FIRST_SLOTS);
        let queues = (0..slots / each).map(|_| engine.queue(1)).collect::<io::Result<Vec<_>>>();
        let queues = queues.map_err(|error| {
            context.budget.give_back(taken);
            context.queue_refused(BackendKind::Gds, &error)
        })?;
        Ok(Self { queues, slots, each, taken, why: mode.into() })
    }
}
