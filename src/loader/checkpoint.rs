//! [`Checkpoint`]: opened once, loaded from many times.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tensorhold_allocator::{Pool, Process};

use super::options::{self, Options};
use super::setup::{LoadEstimate, LoadSetup};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::fork;
use crate::format::{LeftOut, Place};
use crate::loader::metadata::{HeaderState, OpenedFile, OpenedFiles, ParsedHeader, PendingMetadata};
use crate::loader::plan::LayoutOptions;
use crate::loader::staging;
use crate::loader::transform::{Cut, TransformSpec};
use crate::names::Names;
use crate::tensor::{Description, Tensor, TensorInfo};
use crate::weights::{Metadata, Weights};

/// The open files of a checkpoint, with parsed and checked headers: see
/// [`Loader::open`](crate::Loader::open).
///
/// Loads from a checkpoint parse no headers. All checkpoints of a process together keep at most 112 files
/// open, or a quarter of the process's limit if that is less. A file whose descriptor was needed for another
/// file is reopened by its path, and so is a file that is read past the page cache. Staging memory of a load
/// is retained for the next, up to [`staging_bytes`](crate::Loader::staging_bytes). Clones refer to the same
/// checkpoint; several threads may load at once.
///
/// Each load calls the rules of the loader, [`dtype_by`](crate::Loader::dtype_by) and
/// [`cut_by`](crate::Loader::cut_by), one call of a rule at a time. A load that a rule itself starts, and
/// that would call the same rule, is an error. A rule must not wait for another thread that does so.
///
/// A file that is modified or replaced after it was opened is an error of the next load that reads it. So is
/// a load in a forked child; the child may read the tensors' descriptions, and open the files again.
#[derive(Clone)]
pub struct Checkpoint {
    inner: Arc<Inner>,
}

struct Inner {
    device: Device,
    /// The process that opened it: loads take locks and memory that no thread of a forked child would give
    /// back.
    process: Process,
    /// Each with the places and descriptions of its selected tensors, before conversions and cuts.
    files: Vec<OpenedFile>,
    /// By file: the number of its first tensor.
    firsts: Vec<usize>,
    names: Names,
    /// By number: the tensors after conversions and cuts.
    tensors: Vec<Arc<Description>>,
    left_out: Arc<[LeftOut]>,
    /// The options that loads start with.
    options: Options,
    /// The pool of single tensors, once one has been loaded.
    pool: Mutex<Option<Pool>>,
}

impl Checkpoint {
    /// A checkpoint of the selected tensors in these files.
    ///
    /// # Errors
    /// When a header or index is invalid, or a requested conversion or cut is not supported.
    pub(super) fn new(
        device: Device,
        mut files: Vec<OpenedFile>,
        metadata: PendingMetadata,
        mut options: Options,
        left_out: Arc<[LeftOut]>,
    ) -> Result<Self> {
        let resolved = metadata.resolve(&files, &device)?;
        let names = resolved.check(&files)?;
        resolved.give_back(&mut files);
        let (mut firsts, mut next) = (Vec::with_capacity(files.len()), 0);
        for file in &files {
            firsts.push(next);
            next += file.places.len();
        }
        (options.select, options.variant) = (None, None);
        options.cores = Some(options::cores());
        if options.staging.is_none() {
            options.staging = Some(staging::pool(&device, options.staging_limit()?)?);
        }
        let tensors = as_loaded(&files, &options.transform)?;
        // Cuts of tensors outside the selection are valid, but later loads would not find those tensors.
        options.transform.forget(|name| names.find(name, |number| &tensors[number].info.name).is_none());
        let process = Process::current();
        let pool = Mutex::default();
        let inner = Inner { device, process, files, firsts, names, tensors, left_out, options, pool };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The device that tensors are loaded to.
    pub fn device(&self) -> &Device {
        &self.inner.device
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.inner.tensors.len()
    }

    /// Whether there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The names of the selected tensors, file by file in the order of their bytes.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.inner.tensors.iter().map(|tensor| &*tensor.info.name)
    }

