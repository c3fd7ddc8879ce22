//! The calls of a [`Loader`] that read: whole loads, streams, batches, open checkpoints and inspections.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tensorhold_allocator::Reserved;

use super::batches::Batches;
use super::batching::Batching;
use super::builder::Loader;
use super::checkpoint::Checkpoint;
use super::execute::ReservedLoad;
use super::options::{Cores, Options};
use super::setup::{LoadEstimate, LoadSetup};
use super::stream::TensorStream;
use crate::error::{Error, Result};
use crate::format::{LeftOut, Shards};
use crate::io;
use crate::loader::metadata::{self, InitialRead, Inspection, OpenedFile, OpenedFiles, PendingMetadata};
use crate::loader::plan::LayoutOptions;
use crate::weights::Weights;

impl Loader {
    /// Loads the tensors. When it returns, each tensor is readable on any stream and from any thread.
    ///
    /// # Errors
    /// When an index, file or header is invalid, a requested conversion or cut is not supported, the device
    /// or its memory fails, the callback breaks, or a file changes while it is read. Nothing is left behind
    /// (I4).
    pub fn load(mut self) -> Result<Weights> {
        let checkpoints = self.choose()?;
        let mut callback = self.callback.take();
        let reports = callback.is_some() && !self.only_interrupts;
        let mut initial = if self.may_guess(&checkpoints, reports) {
            InitialRead::GuessedPlaces
        } else {
            self.initial_read()
        };
        loop {
            let confirmed = Arc::new(AtomicBool::new(initial != InitialRead::GuessedPlaces));
            let prepared = self.prepare(&checkpoints, initial, Arc::clone(&confirmed));
            let loaded = prepared.and_then(|(load, reserved)| load.load(reserved, callback.as_mut()));
            let Err(error) = loaded else { return loaded };
            let is_confirmed = confirmed.load(Ordering::Relaxed);
            initial = initial.after(&error, is_confirmed, &checkpoints).ok_or(error)?;
        }
    }

    /// Starts to load the tensors, and returns each as its bytes arrive. Returned tensors are readable on any
    /// stream and from any thread, and stay so if the load fails later.
    ///
    /// The callback of [`progress`](Self::progress) is called on a thread of the load. A call of `next` there
    /// stops the load and ends the stream, since a thread cannot wait for itself.
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
    /// Those of [`load`](Self::load) that occur before the first tensor's bytes are read. The others come
    /// from the stream.
    pub fn stream(mut self) -> Result<TensorStream> {
        let checkpoints = self.choose()?;
        let mut callback = self.callback.take();
        let mut initial = self.initial_read();
        loop {
            let (load, reserved) = self.prepare(&checkpoints, initial, Arc::default())?;
            let started = TensorStream::start(load, reserved, &mut callback);
            let Err(error) = started else { return started };
            initial = initial.after(&error, true, &checkpoints).ok_or(error)?;
        }
    }

    /// Starts to load the tensors in batches, each of which is read while the consumer works on the one
    /// before: for checkpoints that are larger than the memory, or that the consumer transforms. Batches hold
    /// consecutive tensors, in the order of the files. With a [`memory_budget`](Self::memory_budget), or a
    /// [pool](Self::pool) that has a limit, the size of batches and the number read ahead are planned to fit
    /// (`docs/batches.md`).
    ///
    /// Taking the next batch declares the previous one as done: by then, the consumer has dropped all tensors
    /// that it did not [declare](Batching::keep) to keep. The callback of [`progress`](Self::progress)
    /// reports all batches as one load, on a thread of the load. A call of `next` there stops the load and
    /// ends the iterator, since a thread cannot wait for itself.
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
    /// When an index, file or header is invalid, a requested conversion or cut is not supported, or not even
    /// single tensors fit into the budget or the pool: [`Error::InfeasibleBudget`]. Other errors come from
    /// the iterator.
    pub fn batches(mut self, batching: Batching) -> Result<Batches> {
        let callback = self.callback.take();
        Batches::start(self.open()?, &batching, callback)
    }

    /// Whether the load may start with the files next to a long index, as a guess of those that it names:
    /// only if nothing is reported before the index is read, and no one else needs the memory that a wrong
    /// guess takes.
    fn may_guess(&self, checkpoints: &[Shards], reports: bool) -> bool {
        let Options { select, memory_budget, pool, transform, .. } = &self.options;
        let alone = select.is_none() && memory_budget.is_none() && pool.is_none() && transform.is_nothing();
        alone && !reports && self.opened.is_none() && checkpoints.iter().any(metadata::is_guessable)
    }

    /// What is read before the tensors' bytes, without a guess. Selections, conversions, cuts and budgets
    /// need whole headers.
    fn initial_read(&self) -> InitialRead {
        let Options { select, memory_budget, transform, .. } = &self.options;
        let all = select.is_some() || memory_budget.is_some() || !transform.is_nothing();
        if all { InitialRead::All } else { InitialRead::Places }
    }

    /// Chooses the files of all paths.
    ///
    /// # Errors
    /// When the variant is not a name, or a directory holds no complete set of weights, or several.
    fn choose(&self) -> Result<Vec<Shards>> {
        let variant = self.options.variant()?;
        self.named.iter().map(|named| named.choose(variant)).collect()
    }

