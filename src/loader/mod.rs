//! Loading a checkpoint: plan, reserve, fill, publish.
//!
//! 1. **Plan** ([`plan`]): every header is parsed and checked, tensors are selected, laid out and cut into jobs.
//! 2. **Reserve**: one block of the pool for the whole batch.
//! 3. **Fill** ([`crew`]): readers take jobs, each the quicker way ([`route`]): [`through`] the page cache or [`past`] it, in
//!    place where that can be, through the [`ring`] or a [`lane`] elsewhere.
//! 4. **Publish**: when the last byte has arrived and the files are still what they were, tensors become
//!    [`Weights`]; a [`TensorStream`] gives each as soon as it has landed.

mod batch;
mod beside;
mod crew;
mod depth;
mod described;
mod engines;
#[cfg(test)]
mod fault_tests;
mod fill;
mod gds;
#[cfg(test)]
mod gds_tests;
mod headers;
mod inspection;
mod landing;
mod lane;
mod options;
mod past;
mod plan;
#[cfg(test)]
mod plan_tests;
mod progress;
mod ring;
mod route;
mod run;
mod staging;
mod stopwatch;
mod stream;
mod through;
mod work;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use std::{fmt, fs};

use tensorhold_allocator::{Memory, Pool, Reserved};

use self::batch::Batch;
use self::described::Told;
use self::headers::{First, Indexed, Opened};
use self::options::{Cores, Options};
use self::run::Run;
use self::staging::StagingMemory;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::{self, Shards};
use crate::io::{self, Backend};
use crate::report::Times;
use crate::tensor::TensorInfo;
use crate::weights::Weights;

pub use inspection::{FileInfo, Inspection};
pub use progress::Progress;
pub use stream::TensorStream;

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
    checkpoints: Vec<Shards>,
    options: Options,
}

impl Loader {
    /// A loader onto `device`, with no files yet.
    pub fn new(device: Device) -> Self {
        Self { device, checkpoints: Vec::new(), options: Options::default() }
    }

    /// Adds safetensors files. Their errors come from [`load`](Self::load).
    pub fn files(mut self, files: impl IntoIterator<Item: AsRef<Path>>) -> Self {
        let files = files.into_iter().map(|file| file.as_ref().to_path_buf());
        self.checkpoints.push(Shards::Files(files.collect()));
        self
    }

    /// Adds the files of a checkpoint: a directory with a `model.safetensors.index.json` or with safetensors files, an
    /// index, or a single safetensors file. Links are followed.
    ///
    /// # Errors
    /// When the path is missing or cannot be read, or holds no checkpoint or several. What is wrong with an index or a file
    /// comes from [`load`](Self::load).
    pub fn checkpoint(mut self, path: impl AsRef<Path>) -> Result<Self> {
        self.checkpoints.push(format::resolve(path.as_ref())?);
        Ok(self)
    }

    /// Loads only the tensors that `wanted` accepts. Asked for each tensor once the headers are known, before any
    /// tensor's bytes are read. Default: all.
    pub fn select(mut self, wanted: impl Fn(&TensorInfo) -> bool + Send + 'static) -> Self {
        self.options.select = Some(Box::new(wanted));
        self
    }

    /// How many threads read, 1 to 1024. Default: one for each core, at most 16; onto a device, an eighth of the cores is left to
    /// copies, unless the files are on tmpfs, whose small pages take longer to read.
    pub fn threads(mut self, threads: usize) -> Self {
        self.options.threads = Some(threads);
        self
    }

    /// How many bytes of staging memory all threads may use together, at least 128 KiB. Default: 64 MiB. None is used
    /// where files are read in place.
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

    /// Takes staging memory from this pool, which must be over the device's [staging
    /// memory](Device::staging_memory). As many bytes as the pool [retains](crate::allocator::PoolBuilder::retain_bytes) of
    /// what is pinned for one load are there for the next. Default: memory of the load's own, which goes back at its end.
    pub fn staging(mut self, pool: &Pool) -> Self {
        self.options.staging = Some(pool.clone());
        self
    }

    /// Takes the scratch that cuFile reads into from this pool, which must be over [`gds_memory`](crate::gds_memory) of the device. As
    /// many bytes as the pool [retains](crate::allocator::PoolBuilder::retain_bytes) stay registered from one load to the next.
    /// Default: memory of the load's own, which is registered once and goes back at its end.
    pub fn scratch(mut self, pool: &Pool) -> Self {
        self.options.scratch = Some(pool.clone());
        self
    }

    /// How files are read. Default: [`Backend::Auto`], or what `TENSORHOLD_BACKEND` says.
    pub fn backend(mut self, backend: Backend) -> Self {
        self.options.backend = Some(backend);
        self
    }

    /// Loads the tensors. When it returns, each is readable on any stream and from any thread.
    ///
    /// # Errors
    /// When an index, file or header is not as it should be, the device or its memory refuses, the callback breaks, or a file
    /// changes while it is read. Nothing is left behind (I4).
    pub fn load(mut self) -> Result<Weights> {
        if self.may_guess() {
            let confirmed = Arc::new(AtomicBool::new(false));
            let prepared = self.prepare(First::PlacesNearby, Arc::clone(&confirmed));
            match prepared.and_then(|(run, reserved)| run.load(reserved, None)) {
                Err(error) if !confirmed.load(Ordering::Relaxed) => {
                    tracing::debug!(%error, "loaded again, after the index has been read");
                }
                ended => return ended,
            }
        }
        let first = self.first();
        let mut callback = self.options.callback.take();
        let (run, reserved) = self.prepare(first, Arc::default())?;
        run.load(reserved, callback.as_mut())
    }