    /// The tensors as they will be loaded, in the order of [`names`](Self::names).
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorInfo> {
        self.inner.tensors.iter().map(|tensor| &tensor.info)
    }

    /// The description of a tensor as it will be loaded; `None` if there is no such tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.inner.tensors.get(self.inner.find(name)?).map(|tensor| &tensor.info)
    }

    /// The files, in the order in which they were given.
    pub fn files(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.inner.files.iter().map(|file| &**file.source.path())
    }

    /// The free-form strings in a file's header, by the path that it was opened by. `None` if the header has no
    /// `__metadata__`, and for a file that is not among [`files`](Self::files).
    pub fn metadata(&self, file: impl AsRef<Path>) -> Option<&Metadata> {
        let file = self.inner.files.iter().find(|opened| **opened.source.path() == *file.as_ref())?;
        Some(&**file.header.parsed()?.strings.as_ref()?.map()?)
    }

    /// Files of the checkpoint's folder that were not opened, and files of which some tensors are left out.
    pub fn left_out(&self) -> &[LeftOut] {
        &self.inner.left_out
    }

    /// Checks that the files have not changed since they were opened. Each load does so for the files that it
    /// reads.
    ///
    /// # Errors
    /// When a file has changed, or its metadata cannot be read.
    pub fn check_unchanged(&self) -> Result<()> {
        self.inner.files.iter().try_for_each(|file| file.source.check_unchanged())
    }

    /// Loads a tensor into the loader's pool or, without one, into a pool that such loads share.
    ///
    /// # Errors
    /// When there is no such tensor (the error suggests the closest name), and as
    /// [`Loader::load`](crate::Loader::load).
    pub fn load_tensor(&self, name: &str) -> Result<Tensor> {
        self.load_part(name, &[])
    }

    /// Loads a part of a tensor. The cuts are applied in order, to the tensor that [`info`](Self::info)
    /// describes, which is after the loader's own cuts. Reads as few bytes as
    /// [`Loader::cut`](crate::Loader::cut).
    ///
    /// # Errors
    /// When there is no such tensor (the error suggests the closest name) or no such part, and as
    /// [`Loader::load`](crate::Loader::load).
    pub fn load_part(&self, name: &str, cuts: &[Cut]) -> Result<Tensor> {
        self.check_process()?;
        let number = self.inner.number(name)?;
        let mut options = self.inner.options.with_transforms(self.inner.options.transform.of_one(name, cuts));
        options.pool = Some(self.inner.pool()?);
        self.inner.load([number], &options)?.tensor(name)
    }

    /// Loads the tensors with these names. Order and repetitions do not matter.
    ///
    /// # Errors
    /// When there is no tensor with a name (the error suggests the closest name), and as
    /// [`Loader::load`](crate::Loader::load).
    pub fn load_tensors<N: AsRef<str>>(&self, names: impl IntoIterator<Item = N>) -> Result<Weights> {
        self.check_process()?;
        let numbers: Result<BTreeSet<usize>> =
            names.into_iter().map(|name| self.inner.number(name.as_ref())).collect();
        self.inner.load(numbers?, &self.inner.options)
    }

    /// Checks that this is the process that opened the checkpoint.
    ///
    /// # Errors
    /// In a forked child.
    pub(super) fn check_process(&self) -> Result<()> {
        fork::check(self.inner.process, "load from an open checkpoint")
    }

    pub(super) fn options(&self) -> &Options {
        &self.inner.options
    }

    /// All files, with the selected tensors.
    pub(super) fn all(&self) -> OpenedFiles {
        let (files, left_out) = (self.inner.files.clone(), self.inner.left_out.to_vec());
        OpenedFiles { files, indexes: Vec::new(), left_out }
    }

    pub(super) fn shared_left_out(&self) -> &Arc<[LeftOut]> {
        &self.inner.left_out
    }

    /// The files of the tensors with these numbers, which ascend, and only those tensors.
    pub(super) fn files_of(&self, numbers: impl IntoIterator<Item = usize>) -> Vec<OpenedFile> {
        self.inner.files_of(numbers)
    }

    pub(super) fn estimate(&self) -> LoadEstimate {
        estimate(&self.inner.files)
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint")
            .field("device", self.device())
            .field("files", &self.inner.files.len())
            .field("tensors", &self.len())
            .finish_non_exhaustive()
    }
}

