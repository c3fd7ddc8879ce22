//! [`ReservedLoad`]: from reserved regions to weights.

use std::collections::BTreeMap;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Instant;

use tensorhold_allocator::{Bases, Bytes, Pool, Reserved};

use super::parallel::join;
use super::progress::Callback;
use super::tuning::ReaderTuning;
use crate::device::{Device, DeviceKind};
use crate::error::{Error, Result};
use crate::format::LeftOut;
use crate::io::{Backend, BackendKind, Engines};
use crate::loader::metadata::PendingMetadata;
use crate::loader::pipeline::{
    self, Arrivals, ConversionStats, LoadControl, ReadContext, ReadFailure, ReadSummary,
};
use crate::loader::pipeline::{RouteSummary, Routes, Scatter, StageTotals, StagingRing, StopOnPanic};
use crate::loader::plan::{self, LoadLayout, Plan};
use crate::loader::staging::{StagingBudget, StagingMemory};
use crate::names::Names;
use crate::report::{Choice, Report, Times};
use crate::settings;
use crate::tensor::Tensor;
use crate::weights::{Metadata, Named, Weights};

/// A planned load whose memory is reserved. The [`Reserved`] is passed with it.
pub(super) struct ReservedLoad {
    pub(super) device: Device,
    pub(super) engines: Engines,
    pub(super) tuning: ReaderTuning,
    pub(super) layout: LoadLayout,
    /// Taken when the tensors are built.
    pub(super) metadata: Mutex<PendingMetadata>,
    /// Set once the files are known to be those that were requested, and not a guess.
    pub(super) confirmed: Arc<AtomicBool>,
    /// Files that are not loaded, or not completely.
    pub(super) left_out: Arc<[LeftOut]>,
    pub(super) plan: Plan,
    pub(super) staging: StagingMemory,
    /// The caller's pool for cuFile's scratch.
    pub(super) scratch: Option<Pool>,
    pub(super) pool: Pool,
    /// Conversions count values out of range and NaN.
    pub(super) counts: bool,
    /// The pool was made for this load.
    pub(super) owns_pool: bool,
    /// Stops the load.
    pub(super) control: Arc<LoadControl>,
    pub(super) started: Instant,
    pub(super) times: Times,
}

/// Tensors whose bytes may not have arrived, and their names if the files fit together. Kept until nothing
/// writes to the memory.
pub(super) struct BuiltTensors {
    tensors: Result<Vec<Tensor>>,
    metadata: BTreeMap<PathBuf, Option<Arc<Metadata>>>,
    names: Result<Names>,
}

/// Tensors that can be handed out once their bytes have arrived.
pub(super) struct ReadyTensors {
    pub(super) tensors: Named,
    metadata: BTreeMap<PathBuf, Option<Arc<Metadata>>>,
}

impl BuiltTensors {
    /// The tensors.
    ///
    /// # Errors
    /// The error of building them, or of the check of the files.
    pub(super) fn ready(self) -> Result<ReadyTensors> {
        let names = self.names?;
        Ok(ReadyTensors { tensors: Named::new(self.tensors?, names), metadata: self.metadata })
    }
}

impl ReservedLoad {
    /// Reads all bytes to their places and builds the tensors at the same time.
    ///
    /// # Errors
    /// Those of the readers and of the metadata. The reserved memory has then been given back when this
    /// returns (I4).
    pub(super) fn load(self, mut reserved: Reserved, callback: Option<&mut Callback>) -> Result<Weights> {
        let bases = reserved.bases();
        let cut = Mutex::new(&mut reserved);
        let make = || {
            let built = self.build_tensors(&mut cut.lock().unwrap_or_else(PoisonError::into_inner));
            // Tensors that cannot be handed out are not read.
            if built.tensors.is_err() || built.names.is_err() {
                self.control.stop();
            }
            built
        };
        // W2: the readers have ended after this. The memory outlives them on every path: in `reserved`, or in
        // the tensors.
        let fill = || self.fill(&bases, callback, None);
        let (built, read) = join(self.layout.len(), "tensorhold-make", make, fill);
        // If building failed, it also stopped the readers: its error comes first.
        let loaded = built.ready().and_then(|ready| Ok((ready, read?)));
        if let Ok((ready, _)) = &loaded {
            // SAFETY: W2: all readers have ended without an error, and so has all work that they enqueued. No
            // one has a tensor yet.
            ready.tensors.iter().for_each(|tensor| unsafe { tensor.landed() });
        }
        self.finish(reserved, loaded)
    }

