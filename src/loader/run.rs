//! A load under way: from reserved regions to weights.

use std::mem;
use std::sync::Arc;
use std::time::Instant;

use tensorhold_allocator::{Bytes, Placed, Pool};

use super::batch::Batch;
use super::engines::Engines;
use super::fill::{Fill, Filled, Unfilled};
use super::landing::Landing;
use super::options::Readers;
use super::plan::Plan;
use super::progress::Callback;
use super::ring::Ring;
use super::route::{Routes, Said};
use super::stopwatch::Totals;
use super::work::{Arrivals, Control};
use crate::device::Device;
use crate::error::Result;
use crate::io::{Backend, BackendKind};
use crate::report::{Choice, Report, Times};
use crate::tensor::Tensor;
use crate::weights::Weights;

/// A load whose memory is reserved.
pub(super) struct Run {
    device: Device,
    engines: Engines,
    readers: Readers,
    batch: Batch,
    placed: Placed,
    pool: Pool,
    /// The pool was made for this load alone.
    owns_pool: bool,
    control: Arc<Control>,
    started: Instant,
    times: Times,
}

impl Run {
    #[allow(clippy::too_many_arguments, reason = "called once, with what a load has by then")]
    pub(super) fn new(
        device: Device,
        engines: Engines,
        readers: Readers,
        batch: Batch,
        placed: Placed,
        pool: Pool,
        owns_pool: bool,
        started: Instant,
        times: Times,
    ) -> Self {
        let control = Arc::default();
        Self { device, engines, readers, batch, placed, pool, owns_pool, control, started, times }
    }

    /// What stops it.
    pub(super) fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// The tensors, which have not arrived yet.
    pub(super) fn tensors(&self) -> Vec<Tensor> {
        self.batch.tensors(self.placed.fragments.clone(), &self.device)
    }

    /// Who tells of tensors that have landed.
    pub(super) fn arrivals(&self, sender: std::sync::mpsc::Sender<usize>) -> Arrivals {
        Arrivals::new(&self.batch.extents, sender)
    }

    /// Reads all bytes to their places. After an error, what was reserved has been given back when this returns (I4).
    pub(super) fn fill(
        &mut self,
        callback: Option<&mut Callback>,
        arrivals: Option<&Arrivals>,
    ) -> Result<Report> {
        let report = self.try_fill(callback, arrivals);
        if report.is_err() {
            self.placed.fragments.clear();
            self.pool.trim();
        }
        report
    }

    fn try_fill(
        &mut self,
        mut callback: Option<&mut Callback>,
        arrivals: Option<&Arrivals>,
    ) -> Result<Report> {
        let mut choices = mem::take(&mut self.readers.choices);
        let staging = self.staging_pool()?;
        let (filled, said) = loop {
            let routes = Routes::new(self.readers.backend, &self.engines, &self.batch.opened);
            let landing = Landing { plan: &self.batch.plan, target: &self.placed };
            let ring = match self.device.is_host_accessible() {
                true => None,
                false => Some(Ring::open(&self.device, self.readers.ring(&staging), landing)?),
            };
            let fill = Fill {
                landing,
                extents: &self.batch.extents,
                files: &self.batch.opened,
                device: &self.device,
                readers: &self.readers,
                engines: &self.engines,
                routes,
                staging: &staging,
                ring,
                totals: Totals::default(),
            };
            match fill.run(callback.as_deref_mut(), &self.control, arrivals) {
                Ok(filled) => break (filled, fill.routes.said()),
                Err(Unfilled { error, for_staging }) => {
                    let smaller = self.readers.with_smaller_slots().filter(|_| for_staging).ok_or(error)?;
                    choices.push(Choice {
                        about: "slots",
                        picked: Bytes(smaller.job_bytes).to_string(),
                        why: "larger ones were refused".into(),
                    });
                    let (extents, layout) = (&self.batch.extents, &self.batch.layout);
                    self.batch.plan = Plan::new(extents, layout, smaller.span(), smaller.group_bytes());
                    self.readers = smaller;
                }
            }
        };
        for file in &self.batch.opened {
            file.source.check_unchanged()?;
        }
        choices.extend(self.choices(&filled, said));
        let filling = self.started.elapsed().saturating_sub(self.times.plan + self.times.reserve);
        self.times.fill = filling;
        Ok(Report {
            device: self.device.clone(),
            tensors: self.batch.infos.len(),
            bytes: self.batch.plan.bytes,
            cached_bytes: filled.through_bytes,
            direct_bytes: filled.past_bytes,
            files: self.batch.opened.len(),
            regions: self.batch.layout.regions.len(),
            region_bytes: self.batch.layout.regions.iter().map(|region| region.size).sum(),
            threads: filled.threads,
            staging_bytes: staging.stats().high_water_bytes,
            jobs: self.batch.plan.jobs.len(),
            times: Times { total: self.started.elapsed(), stages: filled.stages, ..self.times },
            choices,
        })
    }

    /// Makes weights of what has arrived (I3).
    pub(super) fn publish(mut self, mut report: Report) -> Weights {
        let fragments = mem::take(&mut self.placed.fragments);
        let tensors = self.batch.tensors(fragments, &self.device);
        let named = tensors.into_iter().map(|tensor| (Arc::clone(&tensor.info().name), tensor)).collect();
        report.times.total = self.started.elapsed();
        tracing::debug!(bytes = report.bytes, seconds = report.times.total.as_secs_f64(), "loaded");
        Weights::new(named, self.batch.metadata(), report, self.pool, self.owns_pool)
    }

    /// Where slots come from.
    fn staging_pool(&self) -> Result<Pool> {
        let name = format!("staging for {}", self.device);
        let pool = Pool::builder(self.device.driver().staging_memory()).name(name);
        // A region for each block of slots: memory that is refused in one piece may be had in several.
        Ok(pool.region_bytes(1).build()?)
    }

    fn choices(&self, filled: &Filled, said: Said) -> Vec<Choice> {
        let (path, why) = match self.device.is_host_accessible() {
            true => ("in place", "the CPU can write the target"),
            false => ("staged", "the CPU cannot write the target"),
        };
        let mut choices = vec![Choice { about: "path", picked: path.into(), why: why.into() }];
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
