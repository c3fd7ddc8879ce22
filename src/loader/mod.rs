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
mod chained;
mod change;
#[cfg(test)]
mod change_fault_tests;
mod checkpoint;
mod copies;
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
#[cfg(test)]
mod trust_tests;
mod work;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fmt, fs};

use tensorhold_allocator::Reserved;

use self::batch::Placing;
use self::described::Told;
use self::headers::{First, Found, Opened};
use self::options::{Cores, Options};
use self::prepare::{Begun, Likely};
use self::progress::Callback;
use self::run::Run;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::{LeftOut, Named, Shards};
use crate::io;
use crate::weights::Weights;

// What unit tests share with the integration tests.
#[cfg(test)]
pub(crate) use fault_tests::support::fork::in_child;

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
    named: Vec<Named>,
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
            named: Vec::new(),
            options: Options::default(),
            callback: None,
            only_interrupts: false,
        }
    }

    /// A loader of what has been opened.
    fn of(checkpoint: &Checkpoint) -> Self {
        let device = checkpoint.device().clone();
        let (opened, options) = (Some(checkpoint.clone()), checkpoint.options().clone());
        Self { device, opened, named: Vec::new(), options, callback: None, only_interrupts: false }
    }

    /// Adds safetensors files. Their errors come from [`load`](Self::load).
    pub fn files(mut self, files: impl IntoIterator<Item: AsRef<Path>>) -> Self {
        let files = files.into_iter().map(|file| file.as_ref().to_path_buf());
        self.named.push(Named::Files(files.collect()));
        self
    }

    /// Adds the files of a checkpoint: a directory, an index (`.json`), or a single safetensors file. Links are followed.
    ///
    /// Of a directory, one set of weights is loaded, as `docs/checkpoints.md` says in full: that of a well-known name (`model`, then
    /// `diffusion_pytorch_model`, ..., `consolidated`, and adapters last), without a variant unless [`variant`](Self::variant) asks for one. An index
    /// decides which files are in the set. Without an index, the names of shards (`model-00001-of-00002.safetensors`) have to be complete. Files of
    /// other names are loaded together where no name is well-known. Names that begin with a dot do not count. What is left out is in the
    /// [report](crate::Report::left_out).
    ///
    /// # Errors
    /// When the path is missing or cannot be read, or a directory holds no weights. That it holds several sets of which none comes first, or
    /// an incomplete one, and what is wrong with an index or a file, comes from [`load`](Self::load) and the other calls that read.
    pub fn checkpoint(mut self, path: impl AsRef<Path>) -> Result<Self> {
        self.named.push(headers::with_descriptors(|| Named::resolve(path.as_ref()))?);
        Ok(self)
    }

    /// Loads the tensors. When it returns, each is readable on any stream and from any thread.
    ///
    /// # Errors
    /// When an index, file or header is not as it should be, a tensor cannot be had as is asked, the device or its memory
    /// refuses, the callback breaks, or a file changes while it is read. Nothing is left behind (I4).
    pub fn load(mut self) -> Result<Weights> {
        let checkpoints = self.choose()?;
        let mut callback = self.callback.take();
        let told = callback.is_some() && !self.only_interrupts;
        let mut first = if self.may_guess(&checkpoints, told) { First::PlacesNearby } else { self.first() };
        loop {
            let confirmed = Arc::new(AtomicBool::new(first != First::PlacesNearby));
            let prepared = self.prepare(&checkpoints, first, Arc::clone(&confirmed));
            let loaded = prepared.and_then(|(run, reserved)| run.load(reserved, callback.as_mut()));
            let Err(error) = loaded else { return loaded };
            let is_confirmed = confirmed.load(Ordering::Relaxed);
            first = first.after(&error, is_confirmed, &checkpoints).ok_or(error)?;
        }
    }

    /// Begins to load the tensors, and gives each as its bytes land. What is given is readable on any stream and from
    /// any thread, and stays so whatever becomes of the rest.
    ///
    /// The callback of [`progress`](Self::progress) is then called on a thread of the load. Asked for a tensor there, the stream
    /// stops the load and ends, since a thread cannot wait for itself.
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
        let checkpoints = self.choose()?;
        let mut callback = self.callback.take();
        let mut first = self.first();
        loop {
            let (run, reserved) = self.prepare(&checkpoints, first, Arc::default())?;
            let started = TensorStream::start(run, reserved, &mut callback);
            let Err(error) = started else { return started };
            first = first.after(&error, true, &checkpoints).ok_or(error)?;
        }
    }

    /// Begins to load the tensors in batches, each of which is read while the consumer works on the one before: for checkpoints that are larger than
    /// the memory, or that become something else on their way. Batches have consecutive tensors, in the order of the files. With a
    /// [`memory_budget`](Self::memory_budget), or a [pool](Self::pool) that has a limit, batches are as long, and as many are read ahead, as there is
    /// room for: `docs/batches.md`.
    ///
    /// Asking for the next batch says that the one before is done with: what the consumer has not [said](Batching::keep) that it keeps is dropped by
    /// then. The callback of [`progress`](Self::progress) is told of all batches as of one load, on a thread of the load. Asked for a
    /// batch there, they stop the load and end, since a thread cannot wait for itself.
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
    fn may_guess(&self, checkpoints: &[Shards], told: bool) -> bool {
        let Options { select, memory_budget, pool, asked, .. } = &self.options;
        let alone = select.is_none() && memory_budget.is_none() && pool.is_none() && asked.is_nothing();
        alone && !told && self.opened.is_none() && checkpoints.iter().any(headers::is_guessable)
    }

    /// What is read before the tensors' bytes, without a guess: what a selection, changes and a budget look at.
    fn first(&self) -> First {
        let Options { select, memory_budget, asked, .. } = &self.options;
        let all = select.is_some() || memory_budget.is_some() || !asked.is_nothing();
        if all { First::All } else { First::Places }
    }

    /// The files of all that was named.
    ///
    /// # Errors
    /// When the variant is no name, or a folder holds no set of weights that is complete, or several.
    fn choose(&self) -> Result<Vec<Shards>> {
        let variant = self.options.variant()?;
        self.named.iter().map(|named| named.choose(variant)).collect()
    }

    /// Plans and reserves.
    fn prepare(
        &self,
        checkpoints: &[Shards],
        first: First,
        confirmed: Arc<AtomicBool>,
    ) -> Result<(Run, Reserved)> {
        self.opened.as_ref().map_or(Ok(()), Checkpoint::check_process)?;
        let begun = Begun::new(&self.device, &self.options, self.likely(checkpoints))?;
        let (files, told, left_out) = self.take(checkpoints, first)?;
        let (mut run, reserved) = begun.plan(files, told, Placing::default())?;
        run.confirmed = confirmed;
        run.left_out = left_out;
        Ok((run, reserved))
    }

    /// What is known of the files before they are opened.
    fn likely(&self, checkpoints: &[Shards]) -> Likely {
        // Only a guess: what cannot be looked at is told when it is opened.
        let mut files = checkpoints.iter().flat_map(Shards::likely);
        let sizes = files.clone().filter_map(|path| fs::metadata(path).ok()).map(|file| file.len());
        let opened = self.opened.as_ref().map(Checkpoint::likely);
        let in_memory = match &opened {
            Some(opened) => opened.in_memory,
            None => files.next().is_some_and(|file| io::is_in_memory(file)),
        };
        let opened_bytes = opened.map_or(0, |opened| opened.bytes);
        Likely { bytes: sizes.fold(opened_bytes, u64::saturating_add), in_memory }
    }

    /// The opened files with their selected tensors, and the files left out.
    fn take(&self, checkpoints: &[Shards], first: First) -> Result<(Vec<Opened>, Told, Arc<[LeftOut]>)> {
        let Found { mut files, indexes, left_out } = self.open_files(checkpoints, first)?;
        let told = Told::take(&mut files, indexes, self.options.select.as_ref())?;
        if !self.options.asked.is_nothing() {
            self.options.asked.check_names(told.infos())?;
        }
        Ok((files, told, left_out.into()))
    }

    /// Opens the files, and reads and checks the headers, once for many loads: of single tensors and of parts, of all, and in batches. The selection is made
    /// now; the other options are those of each load. The rules of [`dtype_by`](Self::dtype_by) and [`cut_by`](Self::cut_by) are asked now and by each load;
    /// a load from the checkpoint that they begin themselves is an error.
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
        self.opened.as_ref().map_or(Ok(()), Checkpoint::check_process)?;
        self.options.asked.check()?;
        let (files, told, left_out) = self.take(&self.choose()?, First::All)?;
        Checkpoint::new(self.device, files, told, self.options, left_out)
    }

    /// Reads and checks the headers alone, and says what a load would load.
    ///
    /// # Errors
    /// When a file, header or index is not as it should be, or a tensor cannot be had as is asked.
    pub fn inspect(self) -> Result<Inspection> {
        let Found { mut files, indexes, left_out } = self.open_files(&self.choose()?, First::All)?;
        let mut described = Told::take(&mut files, indexes, None)?.read(&files, &self.device)?;
        described.check(&files)?;
        let metadata = described.take_metadata();
        let Options { select, asked, .. } = &self.options;
        asked.check()?;
        let mut inspection = Inspection::new(files, metadata, described.infos(), select.as_ref(), asked)?;
        inspection.left_out = left_out;
        Ok(inspection)
    }

    /// Opens the files, and checks headers and indexes one by one.
    fn open_files(&self, checkpoints: &[Shards], first: First) -> Result<Found> {
        let mut found = self.opened.as_ref().map_or_else(Found::default, Checkpoint::all);
        if checkpoints.iter().all(|shards| matches!(shards, Shards::Files { files, .. } if files.is_empty()))
        {
            return if self.opened.is_some() { Ok(found) } else { Err(Error::NoFiles) };
        }
        // There is nothing else to do meanwhile: all cores read, as if in place.
        let threads = self.options.readers(true, Cores::All)?.threads;
        let Found { files, indexes, left_out } =
            headers::open_all(checkpoints, &self.device, threads, first)?;
        if let Some(LeftOut { path, why }) = left_out.first() {
            let files = left_out.len();
            tracing::info!(files, first = %path.display(), %why, "left out, wholly or in part");
        }
        found.files.extend(files);
        found.indexes = indexes;
        found.left_out.extend(left_out);
        Ok(found)
    }
}

impl fmt::Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader")
            .field("device", &self.device)
            .field("named", &self.named)
            .finish_non_exhaustive()
    }
}