    /// Reads all bytes to their places, and sends the numbers of tensors as they land. `ready` are the
    /// tensors that [`build_tensors`](Self::build_tensors) built in the memory at `bases`. Otherwise as
    /// [`load`](Self::load).
    pub(super) fn stream(
        self,
        reserved: Reserved,
        bases: &Bases,
        ready: ReadyTensors,
        callback: Option<&mut Callback>,
        sender: Sender<usize>,
    ) -> Result<Weights> {
        let arrivals = Arrivals::new(self.layout.memory.placements.clone(), sender);
        let read = self.fill(bases, callback, Some(&arrivals));
        self.finish(reserved, read.map(|report| (ready, report)))
    }

    /// Parses the remaining metadata, checks that files and indexes fit together, and builds the tensors,
    /// whose bytes have not arrived yet. After an error, `reserved` still owns all of the memory.
    pub(super) fn build_tensors(&self, reserved: &mut Reserved) -> BuiltTensors {
        let pending = mem::take(&mut *self.metadata.lock().unwrap_or_else(PoisonError::into_inner));
        let mut resolved = match pending.resolve(&self.layout.files, &self.device) {
            Ok(resolved) => resolved,
            Err(error) => {
                return BuiltTensors {
                    tensors: Err(error),
                    metadata: BTreeMap::new(),
                    names: Ok(Names::default()),
                };
            }
        };
        self.confirmed.store(true, Ordering::Relaxed);
        let labels = resolved.take_labels();
        let check = || resolved.check(&self.layout.files);
        let place = || self.layout.place(reserved, labels);
        let (names, placed) = join(self.layout.len(), "tensorhold-check", check, place);
        let paths = self.layout.files.iter().map(|file| file.source.path().to_path_buf());
        let metadata = match &names {
            Ok(_) => paths.zip(resolved.take_metadata()).collect(),
            Err(_) => BTreeMap::new(),
        };
        let tensors = placed.and_then(|fragments| {
            let mut tensors = Vec::with_capacity(fragments.len());
            for (bytes, description) in fragments.into_iter().zip(resolved.into_descriptions()) {
                tensors.push(Tensor::new(bytes, description)?);
            }
            Ok(tensors)
        });
        BuiltTensors { tensors, metadata, names }
    }

    /// Publishes the tensors as weights (I3), or gives back the reserved memory.
    fn finish(self, reserved: Reserved, loaded: Result<(ReadyTensors, Report)>) -> Result<Weights> {
        match loaded {
            Ok((ReadyTensors { tensors, metadata }, mut report)) => {
                report.times.total = self.started.elapsed();
                tracing::debug!(bytes = report.bytes, seconds = report.times.total.as_secs_f64(), "loaded");
                Ok(Weights::new(tensors, metadata, report, self.pool, self.owns_pool))
            }
            Err(error) => Err(self.failed(reserved, error)),
        }
    }

    /// Gives back the reserved memory.
    pub(super) fn failed(self, reserved: Reserved, error: Error) -> Error {
        drop(reserved);
        self.pool.trim();
        error
    }

    /// Reads all bytes to their places. Backs regions with memory at the same time, if they are backed in
    /// parts.
    fn fill(
        &self,
        bases: &Bases,
        callback: Option<&mut Callback>,
        arrivals: Option<&Arrivals>,
    ) -> Result<Report> {
        let read = if bases.are_parted() {
            self.bring_up_and_read_to(bases, callback, arrivals)
        } else {
            self.read_to(bases, callback, arrivals)
        };
        read.map_err(|error| self.tuning.attribute_to_setting(error))
    }

