//! Loading a checkpoint: plan, reserve, fill, publish.
//!
//! 1. **Plan** ([`plan`]): every header is parsed and checked, tensors are selected, laid out and cut into jobs.
//! 2. **Reserve**: one block of the pool for the whole batch.
//! 3. **Fill** ([`fill`]): readers take jobs. In place where the CPU can write the target, through a [`lane`] elsewhere.
//! 4. **Publish**: when the last byte has arrived and the files are still what they were, tensors become
//!    [`Weights`].

mod fill;
mod headers;
mod inspection;
mod lane;
mod options;
mod plan;
#[cfg(test)]
mod plan_tests;
mod progress;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use indexmap::IndexMap;
use tensorhold_allocator::offsets::Layout;
use tensorhold_allocator::{Placed, Pool, Request};

use self::fill::Fill;
use self::headers::Opened;
use self::options::{Options, Readers};
use self::plan::{Extent, Plan};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::{self, Catalog, Index};
use crate::report::{Choice, Report, Times};
use crate::tensor::{Description, Tensor, TensorInfo};
use crate::weights::{Metadata, Weights};

pub use inspection::{FileInfo, Inspection};
pub use progress::Progress;

/// Loads checkpoints onto a device. Options are chained by value; [`load`](Self::load) does the work.
///
/// ```no_run
/// use tensorhold::{Device, Loader};
///
/// let weights = Loader::new(Device::host())
///     .checkpoint("llama/")?
///     .select(|tensor| !tensor.name.starts_with("vision."))
///     .load()?;
/// println!("{:.1} GB/s", weights.report().gigabytes_per_second());
/// # Ok::<(), tensorhold::Error>(())
/// ```
#[must_use = "nothing is loaded before `load` is called"]
pub struct Loader {
    device: Device,
    files: Vec<PathBuf>,
    indexes: Vec<Index>,
    options: Options,
}

impl Loader {
    /// A loader onto `device`, with no files yet.
    pub fn new(device: Device) -> Self {
        Self { device, files: Vec::new(), indexes: Vec::new(), options: Options::default() }
    }

    /// Adds safetensors files. Their errors come from [`load`](Self::load).
    pub fn files(mut self, files: impl IntoIterator<Item: AsRef<Path>>) -> Self {
        self.files.extend(files.into_iter().map(|file| file.as_ref().to_path_buf()));
        self
    }

    /// Adds the files of a checkpoint: a directory with a `model.safetensors.index.json` or with safetensors files, an
    /// index, or a single safetensors file. Links are followed.
    ///
    /// # Errors
    /// When the path is missing or cannot be read, holds no checkpoint or several, the index is not valid, or a file
    /// that it names is missing.
    pub fn checkpoint(mut self, path: impl AsRef<Path>) -> Result<Self> {
        let shards = format::resolve(path.as_ref())?;
        self.files.extend(shards.files);
        self.indexes.extend(shards.index);
        Ok(self)
    }

    /// Loads only the tensors that `wanted` accepts. Asked for each tensor once the headers are known, before any
    /// tensor's bytes are read. Default: all.
    pub fn select(mut self, wanted: impl Fn(&TensorInfo) -> bool + Send + 'static) -> Self {
        self.options.select = Some(Box::new(wanted));
        self
    }

    /// How many threads read, 1 to 1024. Default: one for each core, at most 16.
    pub fn threads(mut self, threads: usize) -> Self {
        self.options.threads = Some(threads);
        self
    }

    /// How many bytes of page-locked staging memory all threads may use together, at least 128 KiB. Default: 64 MiB.
    /// None is used where files are read in place.
    pub fn staging_bytes(mut self, bytes: u64) -> Self {
        self.options.staging_bytes = Some(bytes);
        self
    }

