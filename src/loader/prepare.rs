//! From opened files to a load whose memory is reserved.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use tensorhold_allocator::{Memory, Pool, Reserved};

use super::batch::{Batch, Placing};
use super::budget;
use super::change::Changes;
use super::described::Told;
use super::headers::Opened;
use super::options::{Cores, Options, Readers};
use super::run::Run;
use super::staging::StagingMemory;
use crate::device::{Device, check_same};
use crate::error::{Error, Remedy, Result};
use crate::io::{Backend, BackendKind};
use crate::report::Times;

/// A load that has begun: what it reads with, and where to.
pub(super) struct Begun<'a> {
    started: Instant,
    device: &'a Device,
    options: &'a Options,
    readers: Readers,
    on_device: bool,
    why: &'static str,
    may_leave_device: bool,
    pool: Pool,
    staging: StagingMemory,
}

/// Loads of no more than this need a slot or two, which are quickly made as well.
const SHORT_BYTES: u64 = 1 << 20;

/// What is known of the files before they are opened. Only a guess.
#[derive(Debug, Clone, Copy)]
pub(super) struct Likely {
    pub(super) bytes: u64,
    /// They are on a file system in memory.
    pub(super) in_memory: bool,
}

impl<'a> Begun<'a> {
    /// Decides what reads, and begins to make staging memory ready.
    pub(super) fn new(device: &'a Device, options: &'a Options, likely: Likely) -> Result<Self> {
        let started = Instant::now();
        let in_place = device.is_host_accessible();
        let cores = if in_place || likely.in_memory { Cores::All } else { Cores::Most };
        let readers = options.readers(in_place, cores)?;
        let asked = &options.asked;
        asked.check()?;
        let (on_device, why) = asked.on_device(device)?;
        // Few readers read past the page cache, and cuFile brings bytes to the device, where the CPU does not see them.
        let many_read = || match readers.backend {
            Backend::Auto => !options.engines.gds.is_likely(),
            Backend::Require(kind) => kind == BackendKind::Buffered,
        };
        let with_scratch = (!asked.is_nothing()).then(|| readers.with_scratch());
        let may_leave = |with: &Readers| on_device && asked.may_leave_device(with.threads) && many_read();
        let may_leave_device = with_scratch.as_ref().is_some_and(may_leave);
        let readers = with_scratch.filter(|_| !on_device || may_leave_device).unwrap_or(readers);
        let pool = open_pool(device, options)?;
        let staging = shared("staging", options.staging.as_ref(), &*device.staging_memory())?;
        // Where slots may have been kept and few are needed, a thread that fetches them is no help.
        let is_short = options.staging.is_some() && likely.bytes <= SHORT_BYTES;
        let first = readers.for_bytes(likely.bytes).first_slots().filter(|_| !is_short);
        let staging = StagingMemory::new(device, staging, first)?;
        Ok(Self { started, device, options, readers, on_device, why, may_leave_device, pool, staging })
    }

    /// Plans, and reserves.
    ///
    /// # Errors
    /// When a tensor cannot be had as is asked, or the tensors are more than the budget, the pool or the memory allows.
    pub(super) fn plan(
        self,
        mut files: Vec<Opened>,
        mut told: Told,
        placing: Placing<'_>,
    ) -> Result<(Run, Reserved)> {
        let Self { started, device, options, readers, on_device, why, may_leave_device, pool, staging } =
            self;
        let asked = &options.asked;
        let mut changes = Changes { on_device, why, cut_reads: asked.cut_reads, ..Changes::default() };
        if !asked.is_nothing() {
            changes.changed = told.change(&mut files, asked)?;
        }
        if may_leave_device {
            changes.before_the_bus();
        }
        let batch = Batch::new(files, &pool, changes, placing)?;
        let readers = match readers.backend {
            Backend::Require(BackendKind::Gds) if batch.is_cached() => readers.by_cufile_from_the_cache(),
            _ => readers,
        };
        let mut readers = readers.for_bytes(batch.file_bytes());
        if let Some(budget) = options.memory_budget {
            let (regions, unit) = (batch.layout.regions.iter(), budget::unit(&pool));
            let whole = |bytes: u64| bytes.checked_next_multiple_of(unit).unwrap_or(u64::MAX);
            let bytes = regions.fold(0_u64, |sum, region| sum.saturating_add(whole(region.size)));
            budget::check(bytes, budget, || told.infos().take(batch.len()))?;
            readers.scratch_bytes = Some(placing.besides.unwrap_or(budget.saturating_sub(bytes)));
        }
        let planned = started.elapsed();
        let reserved = match placing.apart {
            true => pool.reserve_planned_apart(&batch.layout, batch.label()),
            false => pool.reserve_planned(&batch.layout, batch.label()),
        }?;
        let times =
            Times { plan: planned, reserve: started.elapsed().saturating_sub(planned), ..Times::default() };
        // After that: what no memory can hold is not planned in detail.
        let plan = batch.plan(&readers);
        let run = Run {
            device: device.clone(),
            engines: options.engines.clone(),
            readers,
            batch,
            told: Mutex::new(told),
            confirmed: Arc::default(),
            left_out: Arc::default(),
            plan,
            staging,
            scratch: options.scratch.clone(),
            counts: asked.counts,
            owns_pool: options.pool.is_none(),
            pool,
            control: Arc::default(),
            started,
            times,
        };
        Ok((run, reserved))
    }
}

fn open_pool(device: &Device, options: &Options) -> Result<Pool> {
    let memory = device.memory();
    match shared("pool", options.pool.as_ref(), &*memory)? {
        Some(pool) => Ok(pool),
        None => Ok(Pool::builder(memory).name(device.name()).region_parts(options.region_parts).build()?),
    }
}

/// A pool that is not the load's own, if it is over that memory.
pub(super) fn shared(option: &'static str, pool: Option<&Pool>, memory: &dyn Memory) -> Result<Option<Pool>> {
    match pool {
        Some(pool) if !pool.is_of_this_process() => Err(Error::Forked { operation: "load by way of a pool" }),
        Some(pool) => {
            let remedy = Remedy::POOL;
            check_pool(option, pool, memory, remedy).map(|()| Some(pool.clone()))
        }
        None => Ok(None),
    }
}

/// Checks that a pool is over that memory (M4).
///
/// # Errors
/// When it is not, whatever the names are.
pub(super) fn check_pool(
    option: &'static str,
    pool: &Pool,
    memory: &dyn Memory,
    remedy: impl Into<Remedy>,
) -> Result<()> {
    check_same(&**pool.memory(), memory).map_err(|(got, expected)| Error::Option {
        option,
        got: format!("a pool over {got}"),
        expected: format!("one over {expected}"),
        remedy: remedy.into(),
    })
}
