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
use self::headers::{First, Indexed, Opened};
use self::options::{Cores, Options};
use self::prepare::{Begun, Likely};
use self::progress::Callback;
use self::run::Run;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::{self, Shards};
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

    /// Adds the files of a checkpoint: a directory, an index (`.json`), or a single safetensors file. Of a directory, the files
    /// are those that its `model.safetensors.index.json` names, or else its only `*.safetensors.index.json`; without an index,
    /// all of its safetensors files. Links are followed.
    ///
    /// # Errors
    /// When the path is missing or cannot be read, or holds no checkpoint or several. What is wrong with an index or a file
    /// comes from [`load`](Self::load).
    pub fn checkpoint(mut self, path: impl AsRef<Path>) -> Result<Self> {
        self.checkpoints.push(format::resolve(path.as_ref())?);
        Ok(self)
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
        self.opened.as_ref().map_or(Ok(()), Checkpoint::check_process)?;
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
        let told = Told::take(&mut files, indexes, self.options.select.as_ref())?;
        if !self.options.asked.is_nothing() {
            self.options.asked.check_names(told.infos())?;
        }
        Ok((files, told))
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
        let (files, told) = self.take(First::All)?;
        Checkpoint::new(self.device, files, told, self.options)
    }

    /// Reads and checks the headers alone, and says what a load would load.
    ///
    /// # Errors
    /// When a file, header or index is not as it should be, or a tensor cannot be had as is asked.
    pub fn inspect(self) -> Result<Inspection> {
        let (mut files, indexes) = self.open_files(First::All)?;
        let mut described = Told::take(&mut files, indexes, None)?.read(&files, &self.device)?;
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