    /// Calls `progress` on the thread that called [`load`](Self::load): before the first byte, as bytes arrive, and at
    /// the end. Breaking cancels the load, which then gives everything back and returns [`Error::Cancelled`].
    pub fn progress(mut self, progress: impl FnMut(&Progress) -> ControlFlow<()> + Send + 'static) -> Self {
        self.options.callback = Some(Box::new(progress));
        self
    }

    /// Places the tensors in this pool, which must be over the device's memory: loads that share a pool share its limit
    /// and statistics. Default: a pool of the weights' own.
    pub fn pool(mut self, pool: &Pool) -> Self {
        self.options.pool = Some(pool.clone());
        self
    }

    /// Loads the tensors. When it returns, each is readable on any stream and from any thread.
    ///
    /// # Errors
    /// When a file or header is not as it should be, the device or its memory refuses, the callback breaks, or a file
    /// changes while it is read. Nothing is left behind (I4).
    pub fn load(mut self) -> Result<Weights> {
        let started = Instant::now();
        let readers = self.options.readers(self.device.is_host_accessible())?;
        let pool = self.open_pool()?;
        let batch = self.plan(&pool, &readers)?;
        let planned = started.elapsed();
        let placed = pool.place_planned(&batch.layout, &batch.labels())?;
        let reserved = started.elapsed();
        let filled = self.fill(&batch, &placed, &readers);
        let (threads, staging_bytes) = match filled {
            Ok(filled) => filled,
            Err(error) => {
                // I4: what was reserved is back when the caller sees the error.
                drop(placed);
                pool.trim();
                return Err(error);
            }
        };
        let mut report = Report {
            device: self.device.clone(),
            tensors: batch.infos.len(),
            bytes: batch.plan.bytes,
            files: batch.opened.len(),
            regions: batch.layout.regions.len(),
            region_bytes: batch.layout.regions.iter().map(|region| region.size).sum(),
            threads,
            staging_bytes,
            jobs: batch.plan.jobs.len(),
            times: Times::default(),
            choices: self.choices(readers),
        };
        let filled = started.elapsed();
        let (tensors, metadata) = batch.publish(placed, &self.device);
        report.times = Times {
            plan: planned,
            reserve: reserved.saturating_sub(planned),
            fill: filled.saturating_sub(reserved),
            total: started.elapsed(),
        };
        tracing::debug!(bytes = report.bytes, seconds = report.times.total.as_secs_f64(), "loaded");
        Ok(Weights::new(tensors, metadata, report, pool, self.options.pool.is_none()))
    }

    /// Reads and checks the headers alone, and says what a load would load.
    ///
    /// # Errors
    /// When a file, header or index is not as it should be.
    pub fn inspect(self) -> Result<Inspection> {
        let opened = self.open_files(self.options.readers(true)?.threads)?;
        let (tensors, _) = self.select_tensors(&opened);
        Ok(Inspection::new(tensors, opened))
    }

    fn open_pool(&self) -> Result<Pool> {
        let memory = self.device.memory();
        let Some(pool) = &self.options.pool else {
            return Ok(Pool::builder(memory).name(self.device.name()).build()?);
        };
        if pool.memory().name() != memory.name() {
            return Err(Error::Option {
                option: "pool",
                got: format!("a pool over {}", pool.memory().name()),
                expected: format!("one over {}", memory.name()),
                remedy: "make it over device.memory()",
            });
        }
        Ok(pool.clone())
    }

    /// Opens the files, and checks their headers one by one and together.
    fn open_files(&self, threads: usize) -> Result<Vec<Opened>> {
        if self.files.is_empty() {
            return Err(Error::NoFiles);
        }
        let opened = headers::open_all(&self.files, threads)?;
        let catalog = Catalog::new(opened.iter().map(|file| (&**file.source.path(), &file.header)))?;
        for index in &self.indexes {
            index.check(&catalog)?;
        }
        Ok(opened)
    }

