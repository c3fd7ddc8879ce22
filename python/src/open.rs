//! A checkpoint that is open: read tensor by tensor, in parts, or as a whole, without a second look at its headers.
//!
//! Many small reads are slow, and most callers walk over the names in order. So a second request in the order of the files is answered with a batch that is
//! read at once, of which the next requests take theirs; batches become larger while the walk goes on. A request out of order is read by itself, and
//! what was read ahead is dropped. A tensor of a batch pins no more than its batch, and where the device gives memory back in parts, only itself.

use std::cell::RefCell;
use std::collections::HashMap;
use std::mem;
use std::sync::{Mutex, PoisonError, RwLock, TryLockError};

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use tensorhold::allocator::{Quoted, RegionParts};
use tensorhold::{Checkpoint, Pool, Tensor};

use crate::arguments;
use crate::convert::{Conversion, PyGetter};
use crate::errors::{self, Kind, raise};
use crate::info::{self, PyInfo};
use crate::interrupt::Failure;
use crate::pickle;
use crate::process::Process;
use crate::report::{self, PyLeftOut};
use crate::stream::PyStream;
use crate::tensor::PyHandover;
use crate::weights::PyWeights;

/// Of the first batch of a walk.
const FIRST_BATCH_BYTES: u64 = 8 << 20;

/// Of the largest: a tensor that stays keeps as much where memory goes back as a whole.
const BATCH_BYTES: u64 = 64 << 20;

/// The same where it goes back in parts, and a load's own time is longer.
const PARTED_BATCH_BYTES: u64 = 256 << 20;

/// A checkpoint that is open.
#[pyclass(name = "_Open", module = "tensorhold._core", frozen)]
pub(crate) struct PyOpen {
    /// `None` once it has been closed. Locked for moments, and never while Python is called.
    checkpoint: RwLock<Option<Checkpoint>>,
    /// Only waited for without the interpreter.
    walk: Mutex<Walk>,
    /// What a rule raises while a tensor is read.
    failure: Failure,
    process: Process,
}

/// How far a walk in the order of the files is.
struct Walk {
    /// The number that comes next in it.
    next: usize,
    ahead: HashMap<usize, Tensor>,
    batch_bytes: u64,
    /// The tensors in their order: number by name, and bytes.
    numbers: HashMap<Box<str>, usize>,
    bytes: Vec<u64>,
    /// Where batches are placed, if not in memory of their own.
    pool: Option<Pool>,
}

impl Walk {
    fn of(checkpoint: &Checkpoint, pool: Option<Pool>) -> Self {
        let numbers = checkpoint.names().enumerate().map(|(number, name)| (name.into(), number)).collect();
        let bytes = checkpoint.tensors().map(|info| info.nbytes).collect();
        Self { next: 0, ahead: HashMap::new(), batch_bytes: 0, numbers, bytes, pool }
    }

    /// Takes out what it holds.
    fn end(&mut self) -> (HashMap<usize, Tensor>, Option<Pool>) {
        (mem::take(&mut self.ahead), self.pool.take())
    }

    /// Takes a tensor of what was read ahead, if it was.
    fn take_ahead(&mut self, name: &str) -> Option<Tensor> {
        let &number = self.numbers.get(name)?;
        let tensor = self.ahead.remove(&number)?;
        self.next = number + 1;
        Some(tensor)
    }

    /// Takes a tensor of what was read ahead, or reads it.
    fn take(&mut self, checkpoint: &Checkpoint, name: &str, failure: &Failure) -> tensorhold::Result<Tensor> {
        let Some(&number) = self.numbers.get(name) else { return checkpoint.load_tensor(name) };
        let follows = number == self.next && number > 0;
        self.next = number + 1;
        if let Some(tensor) = self.ahead.remove(&number) {
            return Ok(tensor);
        }
        self.ahead.clear();
        if !follows {
            self.batch_bytes = 0;
            return checkpoint.load_tensor(name);
        }
        let largest = if self.pool.is_some() { PARTED_BATCH_BYTES } else { BATCH_BYTES };
        self.batch_bytes = (4 * self.batch_bytes).clamp(FIRST_BATCH_BYTES, largest);
        let mut room = self.batch_bytes;
        let fits = |bytes: &&u64| {
            room = room.saturating_sub(**bytes);
            room > 0
        };
        let count = self.bytes[number..].iter().take_while(fits).count();
        if count < 2 {
            return checkpoint.load_tensor(name);
        }
        let names = checkpoint.names().skip(number).take(count);
        let batch = match &self.pool {
            Some(pool) => {
                let names: Vec<&str> = names.collect();
                load_into(checkpoint, pool, &names)?
            }
            None => checkpoint.load_tensors(names)?,
        };
        if failure.is_set() {
            // Some of them are not as a rule would have had them.
            return Err(tensorhold::Error::Cancelled { done_bytes: 0, total_bytes: 0 });
        }
        self.ahead.extend(batch.into_tensors().zip(number..).map(|(tensor, number)| (number, tensor)));
        self.ahead.remove(&number).map_or_else(|| checkpoint.load_tensor(name), Ok)
    }
}

