//! A load under way: from reserved regions to weights.

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

use super::batch::Batch;
use super::beside::beside;
use super::crew::{self, Filled, StopOnPanic, Unfilled};
use super::described::Told;
use super::engines::Engines;
use super::fill::Fill;
use super::landing::Landing;
use super::options::Readers;
use super::plan::Plan;
use super::progress::Callback;
use super::ring::Ring;
use super::route::{Routes, Said};
use super::staging::{Budget, StagingMemory};
use super::stopwatch::Totals;
use super::tally::Tally;
use super::work::{Arrivals, Control};
use crate::device::{Device, DeviceKind};
use crate::error::{Error, Result};
use crate::format::LeftOut;
use crate::io::{Backend, BackendKind};
use crate::names::Names;
use crate::report::{Choice, Report, Times};
use crate::settings;
use crate::tensor::Tensor;
use crate::weights::{Metadata, Named, Weights};

/// A load whose memory is reserved: the [`Reserved`] goes with it.
pub(super) struct Run {
    pub(super) device: Device,
    pub(super) engines: Engines,
    pub(super) readers: Readers,
    pub(super) batch: Batch,
    /// Until the tensors have been made.
    pub(super) told: Mutex<Told>,
    /// Set once what is loaded is known to be what was asked for, and no guess.
    pub(super) confirmed: Arc<AtomicBool>,
    /// Files that are not loaded, or not wholly.
    pub(super) left_out: Arc<[LeftOut]>,
    pub(super) plan: Plan,
    pub(super) staging: StagingMemory,
    /// Where readers by cuFile take their scratch from, if the caller has said so.
    pub(super) scratch: Option<Pool>,
    pub(super) pool: Pool,
    /// What conversions meet is counted.
    pub(super) counts: bool,
    /// The pool was made for this load alone.
    pub(super) owns_pool: bool,
    /// What stops it.
    pub(super) control: Arc<Control>,
    pub(super) started: Instant,
    pub(super) times: Times,
}

/// Tensors, and their names if the files that they are of fit together. Kept until nothing writes to the memory.
pub(super) struct Made {
    tensors: Result<Vec<Tensor>>,
    metadata: BTreeMap<PathBuf, Option<Arc<Metadata>>>,
    names: Result<Names>,
}

/// What is handed out when its bytes have arrived.
pub(super) struct Ready {
    pub(super) tensors: Named,
    metadata: BTreeMap<PathBuf, Option<Arc<Metadata>>>,
}

impl Made {
    /// The tensors, if all is well.
    pub(super) fn ready(self) -> Result<Ready> {
        let names = self.names?;
        Ok(Ready { tensors: Named::new(self.tensors?, names), metadata: self.metadata })
    }
}

impl Run {
    /// Reads all bytes to their places and, meanwhile, makes the tensors. After an error, what was reserved has been
    /// given back when this returns (I4).
    pub(super) fn load(self, mut reserved: Reserved, callback: Option<&mut Callback>) -> Result<Weights> {
        let bases = reserved.bases();
        let cut = Mutex::new(&mut reserved);
        let make = || {
            let made = self.make(&mut cut.lock().unwrap_or_else(PoisonError::into_inner));
            // What cannot be handed out need not be read.
            if made.tensors.is_err() || made.names.is_err() {
                self.control.stop();
            }
            made
        };
        // W2: the readers have ended after this. The memory stays for longer, whatever goes wrong: in `reserved`, or in the
        // tensors, which are handed out.
        let fill = || self.fill(&bases, callback, None);
        let (made, filled) = beside(self.batch.len(), "tensorhold-make", make, fill);
        // Where the tensors could not be made, the fill was stopped for it.
        let loaded = made.ready().and_then(|ready| Ok((ready, filled?)));
        if let Ok((ready, _)) = &loaded {
            // SAFETY: W2: all readers have ended without an error, and so has what they enqueued. No one has a tensor yet.
            ready.tensors.iter().for_each(|tensor| unsafe { tensor.landed() });
        }
        self.finish(reserved, loaded)
    }

    /// Reads all bytes to their places, and tells of the tensors that have landed; `ready` are those that
    /// [`make`](Self::make) made of the memory at `bases`. As [`load`](Self::load) otherwise.
    pub(super) fn stream(
        self,
        reserved: Reserved,
        bases: &Bases,
        ready: Ready,
        callback: Option<&mut Callback>,
        sender: Sender<usize>,
    ) -> Result<Weights> {
        let arrivals = Arrivals::new(self.batch.layout.placements.clone(), sender);
        let filled = self.fill(bases, callback, Some(&arrivals));
        self.finish(reserved, filled.map(|report| (ready, report)))
    }