    /// Begins to load the tensors, and gives each as its bytes land. What is given is readable on any stream and from
    /// any thread, and stays so whatever becomes of the rest.
    ///
    /// The callback of [`progress`](Self::progress) is then called on a thread of the load.
    ///
    /// ```no_run
    /// use tensorhold::{Device, Loader};
    ///
    /// let mut stream = Loader::new(Device::host()).checkpoint("llama/")?.stream()?;
    /// for tensor in &mut stream {
    ///     println!("{:?}", tensor?);
    /// }
    /// let weights = stream.finish()?; // the same tensors, and the report
    /// # Ok::<(), tensorhold::Error>(())
    /// ```
    ///
    /// # Errors
    /// As those of [`load`](Self::load) that come before the first tensor's bytes are read; the others come from the
    /// stream.
    pub fn stream(mut self) -> Result<TensorStream> {
        let first = self.first();
        let callback = self.options.callback.take();
        let (run, reserved) = self.prepare(first, Arc::default())?;
        TensorStream::start(run, reserved, callback)
    }

    /// Puts other engines in the place of those that read.
    #[cfg(test)]
    fn engines(mut self, engines: engines::Engines) -> Self {
        self.options.engines = engines;
        self
    }

    /// Whether the files near a long index may be taken for those that it names until it has been read: where no one is told of
    /// tensors or bytes before, and no one else needs the memory that a wrong guess takes.
    fn may_guess(&self) -> bool {
        let Options { select, callback, pool, .. } = &self.options;
        let alone = select.is_none() && callback.is_none() && pool.is_none();
        alone && self.checkpoints.iter().any(headers::is_guessable)
    }

    /// What is read before the tensors' bytes, without a guess: what a selection looks at.
    fn first(&self) -> First {
        if self.options.select.is_some() { First::All } else { First::Places }
    }

    /// Plans and reserves.
    fn prepare(&self, first: First, confirmed: Arc<AtomicBool>) -> Result<(Run, Reserved)> {
        let started = Instant::now();
        // Only a guess: what cannot be looked at is told when it is opened.
        let mut files = self.checkpoints.iter().flat_map(Shards::likely);
        let file_bytes =
            files.clone().filter_map(|path| fs::metadata(path).ok()).map(|file| file.len()).sum();
        let in_place = self.device.is_host_accessible();
        let all = in_place || files.next().is_some_and(|file| io::is_in_memory(file));
        let readers = self.options.readers(in_place, if all { Cores::All } else { Cores::Most })?;
        let pool = self.open_pool()?;
        let staging =
            self.shared("staging", self.options.staging.as_ref(), &*self.device.staging_memory())?;
        let staging = StagingMemory::new(&self.device, staging, readers.for_bytes(file_bytes).first_slots())?;
        let (mut files, indexes) = self.open_files(first)?;
        let told = Told::take(&mut files, indexes, self.options.select.as_ref());
        let batch = Batch::new(files, &pool)?;
        let readers = readers.for_bytes(batch.bytes());
        let planned = started.elapsed();
        let reserved = pool.reserve_planned(&batch.layout, batch.label())?;
        let times =
            Times { plan: planned, reserve: started.elapsed().saturating_sub(planned), ..Times::default() };
        // After that: what no memory can hold is not planned in detail.
        let plan = batch.plan(&readers);
        let run = Run {
            device: self.device.clone(),
            engines: self.options.engines.clone(),
            readers,
            batch,
            told: Mutex::new(told),
            confirmed,
            plan,
            staging,
            scratch: self.options.scratch.clone(),
            owns_pool: self.options.pool.is_none(),
            pool,
            control: Arc::default(),
            started,
            times,
        };
        Ok((run, reserved))
    }

    /// Reads and checks the headers alone, and says what a load would load.
    ///
    /// # Errors
    /// When a file, header or index is not as it should be.
    pub fn inspect(self) -> Result<Inspection> {
        let (mut files, indexes) = self.open_files(First::All)?;
        let mut described = Told::take(&mut files, indexes, None).read(&files, &self.device)?;
        described.check(&files)?;
        let metadata = described.take_metadata();
        Ok(Inspection::new(files, metadata, described.infos(), self.options.select.as_ref()))
    }

    fn open_pool(&self) -> Result<Pool> {
        let memory = self.device.memory();
        match self.shared("pool", self.options.pool.as_ref(), &*memory)? {
            Some(pool) => Ok(pool),
            None => Ok(Pool::builder(memory).name(self.device.name()).build()?),
        }
    }

    /// A pool that is not the load's own, if it is over that memory.
    fn shared(&self, option: &'static str, pool: Option<&Pool>, memory: &dyn Memory) -> Result<Option<Pool>> {
        match pool {
            Some(pool) if pool.memory().name() != memory.name() => Err(Error::Option {
                option,
                got: format!("a pool over {}", pool.memory().name()),
                expected: format!("one over {}", memory.name()),
                remedy: "make it over device.memory() or, for staging, device.staging_memory()",
            }),
            pool => Ok(pool.cloned()),
        }
    }

    /// Opens the files, and checks headers and indexes one by one.
    fn open_files(&self, first: First) -> Result<(Vec<Opened>, Vec<Indexed>)> {
        if self.checkpoints.iter().all(|shards| matches!(shards, Shards::Files(files) if files.is_empty())) {
            return Err(Error::NoFiles);
        }
        // There is nothing else to do meanwhile: all cores read, as if in place.
        headers::open_all(
            &self.checkpoints,
            &self.device,
            self.options.readers(true, Cores::All)?.threads,
            first,
        )
    }
}

impl fmt::Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader")
            .field("device", &self.device)
            .field("checkpoints", &self.checkpoints)
            .finish_non_exhaustive()
    }
}