    /// The selected tensors, file by file in the order of their bytes, and where those are.
    fn select_tensors(&self, opened: &[Opened]) -> (Vec<TensorInfo>, Vec<Extent>) {
        let (mut infos, mut extents) = (Vec::new(), Vec::new());
        for (file, Opened { source, header }) in opened.iter().enumerate() {
            for entry in &header.tensors {
                let info = TensorInfo {
                    name: Arc::clone(&entry.name),
                    dtype: entry.dtype,
                    shape: entry.shape.clone(),
                    nbytes: entry.nbytes,
                    file: Arc::clone(source.path()),
                };
                if self.options.select.as_ref().is_none_or(|wanted| wanted(&info)) {
                    infos.push(info);
                    extents.push(Extent { file, start: entry.start, bytes: entry.nbytes });
                }
            }
        }
        (infos, extents)
    }

    fn plan(&self, pool: &Pool, readers: &Readers) -> Result<Batch> {
        let opened = self.open_files(readers.threads)?;
        let (infos, extents) = self.select_tensors(&opened);
        let requests: Vec<Request> = extents.iter().map(Extent::request).collect();
        let layout = pool.lay_out(&requests)?;
        let plan = Plan::new(&extents, &layout, readers.span);
        Ok(Batch { opened, infos, layout, plan })
    }

    /// Reads all bytes to their places, and returns how many threads and bytes of staging memory it took.
    fn fill(&mut self, batch: &Batch, target: &Placed, readers: &Readers) -> Result<(usize, u64)> {
        let staging = match self.device.is_host_accessible() {
            true => None,
            false => {
                let name = format!("staging for {}", self.device);
                let lane_bytes = readers.span * lane::SLOTS as u64;
                let staging = Pool::builder(self.device.driver().staging_memory()).name(name);
                Some(staging.region_bytes(lane_bytes).build()?)
            }
        };
        let fill = Fill {
            plan: &batch.plan,
            files: &batch.opened,
            target,
            device: &self.device,
            threads: readers.threads,
            staging: staging.as_ref().map(|pool| (pool, readers.span)),
        };
        let threads = fill.run(self.options.callback.as_mut(), batch.infos.len())?;
        for file in &batch.opened {
            file.source.check_unchanged()?;
        }
        Ok((threads, staging.map_or(0, |pool| pool.stats().high_water_bytes)))
    }

    fn choices(&self, readers: Readers) -> Vec<Choice> {
        let (path, why) = match self.device.is_host_accessible() {
            true => ("in place", "the CPU can write the target"),
            false => ("staged", "the CPU cannot write the target"),
        };
        let mut choices = readers.choices;
        choices.push(Choice { about: "path", picked: path.into(), why: why.into() });
        let backend =
            Choice { about: "backend", picked: "buffered".into(), why: "it is the only one so far".into() };
        choices.push(backend);
        choices
    }
}

/// A planned load.
struct Batch {
    opened: Vec<Opened>,
    /// One for each tensor, in the order of the layout.
    infos: Vec<TensorInfo>,
    layout: Layout,
    plan: Plan,
}

impl Batch {
    /// What the pool enters in its books.
    fn labels(&self) -> Vec<(Arc<str>, u64)> {
        self.infos.iter().map(|info| (Arc::clone(&info.name), info.nbytes)).collect()
    }

    /// Makes tensors of what has arrived (I3).
    fn publish(
        self,
        placed: Placed,
        device: &Device,
    ) -> (IndexMap<Arc<str>, Tensor>, BTreeMap<PathBuf, Metadata>) {
        let tensors = self.infos.into_iter().zip(placed.fragments).map(|(info, fragment)| {
            let name = Arc::clone(&info.name);
            (name, Tensor::new(fragment, Arc::new(Description { info, device: device.clone() })))
        });
        let metadata =
            self.opened.into_iter().map(|file| (file.source.path().to_path_buf(), file.header.metadata));
        (tensors.collect(), metadata.collect())
    }
}

impl fmt::Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader")
            .field("device", &self.device)
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}