    fn bring_up_and_read_to(
        &self,
        bases: &Bases,
        callback: Option<&mut Callback>,
        arrivals: Option<&Arrivals>,
    ) -> Result<Report> {
        thread::scope(|scope| {
            let _stop = StopOnPanic(&self.control);
            // If the memory panics, waiters for the part get an error.
            let bring_up = || {
                let _ = catch_unwind(AssertUnwindSafe(|| bases.bring_up(|| self.control.is_stopped())));
            };
            let thread = thread::Builder::new().name("tensorhold-bring".into());
            if thread.spawn_scoped(scope, bring_up).is_err() {
                bring_up();
            }
            let read = self.read_to(bases, callback, arrivals);
            if read.is_err() {
                // The remaining parts are not needed.
                self.control.stop();
            }
            read
        })
    }

    fn read_to(
        &self,
        bases: &Bases,
        mut callback: Option<&mut Callback>,
        arrivals: Option<&Arrivals>,
    ) -> Result<Report> {
        let mut choices = self.tuning.choices.clone();
        let conversion_stats =
            self.counts.then(|| ConversionStats::open(&self.device, &self.layout.transforms)).transpose()?;
        // Set when staging memory is refused: the tuning and the plan of the next attempt.
        let mut smaller: Option<(ReaderTuning, Plan)> = None;
        let (mut scratch_bytes, mut by_cufile) = (0, Vec::new());
        let (read, summary) = loop {
            let (tuning, plan) =
                smaller.as_ref().map_or((&self.tuning, &self.plan), |(tuning, plan)| (tuning, plan));
            let routes = Routes::new(tuning.backend, &self.engines, &self.layout.files);
            let budget = StagingBudget::new(tuning.staging_jobs);
            let scatter = Scatter { plan, transforms: &self.layout.transforms, bases };
            let ring = match self.device.is_host_accessible() {
                true => None,
                false => {
                    let slots = tuning.ring_slot_pool(&self.staging.pool, &budget);
                    let (first, stats) = (self.staging.first(), conversion_stats.as_ref());
                    Some(StagingRing::open(&self.device, slots, first, scatter, stats)?)
                }
            };
            let context = ReadContext {
                scatter,
                tensors: self.layout.len(),
                files: &self.layout.files,
                device: &self.device,
                tuning,
                engines: &self.engines,
                routes,
                staging: &self.staging.pool,
                budget: &budget,
                scratch: self.scratch.as_ref(),
                cufile: OnceLock::new(),
                ring,
                conversion_stats: conversion_stats.as_ref(),
                stage_totals: StageTotals::default(),
            };
            match pipeline::run(&context, callback.as_deref_mut(), &self.control, arrivals) {
                Ok(read) => {
                    // SAFETY: W2: without an error, all readers have ended, and their streams were
                    // synchronized.
                    unsafe { context.settle() };
                    if let Some(cufile) = context.cufile.get() {
                        scratch_bytes = cufile.scratch_bytes();
                        by_cufile.extend(cufile.choices());
                    }
                    break (read, context.routes.summary());
                }
                Err(ReadFailure { error, for_staging }) => {
                    let tuning = tuning.with_smaller_slots().filter(|_| for_staging).ok_or(error)?;
                    choices.push(Choice {
                        about: "slots",
                        picked: Bytes(tuning.job_bytes).to_string(),
                        why: "larger ones were refused".into(),
                    });
                    let plan = self.layout.plan(tuning.limits());
                    smaller = Some((tuning, plan));
                }
            }
        };
        for file in &self.layout.files {
            file.source.check_unchanged()?;
        }
        let (tuning, plan) =
            smaller.as_ref().map_or((&self.tuning, &self.plan), |(tuning, plan)| (tuning, plan));
        choices.extend(self.choices(tuning, &read, summary));
        choices.extend(by_cufile);
        choices.extend(plan::choices(plan, &self.layout.transforms));
        let converted = conversion_stats.map(|stats| stats.read(&self.layout.transforms)).transpose()?;
        let filling = self.started.elapsed().saturating_sub(self.times.plan + self.times.reserve);
        Ok(Report {
            device: self.device.clone(),
            tensors: self.layout.len(),
            bytes: plan.bytes,
            cached_bytes: read.buffered_bytes,
            direct_bytes: read.direct_bytes,
            gds_bytes: read.gds_bytes,
            files: self.layout.files.len(),
            regions: self.layout.memory.regions.len(),
            region_bytes: self.layout.memory.regions.iter().map(|region| region.size).sum(),
            threads: read.threads,
            staging_bytes: self.staging.pool.stats().high_water_bytes + scratch_bytes,
            jobs: plan.jobs.len(),
            times: Times { total: self.started.elapsed(), fill: filling, stages: read.stages, ..self.times },
            choices,
            converted,
            left_out: Arc::clone(&self.left_out),
        })
    }

