//! Loading a checkpoint: plan, reserve, fill, publish.
//!
//! 1. **Plan** ([`plan`]): every header is parsed and checked, tensors are selected, laid out and cut into jobs.
//! 2. **Reserve**: one block of the pool for the whole batch.
//! 3. **Fill** ([`crew`]): readers take jobs, each the quicker way ([`route`]): [`through`] the page cache or [`past`] it, in
//!    place where that can be, through the [`ring`] or a [`lane`] elsewhere.
//!    Tensors that are [asked](asked) for in another type, or in parts, are [remade](remake) from [parts].
//! 4. **Publish**: when the last byte has arrived and the files are still what they were, tensors become
//!    [`Weights`]; a [`TensorStream`] gives each as soon as it has landed.

mod asked;
mod batch;
mod batches;
mod beside;
mod budget;
mod change;
#[cfg(test)]
mod change_fault_tests;
mod checkpoint;
mod crew;
mod cut;
mod depth;
mod described;
mod engines;
#[cfg(test)]
mod fault_tests;
mod fill;
mod fit;
mod gds;
#[cfg(test)]
mod gds_tests;
mod headers;
mod inspection;
mod landing;
mod lane;
mod options;
mod parts;
#[cfg(test)]
mod parts_tests;
mod past;
mod plan;
#[cfg(test)]
mod plan_tests;
mod prepare;
mod progress;
mod remake;
mod ring;
mod route;
mod rule;
mod run;
mod runs;
mod shared;
mod staging;
mod stopwatch;
mod stream;
mod strided;
mod tally;
mod through;
mod work;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fmt, fs};

use tensorhold_allocator::{Pool, RegionParts, Reserved};
use tensorhold_kernels::Overflow;

use self::batch::Placing;
use self::described::Told;
use self::headers::{First, Indexed, Opened};
use self::options::{Cores, Options};
use self::prepare::{Begun, Likely};
use self::progress::Callback;
use self::rule::Rule;
use self::run::Run;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::{self, Shards};
use crate::io::{self, Backend};
use crate::tensor::TensorInfo;
use crate::weights::Weights;

pub use asked::{CutReads, TransformOn};
pub use batches::{BatchPlan, Batches, Batching};
pub use checkpoint::Checkpoint;
pub use cut::Cut;
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
    /// What was opened before.
    opened: Option<Checkpoint>,
    checkpoints: Vec<Shards>,
    options: Options,
    callback: Option<Callback>,
    /// The callback is told nothing of what is loaded.
    only_interrupts: bool,
}

impl Loader {
    /// A loader onto `device`, with no files yet.
    pub fn new(device: Device) -> Self {
        Self {
            device,
            opened: None,
            checkpoints: Vec::new(),
            options: Options::default(),
            callback: None,
            only_interrupts: false,
        }
    }

    /// A loader of what has been opened.
    fn of(checkpoint: &Checkpoint) -> Self {
        let device = checkpoint.device().clone();
        let (opened, options) = (Some(checkpoint.clone()), checkpoint.options().clone());
        Self { device, opened, checkpoints: Vec::new(), options, callback: None, only_interrupts: false }
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
        self.options.select = Some(Rule::new(wanted));
        self
    }

