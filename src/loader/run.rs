//! A load under way: from reserved regions to weights.

use std::mem;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Instant;

use tensorhold_allocator::{Bases, Bytes, Pool, Reserved};

use super::batch::{self, Batch};
use super::beside::beside;
use super::crew::{self, Filled, Unfilled};
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
use super::work::{Arrivals, Control};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::Index;
use crate::io::{Backend, BackendKind};
use crate::report::{Choice, Report, Times};
use crate::tensor::Tensor;
use crate::weights::{Named, Weights};

/// A load whose memory is reserved: the [`Reserved`] goes with it.
pub(super) struct Run {
    pub(super) device: Device,
    pub(super) engines: Engines,
    pub(super) indexes: Vec<Index>,
    pub(super) readers: Readers,
    pub(super) batch: Batch,
    pub(super) staging: StagingMemory,
    pub(super) pool: Pool,
    /// The pool was made for this load alone.
    pub(super) owns_pool: bool,
    /// What stops it.
    pub(super) control: Arc<Control>,
    pub(super) started: Instant,
    pub(super) times: Times,
}

/// Tensors, and whether the files that they are of fit together. Kept until nothing writes to the memory.
pub(super) struct Made {
    tensors: Result<(Named, Vec<Tensor>)>,
    checked: Result<()>,
}

impl Made {
    /// The tensors, if all is well.
    pub(super) fn tensors(self) -> Result<Named> {
        self.checked.and(self.tensors).map(|(tensors, _)| tensors)
    }
}

/// The part of a load that reads. Readers and plan change where staging memory is refused.
struct Filling<'a> {
    run: &'a Run,
    readers: Readers,
    plan: Plan,
    bases: &'a Bases,
}

impl Run {
    /// Reads all bytes to their places and, meanwhile, makes the tensors. After an error, what was reserved has been
    /// given back when this returns (I4).
    pub(super) fn load(self, mut reserved: Reserved, callback: Option<&mut Callback>) -> Result<Weights> {
        let bases = reserved.bases();
        let make = || {
            let made = self.make(&mut reserved);
            // What cannot be handed out need not be read.
            if made.tensors.is_err() || made.checked.is_err() {
                self.control.stop();
            }
            made
        };
        // W2: the readers have ended when the scope ends. The memory stays for longer, whatever goes wrong: in `reserved`,
        // or in the tensors, which the scope hands out.
        let (made, filled) = thread::scope(|scope| {
            let making = thread::Builder::new().name("tensorhold-make".into()).spawn_scoped(scope, make);
            let filled = self.filling(&bases).fill(callback, None);
            let made = match making {
                Ok(making) => making.join().unwrap_or_else(|panic| resume_unwind(panic)),
                Err(source) => Made { tensors: Err(Error::Thread { source }), checked: Ok(()) },
            };
            (made, filled)
        });
        // Where the tensors could not be made, the fill was stopped for it.
        let loaded = made.tensors().and_then(|tensors| Ok((tensors, filled?)));
        self.finish(reserved, loaded)
    }

    /// Reads all bytes to their places, and tells of the tensors that have landed; `tensors` are those that
    /// [`make`](Self::make) made of the memory at `bases`. As [`load`](Self::load) otherwise.
    pub(super) fn stream(
        self,
        reserved: Reserved,
        bases: &Bases,
        tensors: Named,
        callback: Option<&mut Callback>,
        sender: Sender<usize>,
    ) -> Result<Weights> {
        let arrivals = Arrivals::new(&self.batch.extents, sender);
        let filled = self.filling(bases).fill(callback, Some(&arrivals));
        self.finish(reserved, filled.map(|report| (tensors, report)))
    }

    /// Makes the tensors, whose bytes have not arrived yet, and checks that the files fit together. After an error the
    /// memory is where it was, or in the tensors.
    pub(super) fn make(&self, reserved: &mut Reserved) -> Made {
        let check = || batch::check(&self.batch.opened, &self.indexes);
        let place = || self.batch.place(reserved, &self.device);
        let (checked, tensors) = beside(self.batch.extents.len(), "tensorhold-check", check, place);
        Made { tensors, checked }
    }

    fn filling<'a>(&'a self, bases: &'a Bases) -> Filling<'a> {
        let plan = Plan::new(
            &self.batch.extents,
            &self.batch.layout,
            self.readers.span(),
            self.readers.group_bytes(),
        );
        Filling { run: self, readers: self.readers.clone(), plan, bases }
    }

