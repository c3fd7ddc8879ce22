//! From opened files to a load whose memory is reserved.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use tensorhold_allocator::{Pool, Reserved};

use super::execute::ReservedLoad;
use super::options::{Cores, Options};
use super::pools::shared;
use super::tuning::ReaderTuning;
use crate::device::Device;
use crate::error::Result;
use crate::io::residency::Probe;
use crate::io::{Backend, BackendKind};
use crate::loader::metadata::{OpenedFile, PendingMetadata};
use crate::loader::plan::{LayoutOptions, LoadLayout, budget};
use crate::loader::staging::StagingMemory;
use crate::loader::transform::TensorTransforms;
use crate::report::Times;

/// The readers and pools of a load whose files are not yet planned.
pub(super) struct LoadSetup<'a> {
    started: Instant,
    device: &'a Device,
    options: &'a Options,
    tuning: ReaderTuning,
    on_device: bool,
    why: &'static str,
    may_leave_device: bool,
    pool: Pool,
    staging: StagingMemory,
}

/// Loads up to this size need one or two slots, which are made quickly when they are needed.
const SHORT_BYTES: u64 = 1 << 20;

/// An estimate of the load before its files are opened.
#[derive(Debug, Clone, Copy)]
pub(super) struct LoadEstimate {
    pub(super) bytes: u64,
    /// The files are on a file system in memory.
    pub(super) in_memory: bool,
}

impl<'a> LoadSetup<'a> {
    /// Decides how to read, and starts to pin staging memory.
    ///
    /// # Errors
    /// When an option is invalid, or a pool is not over the right memory.
    pub(super) fn new(device: &'a Device, options: &'a Options, estimate: LoadEstimate) -> Result<Self> {
        let started = Instant::now();
        let in_place = device.is_host_accessible();
        let cores = if in_place || estimate.in_memory { Cores::All } else { Cores::Most };
        let tuning = options.reader_tuning(in_place, cores)?;
        let spec = &options.transform;
        spec.check()?;
        let (on_device, why) = spec.on_device(device)?;
        // There are few direct readers, and cuFile reads to the device, where the CPU cannot transform.
        let many_read = || match tuning.backend {
            Backend::Auto => !options.engines.gds.is_likely(),
            Backend::Require(kind) => kind == BackendKind::Buffered,
        };
        let with_scratch = (!spec.is_nothing()).then(|| tuning.with_scratch());
        let may_leave = |with: &ReaderTuning| on_device && spec.may_leave_device(with.threads) && many_read();
        let may_leave_device = with_scratch.as_ref().is_some_and(may_leave);
        let tuning = with_scratch.filter(|_| !on_device || may_leave_device).unwrap_or(tuning);
        let pool = open_pool(device, options)?;
        let staging = shared("staging", options.staging.as_ref(), &*device.staging_memory())?;
        // A thread does not help where few slots are needed and a pool may have kept them.
        let is_short = options.staging.is_some() && estimate.bytes <= SHORT_BYTES;
        let first = tuning.for_bytes(estimate.bytes).first_slots().filter(|_| !is_short);
        let staging = StagingMemory::new(device, staging, first)?;
        Ok(Self { started, device, options, tuning, on_device, why, may_leave_device, pool, staging })
    }

    /// Plans the load and reserves its memory.
    ///
    /// # Errors
    /// When a requested conversion or cut is not supported, or the tensors exceed the budget, the pool's
    /// limit or the memory.
    pub(super) fn plan(
        self,
        mut files: Vec<OpenedFile>,
        mut metadata: PendingMetadata,
        layout_options: LayoutOptions<'_>,
    ) -> Result<(ReservedLoad, Reserved)> {
        let Self { started, device, options, tuning, on_device, why, may_leave_device, pool, staging } = self;
        let spec = &options.transform;
        let mut transforms =
            TensorTransforms { on_device, why, cut_reads: spec.cut_reads, ..TensorTransforms::default() };
        if !spec.is_nothing() {
            transforms.tensors = metadata.apply_transforms(&mut files, spec)?;
        }
        if may_leave_device {
            transforms.prefer_cpu_before_bus();
        }
        let layout = LoadLayout::new(files, &pool, transforms, layout_options)?;
        let tuning = match tuning.backend {
            Backend::Require(BackendKind::Gds) if are_cached(&layout.files) => tuning.for_cached_cufile(),
            _ => tuning,
        };
        let mut tuning = tuning.for_bytes(layout.file_bytes());
        if let Some(budget) = options.memory_budget {
            let (regions, unit) = (layout.memory.regions.iter(), budget::unit(&pool));
            let whole = |bytes: u64| bytes.checked_next_multiple_of(unit).unwrap_or(u64::MAX);
            let bytes = regions.fold(0_u64, |sum, region| sum.saturating_add(whole(region.size)));
            budget::check(bytes, budget, || metadata.infos().take(layout.len()))?;
            tuning.scratch_bytes = Some(layout_options.scratch_bytes.unwrap_or(budget.saturating_sub(bytes)));
        }
        let planned = started.elapsed();
        let reserved = match layout_options.separate {
            true => pool.reserve_planned_apart(&layout.memory, layout.label()),
            false => pool.reserve_planned(&layout.memory, layout.label()),
        }?;
        let times =
            Times { plan: planned, reserve: started.elapsed().saturating_sub(planned), ..Times::default() };
        // Jobs are planned last: not for a load that does not fit into memory.
        let plan = layout.plan(tuning.limits());
        let run = ReservedLoad {
            device: device.clone(),
            engines: options.engines.clone(),
            tuning,
            layout,
            metadata: Mutex::new(metadata),
            confirmed: Arc::default(),
            left_out: Arc::default(),
            plan,
            staging,
            scratch: options.scratch.clone(),
            counts: spec.counts,
            owns_pool: options.pool.is_none(),
            pool,
            control: Arc::default(),
            started,
            times,
        };
        Ok((run, reserved))
    }
}

/// Whether the files are in the page cache, estimated from samples.
fn are_cached(files: &[OpenedFile]) -> bool {
    let probe = Probe::default();
    let is_cached = |file: &OpenedFile| {
        let open = file.source.lease();
        open.is_ok_and(|open| probe.samples(open.file(), file.source.len()))
    };
    files.iter().all(is_cached)
}

fn open_pool(device: &Device, options: &Options) -> Result<Pool> {
    let memory = device.memory();
    match shared("pool", options.pool.as_ref(), &*memory)? {
        Some(pool) => Ok(pool),
        None => Ok(Pool::builder(memory).name(device.name()).region_parts(options.region_parts).build()?),
    }
}