    /// Plans the load and reserves its memory.
    fn prepare(
        &self,
        checkpoints: &[Shards],
        initial: InitialRead,
        confirmed: Arc<AtomicBool>,
    ) -> Result<(ReservedLoad, Reserved)> {
        self.opened.as_ref().map_or(Ok(()), Checkpoint::check_process)?;
        let setup = LoadSetup::new(&self.device, &self.options, self.estimate(checkpoints))?;
        let (files, metadata, left_out) = self.take(checkpoints, initial)?;
        let (mut load, reserved) = setup.plan(files, metadata, LayoutOptions::default())?;
        load.confirmed = confirmed;
        load.left_out = left_out;
        Ok((load, reserved))
    }

    /// Estimates the load before its files are opened.
    fn estimate(&self, checkpoints: &[Shards]) -> LoadEstimate {
        // Errors are ignored: opening the file reports them.
        let mut files = checkpoints.iter().flat_map(Shards::likely);
        let sizes = files.clone().filter_map(|path| fs::metadata(path).ok()).map(|file| file.len());
        let opened = self.opened.as_ref().map(Checkpoint::estimate);
        let in_memory = match &opened {
            Some(opened) => opened.in_memory,
            None => files.next().is_some_and(|file| io::is_in_memory(file)),
        };
        let opened_bytes = opened.map_or(0, |opened| opened.bytes);
        LoadEstimate { bytes: sizes.fold(opened_bytes, u64::saturating_add), in_memory }
    }

    /// Opens the files. Returns them with their selected tensors, their metadata, and the files that are left
    /// out.
    ///
    /// # Errors
    /// When a file, header or index is invalid, or a tensor that is cut by name does not exist.
    fn take(
        &self,
        checkpoints: &[Shards],
        initial: InitialRead,
    ) -> Result<(Vec<OpenedFile>, PendingMetadata, Arc<[LeftOut]>)> {
        let OpenedFiles { mut files, indexes, left_out } = self.open_files(checkpoints, initial)?;
        let metadata = PendingMetadata::take(&mut files, indexes, self.options.select.as_ref())?;
        if !self.options.transform.is_nothing() {
            self.options.transform.check_names(metadata.infos())?;
        }
        Ok((files, metadata, left_out.into()))
    }

    /// Opens the files, and parses and checks the headers, once for many loads: of single tensors, parts,
    /// batches, or everything. The selection is made now; the other options apply to each load. The rules of
    /// [`dtype_by`](Self::dtype_by) and [`cut_by`](Self::cut_by) are called now and by each load. A rule that
    /// itself starts a load from the checkpoint is an error.
    ///
    /// The callback of [`progress`](Self::progress) is dropped: it can be set on each [later
    /// load](Checkpoint::loader).
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
    /// When an index, file or header is invalid, or a requested conversion or cut is not supported.
    pub fn open(self) -> Result<Checkpoint> {
        self.opened.as_ref().map_or(Ok(()), Checkpoint::check_process)?;
        self.options.transform.check()?;
        let (files, metadata, left_out) = self.take(&self.choose()?, InitialRead::All)?;
        Checkpoint::new(self.device, files, metadata, self.options, left_out)
    }

    /// Parses and checks the headers alone, and describes what a load would return.
    ///
    /// # Errors
    /// When a file, header or index is invalid, or a requested conversion or cut is not supported.
    pub fn inspect(self) -> Result<Inspection> {
        let OpenedFiles { mut files, indexes, left_out } =
            self.open_files(&self.choose()?, InitialRead::All)?;
        let mut resolved = PendingMetadata::take(&mut files, indexes, None)?.resolve(&files, &self.device)?;
        resolved.check(&files)?;
        let metadata = resolved.take_metadata();
        let Options { select, transform, .. } = &self.options;
        transform.check()?;
        let mut inspection = Inspection::new(files, metadata, resolved.infos(), select.as_ref(), transform)?;
        inspection.left_out = left_out;
        Ok(inspection)
    }

    /// Opens the files, and checks each header and index by itself.
    fn open_files(&self, checkpoints: &[Shards], initial: InitialRead) -> Result<OpenedFiles> {
        let mut opened = self.opened.as_ref().map_or_else(OpenedFiles::default, Checkpoint::all);
        if checkpoints.iter().all(|shards| matches!(shards, Shards::Files { files, .. } if files.is_empty()))
        {
            return if self.opened.is_some() { Ok(opened) } else { Err(Error::NoFiles) };
        }
        // Nothing else runs at this time: all cores read, as for loads in place.
        let threads = self.options.reader_tuning(true, Cores::All)?.threads;
        let OpenedFiles { files, indexes, left_out } =
            metadata::open_all(checkpoints, &self.device, threads, initial)?;
        if let Some(LeftOut { path, why }) = left_out.first() {
            let files = left_out.len();
            tracing::info!(files, first = %path.display(), %why, "left out, wholly or in part");
        }
        opened.files.extend(files);
        opened.indexes = indexes;
        opened.left_out.extend(left_out);
        Ok(opened)
    }
}