impl Inner {
    fn find(&self, name: &str) -> Option<usize> {
        self.names.find(name, |number| &self.tensors[number].info.name)
    }

    fn number(&self, name: &str) -> Result<usize> {
        let names = self.tensors.iter().map(|tensor| &*tensor.info.name);
        self.find(name).ok_or_else(|| Error::unknown_tensor(name, names, self.tensors.len()))
    }

    fn files_of(&self, numbers: impl IntoIterator<Item = usize>) -> Vec<OpenedFile> {
        let (mut files, mut last) = (Vec::<OpenedFile>::new(), None);
        for number in numbers {
            // The last file that begins at or before the number. Earlier files that begin at the same number
            // are empty.
            let index = self.firsts.partition_point(|&first| first <= number).saturating_sub(1);
            let (Some(file), Some(first)) = (self.files.get(index), self.firsts.get(index)) else { continue };
            let HeaderState::Parsed(all) = &file.header else { continue };
            if last != Some(index) {
                last = Some(index);
                let parsed = ParsedHeader { strings: all.strings.clone(), ..ParsedHeader::default() };
                let source = file.source.clone();
                files.push(OpenedFile { source, places: Vec::new(), header: HeaderState::Parsed(parsed) });
            }
            let of_file = number - first;
            let tensor =
                file.places.get(of_file).zip(all.descriptions.get(of_file)).zip(all.labels.get(of_file));
            if let (
                Some(((place, description), label)),
                Some(OpenedFile { places, header: HeaderState::Parsed(parsed), .. }),
            ) = (tensor, files.last_mut())
            {
                places.push(*place);
                parsed.descriptions.push(Arc::clone(description));
                parsed.labels.push(Arc::clone(label));
            }
        }
        files
    }

    fn load(&self, numbers: impl IntoIterator<Item = usize>, options: &Options) -> Result<Weights> {
        let mut files = self.files_of(numbers);
        let likely = estimate(&files);
        let metadata = PendingMetadata::take(&mut files, Vec::new(), None)?;
        let (mut run, reserved) =
            LoadSetup::new(&self.device, options, likely)?.plan(files, metadata, LayoutOptions::default())?;
        run.left_out = Arc::clone(&self.left_out);
        run.load(reserved, None)
    }

    /// The pool of single tensors.
    fn pool(&self) -> Result<Pool> {
        if let Some(pool) = &self.options.pool {
            return Ok(pool.clone());
        }
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        match &*pool {
            Some(pool) => Ok(pool.clone()),
            None => {
                let name = format!("tensors for {}", self.device);
                Ok(pool.insert(Pool::builder(self.device.memory()).name(name).build()?).clone())
            }
        }
    }
}

/// The tensors of files with parsed headers, after conversions and cuts.
///
/// # Errors
/// When a requested conversion or cut is not supported.
fn as_loaded(files: &[OpenedFile], spec: &TransformSpec) -> Result<Vec<Arc<Description>>> {
    let parsed = files.iter().filter_map(|file| file.header.parsed().map(|parsed| (file, parsed)));
    let all = parsed.flat_map(|(file, parsed)| file.places.iter().zip(&parsed.descriptions));
    let loaded = |(place, description): (&Place, &Arc<Description>)| {
        let resolved = if spec.is_nothing() { None } else { spec.resolve(&description.info, *place)? };
        Ok(resolved.map_or_else(
            || Arc::clone(description),
            |resolved| Arc::new(Description { info: resolved.info, device: Arc::clone(&description.device) }),
        ))
    };
    all.map(loaded).collect()
}

/// The estimate for a load of these tensors.
pub(super) fn estimate(files: &[OpenedFile]) -> LoadEstimate {
    LoadEstimate {
        bytes: files
            .iter()
            .flat_map(|file| &file.places)
            .map(|place| place.bytes)
            .fold(0, u64::saturating_add),
        in_memory: files.first().is_some_and(|file| file.source.is_in_memory()),
    }
}