fn load_into(
    checkpoint: &Checkpoint,
    pool: &Pool,
    names: &[&str],
) -> tensorhold::Result<tensorhold::Weights> {
    let names: std::collections::HashSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
    checkpoint.loader().select(move |info| names.contains(&*info.name)).pool(pool).load()
}

thread_local! {
    /// The open checkpoints that this thread reads from, by their addresses.
    static READING: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// This thread reads from a checkpoint: a rule that reads from the same one meanwhile would wait for itself.
struct Reading(usize);

impl Reading {
    /// `None` if it does so already.
    fn from(open: &PyOpen) -> Option<Self> {
        let address = std::ptr::from_ref(open).addr();
        READING.with_borrow_mut(|reading| {
            let begins = !reading.contains(&address);
            begins.then(|| {
                reading.push(address);
                Self(address)
            })
        })
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        READING.with_borrow_mut(|reading| reading.retain(|address| *address != self.0));
    }
}

impl PyOpen {
    pub(crate) fn new(
        py: Python<'_>,
        checkpoint: Checkpoint,
        has_pool: bool,
        failure: Failure,
    ) -> PyResult<Self> {
        let parted = || Pool::builder(checkpoint.device().memory()).region_parts(RegionParts::Auto).build();
        let pool = if has_pool { None } else { Some(parted().map_err(|error| raise(py, error.into()))?) };
        let pool = pool.filter(Pool::is_parted);
        let walk = py.detach(|| Walk::of(&checkpoint, pool));
        Ok(Self {
            checkpoint: RwLock::new(Some(checkpoint)),
            walk: Mutex::new(walk),
            failure,
            process: Process::current(),
        })
    }

    fn checkpoint(&self, py: Python<'_>, operation: &str) -> PyResult<Checkpoint> {
        let checkpoint = self.checkpoint.read().unwrap_or_else(PoisonError::into_inner).clone();
        checkpoint.ok_or_else(|| {
            let message = format!("{operation}: the checkpoint has been closed; open it again");
            errors::new(py, Kind::Closed, message)
        })
    }

    /// Reads from the checkpoint.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        operation: &str,
        read: impl FnOnce(&Checkpoint) -> tensorhold::Result<T> + Send,
    ) -> PyResult<T> {
        self.process.check(py, operation)?;
        let checkpoint = self.checkpoint(py, operation)?;
        let _reading = Reading::from(self).ok_or_else(|| {
            let message = format!(
                "{operation}: got a rule of the checkpoint that reads from it while it is asked, expected one that needs none of its tensors; \
                 read what it needs before, or from another safe_open()"
            );
            errors::new(py, Kind::Option, message)
        })?;
        let found = self.failure.of_read(py, || py.detach(move || read(&checkpoint)))?;
        found.map_err(|error| raise(py, error))
    }

    /// A tensor that no one else owns.
    pub(crate) fn read(&self, py: Python<'_>, name: &str) -> PyResult<Tensor> {
        if let Some(tensor) = self.ahead(name) {
            return Ok(tensor);
        }
        let take = |checkpoint: &Checkpoint| {
            let mut walk = self.walk.lock().unwrap_or_else(PoisonError::into_inner);
            let taken = walk.take(checkpoint, name, &self.failure);
            drop(walk);
            // If it was closed meanwhile, as by a rule, that did not wait for the walk.
            self.end_walk_if_closed();
            taken
        };
        self.with(py, &format!("read tensor {}", Quoted(name)), take)
    }

    fn is_open(&self) -> bool {
        self.checkpoint.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Drops what was read ahead, once the checkpoint is closed. Who is at the walk is not waited for: it may be this very thread, or wait for it, and comes
    /// here when it is done.
    fn end_walk_if_closed(&self) {
        // Looked at while this thread is not at the walk: a close that comes later finds the walk free, or someone who comes here.
        if self.is_open() {
            return;
        }
        let ended = match self.walk.try_lock() {
            Ok(mut walk) => Some(walk.end()),
            Err(TryLockError::Poisoned(walk)) => Some(walk.into_inner().end()),
            Err(TryLockError::WouldBlock) => None,
        };
        // Without the lock.
        drop(ended);
    }

    /// What has been read ahead, where that needs no wait: then letting go of the interpreter would take as long as all else.
    fn ahead(&self, name: &str) -> Option<Tensor> {
        let mut walk = match self.walk.try_lock() {
            Ok(walk) => walk,
            Err(TryLockError::Poisoned(walk)) => walk.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        let usable = self.is_open() && self.process.is_current();
        let found = if usable { walk.take_ahead(name) } else { None };
        drop(walk);
        self.end_walk_if_closed();
        found
    }
}

#[pymethods]
impl PyOpen {
    fn keys<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, self.checkpoint(py, "list tensors")?.names())
    }

    fn info(&self, py: Python<'_>, name: &Bound<'_, PyAny>) -> PyResult<PyInfo> {
        let name = &*arguments::name(name)?;
        let checkpoint = self.checkpoint(py, "describe a tensor")?;
        if let Some(info) = checkpoint.info(name) {
            return Ok(PyInfo(info.clone()));
        }
        // Says which name is near; there is nothing that it could load.
        match checkpoint.load_part(name, &[]) {
            Err(error) => Err(raise(py, error)),
            Ok(tensor) => Ok(PyInfo(tensor.info().clone())),
        }
    }

    fn files<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, self.checkpoint(py, "list files")?.files().map(|file| file.as_os_str()))
    }

    /// Files of the checkpoint's folder that were not opened, or of which some tensors are left out.
    fn left_out(&self, py: Python<'_>) -> PyResult<Vec<PyLeftOut>> {
        Ok(report::left_out(self.checkpoint(py, "list the files left out")?.left_out()))
    }

    /// The strings in a file's header, or in those of all files; None where no header has `__metadata__`.
    #[pyo3(signature = (file=None))]
    fn metadata<'py>(
        &self,
        py: Python<'py>,
        file: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyDict>>> {
        let file = file.map(|file| arguments::path("argument file of metadata", file)).transpose()?;
        let checkpoint = self.checkpoint(py, "read metadata")?;
        if let Some(file) = &file
            && !checkpoint.files().any(|opened| opened == file)
        {
            let message = format!("metadata of {file:?}: it is none of the opened files; files() lists them");
            return Err(errors::new(py, Kind::Option, message));
        }
        let files = checkpoint.files().filter(|opened| file.as_ref().is_none_or(|file| file == opened));
        let mut strings = None;
        for found in files.filter_map(|file| checkpoint.metadata(file)) {
            let strings = strings.get_or_insert_with(|| PyDict::new(py));
            for (key, value) in found {
                strings.set_item(key, value)?;
            }
        }
        Ok(strings)
    }

    /// What reads tensors by name, as the framework's.
    fn getter(
        slf: Py<Self>,
        from_capsule: Option<Py<PyAny>>,
        plain: Vec<String>,
        convert: Py<PyAny>,
    ) -> PyGetter {
        PyGetter::new(slf, Conversion::new(from_capsule, &plain, convert))
    }

    /// A part of a tensor, of which no more is read than is in the way.
    fn hand_over_part(&self, py: Python<'_>, name: &str, cuts: &Bound<'_, PyAny>) -> PyResult<PyHandover> {
        let cuts = info::cuts("cuts of a part", cuts)?;
        let read = |checkpoint: &Checkpoint| checkpoint.load_part(name, &cuts);
        self.with(py, &format!("read tensor {}", Quoted(name)), read).map(PyHandover::new)
    }

    /// All tensors, or those of the names.
    #[pyo3(signature = (names=None))]
    fn load(&self, py: Python<'_>, names: Option<&Bound<'_, PyAny>>) -> PyResult<PyWeights> {
        let names = names.map(|names| arguments::names("argument names of load", names)).transpose()?;
        let load = |checkpoint: &Checkpoint| match names {
            Some(names) => checkpoint.load_tensors(names),
            None => checkpoint.loader().load(),
        };
        self.with(py, "load tensors", load).map(PyWeights::new)
    }

    #[pyo3(signature = (in_file_order=false))]
    fn stream(&self, py: Python<'_>, in_file_order: bool) -> PyResult<PyStream> {
        let stream = self.with(py, "load tensors", |checkpoint| checkpoint.loader().stream())?;
        let stream = if in_file_order { stream.in_file_order() } else { stream };
        Ok(PyStream::new(stream, self.failure.clone()))
    }

    #[getter]
    fn device(&self, py: Python<'_>) -> PyResult<String> {
        Ok(crate::device::name(self.checkpoint(py, "name the device")?.device()).to_owned())
    }

    #[getter]
    fn closed(&self) -> bool {
        !self.is_open()
    }

    /// Closes the files. Tensors stay, and a read that is under way goes on.
    fn close(&self, py: Python<'_>) {
        let checkpoint = match self.process.is_current() {
            true => self.checkpoint.write().unwrap_or_else(PoisonError::into_inner).take(),
            // A thread of the parent that looked at it without the interpreter never stops looking in a forked child.
            false => self.checkpoint.try_write().ok().and_then(|mut checkpoint| checkpoint.take()),
        };
        py.detach(|| {
            drop(checkpoint);
            self.end_walk_if_closed();
        });
    }

    fn __reduce__(&self) -> PyResult<()> {
        pickle::refuse(
            "what a safe_open reads with",
            "its files are open in this process; pickle the safe_open itself",
        )
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.checkpoint(py, "count tensors")?.len())
    }

    fn __contains__(&self, py: Python<'_>, name: &Bound<'_, PyAny>) -> PyResult<bool> {
        let checkpoint = self.checkpoint(py, "look for a tensor")?;
        Ok(name.extract::<String>().is_ok_and(|name| checkpoint.info(&name).is_some()))
    }
}
