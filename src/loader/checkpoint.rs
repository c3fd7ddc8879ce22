//! [`Checkpoint`]: opened once, loaded from many times.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tensorhold_allocator::{Pool, Process};

use super::Loader;
use super::asked::Asked;
use super::batch::Placing;
use super::cut::Cut;
use super::described::Told;
use super::headers::{Found, Header, Opened, Said};
use super::options::{self, Options};
use super::prepare::{Begun, Likely};
use super::staging;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::fork;
use crate::format::{LeftOut, Place};
use crate::names::Names;
use crate::tensor::{Description, Tensor, TensorInfo};
use crate::weights::{Metadata, Weights};

/// The files of a checkpoint, whose headers have been read and checked: see [`Loader::open`].
///
/// Loads from here read no header. All checkpoints of a process together keep at most 112 files open, or a quarter of the limit of the process: a file whose descriptor was needed
/// for another one is opened again by its path, as is one that is read in another way, such as past the page cache. Staging memory that a load has
/// taken is kept for the next, as much as [`staging_bytes`](Loader::staging_bytes) allows. Clones are the same checkpoint; several threads may load at once.
///
/// Each load asks the rules that the loader was given, [`dtype_by`](Loader::dtype_by) and [`cut_by`](Loader::cut_by), one call of a rule at a time. A load
/// that a rule itself begins, and that would ask the same rule, is an error. A rule must not wait for another thread that does so.
///
/// A file that is written to or replaced after it was opened is an error of the next load that reads it. So is a load in a forked child, which may look at
/// the tensors' descriptions, and open the files again.
#[derive(Clone)]
pub struct Checkpoint {
    inner: Arc<Inner>,
}

struct Inner {
    device: Device,
    /// That made it: loads take locks, and memory of pools, that no thread of a forked child gives back.
    process: Process,
    /// Each with the places and descriptions of the selected tensors, as the files have them.
    files: Vec<Opened>,
    /// The number of each file's first tensor.
    firsts: Vec<usize>,
    names: Names,
    /// The tensors as they are loaded, by their numbers.
    tensors: Vec<Arc<Description>>,
    left_out: Arc<[LeftOut]>,
    /// Those that loads begin with.
    options: Options,
    /// Where single tensors are placed, once there have been some.
    pool: Mutex<Option<Pool>>,
}

impl Checkpoint {
    /// What is left in the files of a selection, and what headers say of it.
    pub(super) fn new(
        device: Device,
        mut files: Vec<Opened>,
        told: Told,
        mut options: Options,
        left_out: Arc<[LeftOut]>,
    ) -> Result<Self> {
        let described = told.read(&files, &device)?;
        let names = described.check(&files)?;
        described.give_back(&mut files);
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
        let tensors = as_loaded(&files, &options.asked)?;
        // Later loads know nothing of tensors that are not wanted, and need not miss them.
        options.asked.forget(|name| names.find(name, |number| &tensors[number].info.name).is_none());
        let process = Process::current();
        let pool = Mutex::default();
        let inner = Inner { device, process, files, firsts, names, tensors, left_out, options, pool };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The device that tensors are loaded to.
    pub fn device(&self) -> &Device {
        &self.inner.device
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.inner.tensors.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The names of the selected tensors, file by file in the order of their bytes.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.inner.tensors.iter().map(|tensor| &*tensor.info.name)
    }

    /// The tensors as they are loaded, in the order of [`names`](Self::names).
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorInfo> {
        self.inner.tensors.iter().map(|tensor| &tensor.info)
    }

    /// What a tensor is when it is loaded, if there is one of that name.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.inner.tensors.get(self.inner.find(name)?).map(|tensor| &tensor.info)
    }

    /// The files, in the order in which they were given.
    pub fn files(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.inner.files.iter().map(|file| &**file.source.path())
    }

    /// The strings in a file's header, by the path that it was opened under. `None` when the header has no `__metadata__`, and for a file that is not
    /// among [`files`](Self::files).
    pub fn metadata(&self, file: impl AsRef<Path>) -> Option<&Metadata> {
        let file = self.inner.files.iter().find(|opened| **opened.source.path() == *file.as_ref())?;
        Some(&**file.header.said()?.strings.as_ref()?.map()?)
    }

    /// Files of the checkpoint's folder that were not opened, and files of which some tensors are left out.
    pub fn left_out(&self) -> &[LeftOut] {
        &self.inner.left_out
    }

    /// Checks that the files still are what was opened. Each load does so, too, of those that it reads.
    ///
    /// # Errors
    /// When one is not, or cannot be looked at.
    pub fn check_unchanged(&self) -> Result<()> {
        self.inner.files.iter().try_for_each(|file| file.source.check_unchanged())
    }

    /// Loads a tensor, into a pool that such loads share, unless the loader was given one.
    ///
    /// # Errors
    /// When there is none of that name (the error names the nearest), and as [`Loader::load`].
    pub fn load_tensor(&self, name: &str) -> Result<Tensor> {
        self.load_part(name, &[])
    }