    /// Makes weights of what has arrived (I3), or gives back what was reserved.
    fn finish(self, reserved: Reserved, loaded: Result<(Named, Report)>) -> Result<Weights> {
        match loaded {
            Ok((tensors, mut report)) => {
                report.times.total = self.started.elapsed();
                tracing::debug!(bytes = report.bytes, seconds = report.times.total.as_secs_f64(), "loaded");
                Ok(Weights::new(tensors, self.batch.metadata(), report, self.pool, self.owns_pool))
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
}

impl Filling<'_> {
    /// Reads all bytes to their places.
    fn fill(mut self, mut callback: Option<&mut Callback>, arrivals: Option<&Arrivals>) -> Result<Report> {
        let mut choices = mem::take(&mut self.readers.choices);
        let staging = &self.run.staging;
        let (filled, said) = loop {
            let routes = Routes::new(self.readers.backend, &self.run.engines, &self.run.batch.opened);
            let budget = Budget::new(self.readers.staging_jobs);
            let landing = Landing { plan: &self.plan, bases: self.bases };
            let ring = match self.run.device.is_host_accessible() {
                true => None,
                false => {
                    let slots = self.readers.ring(&staging.pool, &budget);
                    Some(Ring::open(&self.run.device, slots, staging.first(), landing)?)
                }
            };
            let fill = Fill {
                landing,
                extents: &self.run.batch.extents,
                files: &self.run.batch.opened,
                device: &self.run.device,
                readers: &self.readers,
                engines: &self.run.engines,
                routes,
                staging: &staging.pool,
                budget: &budget,
                ring,
                totals: Totals::default(),
            };
            match crew::run(&fill, callback.as_deref_mut(), &self.run.control, arrivals) {
                Ok(filled) => break (filled, fill.routes.said()),
                Err(Unfilled { error, for_staging }) => {
                    let smaller = self.readers.with_smaller_slots().filter(|_| for_staging).ok_or(error)?;
                    choices.push(Choice {
                        about: "slots",
                        picked: Bytes(smaller.job_bytes).to_string(),
                        why: "larger ones were refused".into(),
                    });
                    let (extents, layout) = (&self.run.batch.extents, &self.run.batch.layout);
                    self.plan = Plan::new(extents, layout, smaller.span(), smaller.group_bytes());
                    self.readers = smaller;
                }
            }
        };
        for file in &self.run.batch.opened {
            file.source.check_unchanged()?;
        }
        choices.extend(self.choices(&filled, said));
        let filling = self.run.started.elapsed().saturating_sub(self.run.times.plan + self.run.times.reserve);
        Ok(Report {
            device: self.run.device.clone(),
            tensors: self.run.batch.extents.len(),
            bytes: self.plan.bytes,
            cached_bytes: filled.through_bytes,
            direct_bytes: filled.past_bytes,
            files: self.run.batch.opened.len(),
            regions: self.run.batch.layout.regions.len(),
            region_bytes: self.run.batch.layout.regions.iter().map(|region| region.size).sum(),
            threads: filled.threads,
            staging_bytes: staging.pool.stats().high_water_bytes,
            jobs: self.plan.jobs.len(),
            times: Times {
                total: self.run.started.elapsed(),
                fill: filling,
                stages: filled.stages,
                ..self.run.times
            },
            choices,
        })
    }

    fn choices(&self, filled: &Filled, said: Said) -> Vec<Choice> {
        let (path, why) = match self.run.device.is_host_accessible() {
            true => ("in place", "the CPU can write the target"),
            false => ("staged", "the CPU cannot write the target"),
        };
        let mut choices = vec![Choice { about: "path", picked: path.into(), why: why.into() }];
        choices.push(Choice {
            about: "reads",
            picked: format!("of at most {}", Bytes(self.readers.job_bytes)),
            why: format!("{} in all", Bytes(self.plan.bytes)),
        });
        let mut backend = |picked: BackendKind, why| {
            choices.push(Choice { about: "backend", picked: picked.to_string(), why })
        };
        let required = self.readers.backend != Backend::Auto;
        if filled.through_bytes > 0 {
            let bytes = Bytes(filled.through_bytes);
            let why = match said.refused {
                _ if required => "as asked".into(),
                true => format!("{bytes}: the file system does not allow reads past the page cache"),
                false => format!("{bytes} in the page cache, by {}", said.asked),
            };
            backend(BackendKind::Buffered, why);
        }
        if let Some((kind, why)) = filled.past.as_ref().filter(|_| filled.past_bytes > 0) {
            let bytes = Bytes(filled.past_bytes);
            backend(*kind, if required { "as asked".into() } else { format!("{bytes}: {why}") });
        }
        if said.contradicted > 0 {
            let why = "they were not in the page cache after all".into();
            choices.push(Choice { about: "reads again", picked: said.contradicted.to_string(), why });
        }
        choices
    }
}