    /// Converts floats to this type, one of F32, F16, BF16, F8_E4M3 and F8_E5M2, on their way: all tensors of F64, F32, F16 and BF16. Integers,
    /// booleans and what is quantized to eight bits or fewer stay as they are, since they are indexes, or have scales;
    /// [`dtype_by`](Self::dtype_by) converts those, too, and is asked first. `docs/kernels.md` says how numbers are rounded.
    ///
    /// ```
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let file = folder.path().join("model.safetensors");
    /// # let header = r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    /// # let data = [1.5_f32, -2.0].map(f32::to_le_bytes).concat();
    /// # std::fs::write(&file, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()).unwrap();
    /// use tensorhold::{DType, Device, Loader};
    ///
    /// let weights = Loader::new(Device::host()).files([file]).dtype(DType::BF16).load()?;
    /// assert_eq!(weights.view("w")?.dtype(), DType::BF16);
    /// assert_eq!(weights.view("w")?.to_host()?, [0xc0, 0x3f, 0x00, 0xc0]);
    /// # Ok::<(), tensorhold::Error>(())
    /// ```
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.options.asked.dtype = Some(dtype);
        self
    }

    /// Converts each tensor to the type that the rule gives, on its way. Where it gives none, [`dtype`](Self::dtype) decides. The rule is given the
    /// selected tensors as their files have them, before any tensor's bytes are read; a pair of types without a conversion is an error then.
    pub fn dtype_by(mut self, rule: impl Fn(&TensorInfo) -> Option<DType> + Send + 'static) -> Self {
        self.options.asked.dtype_rule = Some(Rule::new(rule));
        self
    }

    /// What becomes of values that are too large for an 8-bit float. Default: what torch does.
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.options.asked.overflow = overflow;
        self
    }

    /// Counts, for each converted tensor, the values that are out of the new type's range, and NaN: [`Report::converted`](crate::Report::converted).
    /// That costs some time.
    pub fn count_conversions(mut self) -> Self {
        self.options.asked.counts = true;
        self
    }

    /// Loads part `rank` of `world` equal parts of a tensor, along dimension `dim`: the same as [`cut`](Self::cut) with [`Cut::shard`].
    pub fn shard(self, name: impl Into<String>, dim: usize, rank: usize, world: usize) -> Self {
        self.cut(name, Cut::shard(dim, rank, world))
    }

    /// Loads `length` elements of a tensor along dimension `dim`, from `start` on: the same as [`cut`](Self::cut) with [`Cut::narrow`].
    pub fn narrow(self, name: impl Into<String>, dim: usize, start: usize, length: usize) -> Self {
        self.cut(name, Cut::narrow(dim, start, length))
    }

    /// Loads a part of a tensor. Of the rest no more is read than is in the way. Parts are dense, as any tensor, and the tensor's
    /// [description](TensorInfo) is that of the part. Cuts are made one after the other, in the order in which they were asked for, and before a
    /// conversion. A name that no tensor has is an error, and so is a part that the tensor does not have, before any tensor's bytes are read.
    pub fn cut(mut self, name: impl Into<String>, cut: Cut) -> Self {
        self.options.asked.cuts.add(name.into(), cut);
        self
    }

    /// Loads a part of each tensor that the rule gives cuts for: an `Option` of one, or several, which are made one after the other. The
    /// rule is given the selected tensors as their files have them. As [`cut`](Self::cut) otherwise.
    pub fn cut_by<C: IntoIterator<Item = Cut>>(
        mut self,
        rule: impl Fn(&TensorInfo) -> C + Send + 'static,
    ) -> Self {
        let rule = move |tensor: &TensorInfo| rule(tensor).into_iter().collect();
        self.options.asked.cuts.add_rule(Rule::new(rule));
        self
    }

    /// Where tensors are converted, and gathered from rows that are read as a whole. The bytes are the same. Default: on the device, where its
    /// driver has transforms, else on the CPU.
    pub fn transform_on(mut self, place: TransformOn) -> Self {
        self.options.asked.transform_on = place;
        self
    }

    /// How what is cut out of rows is read through the page cache. The bytes are the same. Default: tensor by tensor the quicker way.
    pub fn cut_reads(mut self, reads: CutReads) -> Self {
        self.options.asked.cut_reads = reads;
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

    /// How much device memory the load may take, in bytes: that of its tensors, with the padding that aligns them, and what it needs besides,
    /// which is what cuFile reads into. A load that would take more is an error before any tensor's bytes are read; where cuFile alone is what
    /// would, other readers take its place. [Batches](Self::batches) are planned so that they fit. Default: no limit.
    ///
    /// The budget is the load's own, and counts its tensors wherever in the pool they are placed. The limit of a [pool](Self::pool) is for all
    /// who share it, and counts what they have placed: a load has to be within both.
    pub fn memory_budget(mut self, bytes: u64) -> Self {
        self.options.memory_budget = Some(bytes);
        self
    }

    /// Calls `progress` on the thread that called [`load`](Self::load): before the first byte, as bytes arrive, and at
    /// the end. Breaking cancels the load, which then gives everything back and returns [`Error::Cancelled`].
    pub fn progress(mut self, progress: impl FnMut(&Progress) -> ControlFlow<()> + Send + 'static) -> Self {
        self.callback = Some(Box::new(progress));
        self.only_interrupts = false;
        self
    }

    /// Asks `interrupted`, where [`progress`](Self::progress) would be called, whether to cancel the load. For those who want to know nothing else: they are
    /// told nothing, so a load may begin with files that have not been confirmed by their index yet. The later of the two calls holds.
    pub fn interrupt(mut self, mut interrupted: impl FnMut() -> bool + Send + 'static) -> Self {
        let ask = move |_: &Progress| {
            if interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        self.callback = Some(Box::new(ask));
        self.only_interrupts = true;
        self
    }

    /// Places the tensors in this pool, which must be over the device's memory: loads that share a pool share its limit
    /// and statistics. Default: a pool of the weights' own.
    pub fn pool(mut self, pool: &Pool) -> Self {
        self.options.pool = Some(pool.clone());
        self
    }

    /// Whether the memory of the load's own pool goes back to the device tensor by tensor, or as a whole when the last of them has gone. Default: as a whole.
    /// A pool that is [named](Self::pool) has been made one way or the other.
    pub fn region_parts(mut self, parts: RegionParts) -> Self {
        self.options.region_parts = parts;
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
    /// When an index, file or header is not as it should be, a tensor cannot be had as is asked, the device or its memory
    /// refuses, the callback breaks, or a file changes while it is read. Nothing is left behind (I4).
    pub fn load(mut self) -> Result<Weights> {
        let may_guess = self.may_guess();
        let mut callback = self.callback.take();
        if may_guess {
            let confirmed = Arc::new(AtomicBool::new(false));
            let prepared = self.prepare(First::PlacesNearby, Arc::clone(&confirmed));
            match prepared.and_then(|(run, reserved)| run.load(reserved, callback.as_mut())) {
                Err(error @ Error::Cancelled { .. }) => return Err(error),
                Err(error) if !confirmed.load(Ordering::Relaxed) => {
                    tracing::debug!(%error, "loaded again, after the index has been read");
                }
                ended => return ended,
            }
        }
        let (run, reserved) = self.prepare(self.first(), Arc::default())?;
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
        let callback = self.callback.take();
        let (run, reserved) = self.prepare(first, Arc::default())?;
        TensorStream::start(run, reserved, callback)
    }

    /// Begins to load the tensors in batches, each of which is read while the consumer works on the one before: for checkpoints that are larger than
    /// the memory, or that become something else on their way. Batches have consecutive tensors, in the order of the files. With a
    /// [`memory_budget`](Self::memory_budget), or a [pool](Self::pool) that has a limit, batches are as long, and as many are read ahead, as there is
    /// room for: `docs/batches.md`.
    ///
    /// Asking for the next batch says that the one before is done with: what the consumer has not [said](Batching::keep) that it keeps is dropped by
    /// then. The callback of [`progress`](Self::progress) is told of all batches as of one load, on a thread of the load.
    ///
    /// ```
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let file = folder.path().join("model.safetensors");
    /// # let header = r#"{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"b":{"dtype":"U8","shape":[3],"data_offsets":[3,6]}}"#;
    /// # std::fs::write(&file, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[1, 2, 3, 4, 5, 6]].concat()).unwrap();
    /// use tensorhold::{Batching, Device, Loader};
    ///
    /// let loader = Loader::new(Device::host()).files([file]).memory_budget(1 << 10);
    /// for batch in loader.batches(Batching::new().max_batch_bytes(3))? {
    ///     for tensor in batch?.iter() {
    ///         println!("{tensor:?}");
    ///     }
    /// }
    /// # Ok::<(), tensorhold::Error>(())
    /// ```
    ///
    /// # Errors
    /// When an index, file or header is not as it should be, a tensor cannot be had as is asked, or not even one tensor after the other fits into
    /// the budget or the pool: [`Error::InfeasibleBudget`]. Other errors come from the iterator.
    pub fn batches(mut self, batching: Batching) -> Result<Batches> {
        let callback = self.callback.take();
        Batches::start(self.open()?, &batching, callback)
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
        let Options { select, memory_budget, pool, asked, .. } = &self.options;
        let alone = select.is_none() && memory_budget.is_none() && pool.is_none() && asked.is_nothing();
        alone
            && (self.callback.is_none() || self.only_interrupts)
            && self.opened.is_none()
            && self.checkpoints.iter().any(headers::is_guessable)
    }

    /// What is read before the tensors' bytes, without a guess: what a selection, changes and a budget look at.
    fn first(&self) -> First {
        let Options { select, memory_budget, asked, .. } = &self.options;
        let all = select.is_some() || memory_budget.is_some() || !asked.is_nothing();
        if all { First::All } else { First::Places }
    }

    /// Plans and reserves.
    fn prepare(&self, first: First, confirmed: Arc<AtomicBool>) -> Result<(Run, Reserved)> {
        let begun = Begun::new(&self.device, &self.options, self.likely())?;
        let (files, told) = self.take(first)?;
        let (mut run, reserved) = begun.plan(files, told, Placing::default())?;
        run.confirmed = confirmed;
        Ok((run, reserved))
    }

    /// What is known of the files before they are opened.
    fn likely(&self) -> Likely {
        // Only a guess: what cannot be looked at is told when it is opened.
        let mut files = self.checkpoints.iter().flat_map(Shards::likely);
        let sizes = files.clone().filter_map(|path| fs::metadata(path).ok()).map(|file| file.len());
        let opened = self.opened.as_ref().map(Checkpoint::likely);
        let in_memory = match &opened {
            Some(opened) => opened.in_memory,
            None => files.next().is_some_and(|file| io::is_in_memory(file)),
        };
        let opened_bytes = opened.map_or(0, |opened| opened.bytes);
        Likely { bytes: sizes.fold(opened_bytes, u64::saturating_add), in_memory }
    }

    /// The opened files and, of each, the selected tensors.
    fn take(&self, first: First) -> Result<(Vec<Opened>, Told)> {
        let (mut files, indexes) = self.open_files(first)?;
        let told = Told::take(&mut files, indexes, self.options.select.as_ref());
        if !self.options.asked.is_nothing() {
            self.options.asked.check_names(told.infos())?;
        }
        Ok((files, told))
    }

    /// Opens the files, and reads and checks the headers, once for many loads: of single tensors and of parts, of all, and in batches. The selection is made
    /// now; the other options are those of each load.
    ///
    /// The callback of [`progress`](Self::progress) is not kept: it is given to the loads that are [begun](Checkpoint::loader) later.
    ///
    /// ```
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let file = folder.path().join("model.safetensors");
    /// # let header = r#"{"w":{"dtype":"U8","shape":[2,3],"data_offsets":[0,6]}}"#;
    /// # std::fs::write(&file, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[1, 2, 3, 4, 5, 6]].concat()).unwrap();
    /// use tensorhold::{Cut, Device, Loader};
    ///
    /// let checkpoint = Loader::new(Device::host()).files([file]).open()?;
    /// assert_eq!(checkpoint.load_tensor("w")?.as_bytes()?, [1, 2, 3, 4, 5, 6]);
    /// let part = checkpoint.load_part("w", &[Cut::narrow(1, 1, 2)])?;
    /// assert_eq!((part.shape(), part.as_bytes()?), (&[2, 2][..], &[2, 3, 5, 6][..]));
    /// # Ok::<(), tensorhold::Error>(())
    /// ```
    ///
    /// # Errors
    /// When an index, file or header is not as it should be, or a tensor cannot be had as is asked.
    pub fn open(self) -> Result<Checkpoint> {
        self.options.asked.check()?;
        let (files, told) = self.take(First::All)?;
        Checkpoint::new(self.device, files, told, self.options)
    }

    /// Reads and checks the headers alone, and says what a load would load.
    ///
    /// # Errors
    /// When a file, header or index is not as it should be, or a tensor cannot be had as is asked.
    pub fn inspect(self) -> Result<Inspection> {
        let (mut files, indexes) = self.open_files(First::All)?;
        let mut described = Told::take(&mut files, indexes, None).read(&files, &self.device)?;
        described.check(&files)?;
        let metadata = described.take_metadata();
        let Options { select, asked, .. } = &self.options;
        asked.check()?;
        Inspection::new(files, metadata, described.infos(), select.as_ref(), asked)
    }

    /// Opens the files, and checks headers and indexes one by one.
    fn open_files(&self, first: First) -> Result<(Vec<Opened>, Vec<Indexed>)> {
        let mut opened = self.opened.as_ref().map_or_else(Vec::new, Checkpoint::all);
        if self.checkpoints.iter().all(|shards| matches!(shards, Shards::Files(files) if files.is_empty())) {
            return if self.opened.is_some() { Ok((opened, Vec::new())) } else { Err(Error::NoFiles) };
        }
        // There is nothing else to do meanwhile: all cores read, as if in place.
        let threads = self.options.readers(true, Cores::All)?.threads;
        let (files, indexes) = headers::open_all(&self.checkpoints, &self.device, threads, first)?;
        opened.extend(files);
        Ok((opened, indexes))
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