    /// Loads a part of a tensor. The cuts are made one after the other, and after those that the loader was asked for: [`info`](Self::info)
    /// says of what. As much is read as is for [`Loader::cut`].
    ///
    /// # Errors
    /// When there is no tensor of that name (the error names the nearest) or it does not have that part, and as [`Loader::load`].
    pub fn load_part(&self, name: &str, cuts: &[Cut]) -> Result<Tensor> {
        self.check_process()?;
        let number = self.inner.number(name)?;
        let mut options = self.inner.options.with_asked(self.inner.options.asked.of_one(name, cuts));
        options.pool = Some(self.inner.pool()?);
        self.inner.load([number], &options)?.tensor(name)
    }

    /// Loads the tensors of these names. Their order, and names that are there twice, do not matter.
    ///
    /// # Errors
    /// When there is none of a name (the error names the nearest), and as [`Loader::load`].
    pub fn load_tensors<N: AsRef<str>>(&self, names: impl IntoIterator<Item = N>) -> Result<Weights> {
        self.check_process()?;
        let numbers: Result<BTreeSet<usize>> =
            names.into_iter().map(|name| self.inner.number(name.as_ref())).collect();
        self.inner.load(numbers?, &self.inner.options)
    }

    /// A loader of these tensors, with the options that this was opened with: for whole loads, streams and batches, and with other options. Files
    /// that are added to it are opened by its load.
    pub fn loader(&self) -> Loader {
        Loader::of(self)
    }

    /// # Errors
    /// In a forked child.
    pub(super) fn check_process(&self) -> Result<()> {
        fork::check(self.inner.process, "load from an open checkpoint")
    }

    pub(super) fn options(&self) -> &Options {
        &self.inner.options
    }

    /// All files, with what is left in them.
    pub(super) fn all(&self) -> Found {
        let (files, left_out) = (self.inner.files.clone(), self.inner.left_out.to_vec());
        Found { files, indexes: Vec::new(), left_out }
    }

    pub(super) fn shared_left_out(&self) -> &Arc<[LeftOut]> {
        &self.inner.left_out
    }

    /// The tensors of these numbers, which ascend, and their files.
    pub(super) fn some(&self, numbers: impl IntoIterator<Item = usize>) -> Vec<Opened> {
        self.inner.some(numbers)
    }

    pub(super) fn likely(&self) -> Likely {
        likely(&self.inner.files)
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

    fn some(&self, numbers: impl IntoIterator<Item = usize>) -> Vec<Opened> {
        let (mut files, mut last) = (Vec::<Opened>::new(), None);
        for number in numbers {
            // The last file that begins there or before: those before it that do so, too, are empty.
            let index = self.firsts.partition_point(|&first| first <= number).saturating_sub(1);
            let (Some(file), Some(first)) = (self.files.get(index), self.firsts.get(index)) else { continue };
            let Header::Read(all) = &file.header else { continue };
            if last != Some(index) {
                last = Some(index);
                let said = Said { strings: all.strings.clone(), ..Said::default() };
                let source = file.source.clone();
                files.push(Opened { source, places: Vec::new(), header: Header::Read(said) });
            }
            let of_file = number - first;
            let tensor =
                file.places.get(of_file).zip(all.descriptions.get(of_file)).zip(all.labels.get(of_file));
            if let (
                Some(((place, description), label)),
                Some(Opened { places, header: Header::Read(said), .. }),
            ) = (tensor, files.last_mut())
            {
                places.push(*place);
                said.descriptions.push(Arc::clone(description));
                said.labels.push(Arc::clone(label));
            }
        }
        files
    }

    fn load(&self, numbers: impl IntoIterator<Item = usize>, options: &Options) -> Result<Weights> {
        let mut files = self.some(numbers);
        let likely = likely(&files);
        let told = Told::take(&mut files, Vec::new(), None)?;
        let (mut run, reserved) =
            Begun::new(&self.device, options, likely)?.plan(files, told, Placing::default())?;
        run.left_out = Arc::clone(&self.left_out);
        run.load(reserved, None)
    }

    /// Where single tensors are placed.
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

/// The tensors of files whose headers have been read, as they are loaded.
fn as_loaded(files: &[Opened], asked: &Asked) -> Result<Vec<Arc<Description>>> {
    let said = files.iter().filter_map(|file| file.header.said().map(|said| (file, said)));
    let all = said.flat_map(|(file, said)| file.places.iter().zip(&said.descriptions));
    let loaded = |(place, description): (&Place, &Arc<Description>)| {
        let found = if asked.is_nothing() { None } else { asked.of(&description.info, *place)? };
        Ok(found.map_or_else(
            || Arc::clone(description),
            |found| Arc::new(Description { info: found.info, device: Arc::clone(&description.device) }),
        ))
    };
    all.map(loaded).collect()
}

/// What is known of opened files, of which these tensors are wanted.
pub(super) fn likely(files: &[Opened]) -> Likely {
    Likely {
        bytes: files
            .iter()
            .flat_map(|file| &file.places)
            .map(|place| place.bytes)
            .fold(0, u64::saturating_add),
        in_memory: files.first().is_some_and(|file| file.source.is_in_memory()),
    }
}