    /// Reads the rest of what files and indexes say, checks that they fit together, and makes the tensors, whose bytes have not
    /// arrived yet. After an error the memory is where it was.
    pub(super) fn make(&self, reserved: &mut Reserved) -> Made {
        let told = mem::take(&mut *self.told.lock().unwrap_or_else(PoisonError::into_inner));
        let mut described = match told.read(&self.batch.files, &self.device) {
            Ok(described) => described,
            Err(error) => {
                return Made { tensors: Err(error), metadata: BTreeMap::new(), names: Ok(Names::default()) };
            }
        };
        self.confirmed.store(true, Ordering::Relaxed);
        let labels = described.take_labels();
        let check = || described.check(&self.batch.files);
        let place = || self.batch.place(reserved, labels);
        let (names, placed) = beside(self.batch.len(), "tensorhold-check", check, place);
        let paths = self.batch.files.iter().map(|file| file.source.path().to_path_buf());
        let metadata = match &names {
            Ok(_) => paths.zip(described.take_metadata()).collect(),
            Err(_) => BTreeMap::new(),
        };
        let tensors = placed.and_then(|fragments| {
            let mut tensors = Vec::with_capacity(fragments.len());
            for (bytes, description) in fragments.into_iter().zip(described.into_descriptions()) {
                tensors.push(Tensor::new(bytes, description)?);
            }
            Ok(tensors)
        });
        Made { tensors, metadata, names }
    }

    /// Makes weights of what has arrived (I3), or gives back what was reserved.
    fn finish(self, reserved: Reserved, loaded: Result<(Ready, Report)>) -> Result<Weights> {
        match loaded {
            Ok((Ready { tensors, metadata }, mut report)) => {
                report.times.total = self.started.elapsed();
                tracing::debug!(bytes = report.bytes, seconds = report.times.total.as_secs_f64(), "loaded");
                Ok(Weights::new(tensors, metadata, report, self.pool, self.owns_pool))
            }
            Err(error) => Err(self.failed(reserved, error)),
        }
    }

    /// Gives back what was reserved.
    pub(super) fn failed(self, reserved: Reserved, error: Error) -> Error {
        drop(reserved);
        self.pool.trim();
        error
    }

    /// Reads all bytes to their places; where there is no memory behind them yet, that is brought up meanwhile.
    fn fill(
        &self,
        bases: &Bases,
        callback: Option<&mut Callback>,
        arrivals: Option<&Arrivals>,
    ) -> Result<Report> {
        let filled = if bases.are_parted() {
            self.bring_up_and_read_to(bases, callback, arrivals)
        } else {
            self.read_to(bases, callback, arrivals)
        };
        filled.map_err(|error| self.readers.name_setting(error))
    }

    fn bring_up_and_read_to(
        &self,
        bases: &Bases,
        callback: Option<&mut Callback>,
        arrivals: Option<&Arrivals>,
    ) -> Result<Report> {
        thread::scope(|scope| {
            let _stop = StopOnPanic(&self.control);
            // If the memory panics, whoever waits for the part is told so.
            let bring_up = || {
                let _ = catch_unwind(AssertUnwindSafe(|| bases.bring_up(|| self.control.is_stopped())));
            };
            let thread = thread::Builder::new().name("tensorhold-bring".into());
            if thread.spawn_scoped(scope, bring_up).is_err() {
                bring_up();
            }
            let filled = self.read_to(bases, callback, arrivals);
            if filled.is_err() {
                // What is not there yet is not needed.
                self.control.stop();
            }
            filled
        })
    }