    /// The choices of the load, for the report.
    fn choices(&self, tuning: &ReaderTuning, read: &ReadSummary, summary: RouteSummary) -> Vec<Choice> {
        let (path, why) = match (self.device.is_host_accessible(), self.device.kind()) {
            (true, DeviceKind::Cuda(_)) => ("in place", "the CPU and the device share the target"),
            (true, _) => ("in place", "the CPU can write the target"),
            (false, _) => ("staged", "the CPU cannot write the target"),
        };
        let mut choices = vec![Choice { about: "path", picked: path.into(), why: why.into() }];
        choices.push(Choice {
            about: "reads",
            picked: format!("of at most {}", Bytes(tuning.job_bytes)),
            why: format!("{} in all", Bytes(self.plan.bytes)),
        });
        if let Some(why) = self.pool.whole_because() {
            choices.push(Choice { about: "regions", picked: "whole".into(), why: why.to_string() });
        } else if self.pool.is_parted() {
            let why = "the pool's memory can be given back tensor by tensor".into();
            choices.push(Choice { about: "regions", picked: "in parts".into(), why });
        }
        if let Some(node) = self.device.driver().staging_node() {
            let why = format!("staging memory goes where {} is", self.device);
            choices.push(Choice { about: "node", picked: node.to_string(), why });
        }
        let mut backend = |picked: BackendKind, why| {
            choices.push(Choice { about: "backend", picked: picked.to_string(), why })
        };
        let required = tuning.backend != Backend::Auto;
        let requested = match tuning.backend_by_setting {
            true => format!("by {}", settings::BACKEND),
            false => "as asked".into(),
        };
        if read.buffered_bytes > 0 {
            let bytes = Bytes(read.buffered_bytes);
            let why = match summary.direct_refused {
                _ if required => requested.clone(),
                true => format!("{bytes}: the file system does not allow reads past the page cache"),
                false => format!("{bytes} in the page cache, by {}", summary.probed_by),
            };
            backend(BackendKind::Buffered, why);
        }
        if let Some((kind, why)) = read.direct.as_ref().filter(|_| read.direct_bytes > 0) {
            let bytes = Bytes(read.direct_bytes);
            backend(*kind, if required { requested.clone() } else { format!("{bytes}: {why}") });
        }
        if let Some(why) = read.cufile.as_ref().filter(|_| read.gds_bytes > 0) {
            let bytes = Bytes(read.gds_bytes);
            backend(
                BackendKind::Gds,
                if required { format!("{requested}, {why}") } else { format!("{bytes}: {why}") },
            );
        }
        if summary.contradicted > 0 {
            let why = "they were not in the page cache after all".into();
            choices.push(Choice { about: "reads again", picked: summary.contradicted.to_string(), why });
        }
        choices
    }
}