    fn read_to(
        &self,
        bases: &Bases,
        mut callback: Option<&mut Callback>,
        arrivals: Option<&Arrivals>,
    ) -> Result<Report> {
        let mut choices = self.readers.choices.clone();
        let tally = self.counts.then(|| Tally::open(&self.device, &self.batch.changes)).transpose()?;
        // Where staging memory is refused, and as it was planned otherwise.
        let mut smaller: Option<(Readers, Plan)> = None;
        let (mut scratch_bytes, mut by_cufile) = (0, Vec::new());
        let (filled, said) = loop {
            let (readers, plan) =
                smaller.as_ref().map_or((&self.readers, &self.plan), |(readers, plan)| (readers, plan));
            let routes = Routes::new(readers.backend, &self.engines, &self.batch.files);
            let budget = Budget::new(readers.staging_jobs);
            let landing = Landing { plan, changes: &self.batch.changes, bases };
            let ring = match self.device.is_host_accessible() {
                true => None,
                false => {
                    let slots = readers.ring(&self.staging.pool, &budget);
                    Some(Ring::open(&self.device, slots, self.staging.first(), landing)?)
                }
            };
            let fill = Fill {
                landing,
                tensors: self.batch.len(),
                files: &self.batch.files,
                device: &self.device,
                readers,
                engines: &self.engines,
                routes,
                staging: &self.staging.pool,
                budget: &budget,
                scratch: self.scratch.as_ref(),
                gds: OnceLock::new(),
                ring,
                tally: tally.as_ref(),
                totals: Totals::default(),
            };
            match crew::run(&fill, callback.as_deref_mut(), &self.control, arrivals) {
                Ok(filled) => {
                    // SAFETY: W2: without an error, all readers have ended, and their streams were synchronized.
                    unsafe { fill.settle() };
                    if let Some(gds) = fill.gds.get() {
                        scratch_bytes = gds.scratch_bytes();
                        by_cufile.extend(gds.choices());
                    }
                    break (filled, fill.routes.said());
                }
                Err(Unfilled { error, for_staging }) => {
                    let readers = readers.with_smaller_slots().filter(|_| for_staging).ok_or(error)?;
                    choices.push(Choice {
                        about: "slots",
                        picked: Bytes(readers.job_bytes).to_string(),
                        why: "larger ones were refused".into(),
                    });
                    let plan = self.batch.plan(&readers);
                    smaller = Some((readers, plan));
                }
            }
        };
        for file in &self.batch.files {
            file.source.check_unchanged()?;
        }
        let (readers, plan) =
            smaller.as_ref().map_or((&self.readers, &self.plan), |(readers, plan)| (readers, plan));
        choices.extend(self.choices(readers, &filled, said));
        choices.extend(by_cufile);
        choices.extend(self.batch.changes.choices(plan));
        let converted = tally.map(|tally| tally.read(&self.batch.changes)).transpose()?;
        let filling = self.started.elapsed().saturating_sub(self.times.plan + self.times.reserve);
        Ok(Report {
            device: self.device.clone(),
            tensors: self.batch.len(),
            bytes: plan.bytes,
            cached_bytes: filled.through_bytes,
            direct_bytes: filled.past_bytes,
            gds_bytes: filled.gds_bytes,
            files: self.batch.files.len(),
            regions: self.batch.layout.regions.len(),
            region_bytes: self.batch.layout.regions.iter().map(|region| region.size).sum(),
            threads: filled.threads,
            staging_bytes: self.staging.pool.stats().high_water_bytes + scratch_bytes,
            jobs: plan.jobs.len(),
            times: Times {
                total: self.started.elapsed(),
                fill: filling,
                stages: filled.stages,
                ..self.times
            },
            choices,
            converted,
            left_out: Arc::clone(&self.left_out),
        })
    }

    fn choices(&self, readers: &Readers, filled: &Filled, said: Said) -> Vec<Choice> {
        let (path, why) = match (self.device.is_host_accessible(), self.device.kind()) {
            (true, DeviceKind::Cuda(_)) => ("in place", "the CPU and the device share the target"),
            (true, _) => ("in place", "the CPU can write the target"),
            (false, _) => ("staged", "the CPU cannot write the target"),
        };
        let mut choices = vec![Choice { about: "path", picked: path.into(), why: why.into() }];
        choices.push(Choice {
            about: "reads",
            picked: format!("of at most {}", Bytes(readers.job_bytes)),
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
        let required = readers.backend != Backend::Auto;
        let asked = match readers.backend_by_setting {
            true => format!("by {}", settings::BACKEND),
            false => "as asked".into(),
        };
        if filled.through_bytes > 0 {
            let bytes = Bytes(filled.through_bytes);
            let why = match said.refused {
                _ if required => asked.clone(),
                true => format!("{bytes}: the file system does not allow reads past the page cache"),
                false => format!("{bytes} in the page cache, by {}", said.asked),
            };
            backend(BackendKind::Buffered, why);
        }
        if let Some((kind, why)) = filled.past.as_ref().filter(|_| filled.past_bytes > 0) {
            let bytes = Bytes(filled.past_bytes);
            backend(*kind, if required { asked.clone() } else { format!("{bytes}: {why}") });
        }
        if let Some(why) = filled.gds.as_ref().filter(|_| filled.gds_bytes > 0) {
            let bytes = Bytes(filled.gds_bytes);
            backend(
                BackendKind::Gds,
                if required { format!("{asked}, {why}") } else { format!("{bytes}: {why}") },
            );
        }
        if said.contradicted > 0 {
            let why = "they were not in the page cache after all".into();
            choices.push(Choice { about: "reads again", picked: said.contradicted.to_string(), why });
        }
        choices
    }
}
