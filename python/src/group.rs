//! Process groups in Python: an implementation of the library's trait that calls an object of Python's, and what is shared over it.
//!
//! The object moves memory by DLPack: what it is given is an owner of a tensor as bytes, so what it keeps stays valid.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use dlpark::ffi::{DLDataType, DLManagedTensor};
use dlpark::metadata::Dynamic;
use pyo3::exceptions::PyBufferError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use tensorhold::group::{ProcessGroup, Relay, Shared, SingleGroup, agree};
use tensorhold::{Batches, Error, Result, Tensor, TensorInfo, Weights};

use crate::arguments::{self, Whole};
use crate::batches::PyBatches;
use crate::errors::{self, Kind, raise};
use crate::info::PyInfo;
use crate::interrupt::Failure;
use crate::options::Asked;
use crate::pickle;
use crate::pool::PyPool;
use crate::process::Process;
use crate::stream::PATIENCE;
use crate::tensor::{PyHandover, PyTensor};

/// A tensor as bytes, for a group to read or to write: it gives capsules of DLPack from before version 1, which have no flag for reading alone.
#[pyclass(name = "_Payload", module = "tensorhold._core", frozen)]
struct PyPayload {
    tensor: Tensor,
}

#[pymethods]
impl PyPayload {
    fn __reduce__(&self) -> PyResult<()> {
        pickle::refuse(
            "a payload of a process group",
            "its bytes belong to a call in this process; send a copy",
        )
    }

    #[getter]
    fn nbytes(&self) -> u64 {
        self.tensor.nbytes()
    }

    #[pyo3(signature = (**_options))]
    fn __dlpack__<'py>(
        &self,
        py: Python<'py>,
        _options: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let device = self.tensor.view().dlpack_device().map_err(|error| raise(py, error))?;
        let bytes = [self.tensor.nbytes() as usize];
        let prepared = Dynamic::compact(&bytes).prepare_as::<DLManagedTensor>();
        let prepared = prepared.map_err(|error| PyBufferError::new_err(error.to_string()))?;
        let data = if bytes[0] == 0 { std::ptr::null_mut() } else { self.tensor.as_ptr().cast_mut().cast() };
        let mut managed = prepared.initialize(Box::new(self.tensor.clone()));
        managed.set_data(data).set_device(device).set_dtype(DLDataType::U8);
        // SAFETY: shape and strides are of the allocation; the tensor in it keeps the bytes alive (I1) until the deleter drops it, and has as many. A
        // group writes only to what it receives into, of which nothing borrows while it does: `ProcessGroup::recv` has the only owner.
        unsafe { managed.finish() }.into_pyobject(py)
    }

    fn __dlpack_device__(&self, py: Python<'_>) -> PyResult<(u32, i32)> {
        Ok(self.tensor.view().dlpack_device().map_err(|error| raise(py, error))?.into())
    }
}

/// A group of Python's.
struct PyGroup {
    group: Py<PyAny>,
    rank: usize,
    size: usize,
    failure: Failure,
}

impl PyGroup {
    /// Calls a method. Its exception is kept, to be raised in the place of the error.
    fn call(
        &self,
        operation: &'static str,
        call: impl FnOnce(&Bound<'_, PyAny>) -> PyResult<()>,
    ) -> Result<()> {
        let failed = |detail: String| {
            let remedy = "see what the group says, on every rank".into();
            Error::Group { operation, rank: self.rank, size: self.size, detail, remedy }
        };
        match Python::try_attach(|py| call(self.group.bind(py)).map_err(|error| (error.to_string(), error))) {
            Some(Ok(())) => Ok(()),
            Some(Err((detail, error))) => {
                self.failure.set(error);
                Err(failed(detail))
            }
            None => Err(failed("the interpreter ends".into())),
        }
    }

    /// Another rank than this one.
    fn other(&self, operation: &'static str, rank: usize) -> Result<usize> {
        if rank < self.size && rank != self.rank {
            return Ok(rank);
        }
        let (detail, remedy) =
            (format!("got rank {rank}, expected another one that there is"), "count ranks from 0".into());
        Err(Error::Group { operation, rank: self.rank, size: self.size, detail, remedy })
    }

    fn with(&self, operation: &'static str, method: &str, tensor: &Tensor, rank: usize) -> Result<()> {
        let payload = PyPayload { tensor: tensor.clone() };
        self.call(operation, |group| group.call_method1(method, (payload, rank)).map(drop))
    }
}

impl ProcessGroup for PyGroup {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn barrier(&self) -> Result<()> {
        self.call("wait for all ranks", |group| group.call_method0("barrier").map(drop))
    }

    fn broadcast(&self, tensor: &Tensor) -> Result<()> {
        self.with("broadcast", "broadcast", tensor, self.rank)
    }

    fn recv_broadcast(&self, into: &mut Tensor, root: usize) -> Result<()> {
        let root = self.other("receive a broadcast", root)?;
        self.with("receive a broadcast", "broadcast", into, root)
    }

    fn scatter(&self, parts: &[Tensor]) -> Result<()> {
        if parts.len() != self.size {
            let detail = format!("got {} parts, expected one for each rank", parts.len());
            let remedy = "give as many parts as there are ranks".into();
            return Err(Error::Group {
                operation: "scatter",
                rank: self.rank,
                size: self.size,
                detail,
                remedy,
            });
        }
        self.call("scatter", |group| {
            let payloads =
                parts.iter().map(|tensor| Py::new(group.py(), PyPayload { tensor: tensor.clone() }));
            let payloads = PyList::new(group.py(), payloads.collect::<PyResult<Vec<_>>>()?)?;
            group.call_method1("scatter", (payloads,)).map(drop)
        })
    }

    fn send(&self, tensor: &Tensor, to: usize) -> Result<()> {
        let to = self.other("send", to)?;
        self.with("send", "send", tensor, to)
    }

    fn recv(&self, into: &mut Tensor, from: usize) -> Result<()> {
        let from = self.other("receive", from)?;
        self.with("receive", "recv", into, from)
    }
}

impl fmt::Debug for PyGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {}, in Python", self.rank, self.size)
    }
}

/// The group that an object is, a job of one where there is none; and what its methods raise.
fn open(group: Option<Bound<'_, PyAny>>) -> PyResult<(Arc<dyn ProcessGroup>, Failure)> {
    let failure = Failure::default();
    let Some(group) = group else { return Ok((Arc::new(SingleGroup), failure)) };
    if !group.hasattr("rank")? || !group.hasattr("size")? {
        let expected = "None, or an object with the methods of tensorhold.groups.TorchGroup";
        return Err(arguments::wrong_type("argument group", &group, expected));
    }
    let number = |method: &str| {
        let subject = format!("{method}() of a process group");
        arguments::number::<usize>(&subject, &group.call_method0(method)?, &Whole::ANY)
    };
    let (rank, size) = (number("rank")?, number("size")?);
    if rank >= size {
        let message = format!(
            "open a process group: got rank {rank} of {size}, expected a rank below the size; check the group"
        );
        return Err(errors::new(group.py(), Kind::Option, message));
    }
    Ok((Arc::new(PyGroup { group: group.unbind(), rank, size, failure: failure.clone() }), failure))
}

/// Checks that a group keeps what the library asks of groups, with tensors on `device`. All ranks call it.
#[pyfunction]
#[pyo3(signature = (group, device=None))]
pub(crate) fn check_group(
    py: Python<'_>,
    group: Option<Bound<'_, PyAny>>,
    device: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    let device = crate::device::open(py, device)?;
    let (group, failure) = open(group)?;
    let checked = py.detach(|| tensorhold::group::check(&*group, &device));
    checked.map_err(|error| failure.take().unwrap_or_else(|| raise(py, error)))
}

/// Goes on if all is well on every rank. All ranks call it.
#[pyfunction]
pub(crate) fn go_on(
    py: Python<'_>,
    group: Option<Bound<'_, PyAny>>,
    pool: &Bound<'_, PyPool>,
    is_well: bool,
) -> PyResult<()> {
    let (group, failure) = open(group)?;
    all_well(py, &*group, &failure, pool, is_well)
}

/// Tells the other ranks how it went here; an error if it did not go well somewhere.
fn all_well(
    py: Python<'_>,
    group: &dyn ProcessGroup,
    failure: &Failure,
    pool: &Bound<'_, PyPool>,
    is_well: bool,
) -> PyResult<()> {
    let (device, pool) = (pool.get().opened(), &pool.get().pool);
    let (rank, size) = (group.rank(), group.size());
    let (detail, remedy) = ("this rank has failed".into(), "see what it says".into());
    let failed = Error::Group { operation: "go on together", rank, size, detail, remedy };
    let outcome = if is_well { Ok(()) } else { Err(failed) };
    let together = py.detach(|| agree(group, device, pool, outcome));
    together.map_err(|error| failure.take().unwrap_or_else(|| raise(py, error)))
}

/// Loads this rank's files into the pool, if it has some.
fn load_own(
    py: Python<'_>,
    pool: &Bound<'_, PyPool>,
    paths: Vec<Bound<'_, PyAny>>,
    options: Option<&Bound<'_, PyDict>>,
) -> PyResult<Option<Weights>> {
    if paths.is_empty() {
        return Ok(None);
    }
    let device = pool.getattr("device")?;
    let mut asked = Asked::new(py, PyList::new(py, paths)?.as_any(), Some(&device), options)?;
    asked.place_in(&pool.get().pool)?;
    asked.run(py, tensorhold::Loader::load).map(Some)
}

/// Tensors of files that the ranks of a group have read between them.
#[pyclass(name = "_Shared", module = "tensorhold._core", frozen)]
pub(crate) struct PyShared {
    /// `None` once they have been closed. Locked for moments: a group may use and close what it serves.
    shared: RwLock<Option<Arc<Shared>>>,
    failure: Failure,
    process: Process,
}

/// Loads this rank's files into the pool, and shares them: `tensors` are those of all ranks, each with the rank that has it, in one order.
#[pyfunction]
#[pyo3(signature = (group, pool, tensors, paths, **options))]
pub(crate) fn share(
    py: Python<'_>,
    group: Option<Bound<'_, PyAny>>,
    pool: &Bound<'_, PyPool>,
    tensors: Vec<(PyRef<'_, PyInfo>, usize)>,
    paths: Vec<Bound<'_, PyAny>>,
    options: Option<&Bound<'_, PyDict>>,
) -> PyResult<PyShared> {
    let (group, failure) = open(group)?;
    let (device, target) = (pool.get().opened().clone(), pool.get().pool.clone());
    pool.get().check(py, "load into a pool")?;
    let order: Vec<_> = tensors.iter().map(|(info, owner)| (info.0.clone(), *owner)).collect();
    let loaded = load_own(py, pool, paths, options);
    let together = all_well(py, &*group, &failure, pool, loaded.is_ok());
    let weights = loaded?;
    together?;
    let made = py.detach(|| {
        let local = weights.into_iter().flat_map(Weights::into_tensors);
        Shared::new(group, &device, &target, order, local)
    });
    let shared = made.map_err(|error| raise(py, error))?;
    Ok(PyShared { shared: RwLock::new(Some(Arc::new(shared))), failure, process: Process::current() })
}

impl PyShared {
    /// Uses them without the interpreter.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        use_them: impl FnOnce(&Shared) -> Result<T> + Send,
    ) -> PyResult<T> {
        self.process.check(py, "use shared tensors")?;
        let shared = self.shared.read().unwrap_or_else(PoisonError::into_inner).clone();
        let closed = "use shared tensors: they have been closed; take the tensors that you need before, they stay valid";
        let shared = shared.ok_or_else(|| errors::new(py, Kind::Closed, closed))?;
        let used = py.detach(|| {
            let used = use_them(&shared);
            drop(shared);
            used
        });
        used.map_err(|error| self.failure.take().unwrap_or_else(|| raise(py, error)))
    }
}

#[pymethods]
impl PyShared {
    fn __reduce__(&self) -> PyResult<()> {
        pickle::refuse("a checkpoint that ranks share", "it belongs to this process; open it in the other")
    }

    /// What a tensor is, whole.
    fn info(&self, py: Python<'_>, name: &str) -> PyResult<Option<PyInfo>> {
        self.with(py, |shared| Ok(shared.info(name).cloned().map(PyInfo)))
    }

    fn broadcast(&self, py: Python<'_>, name: &str) -> PyResult<PyTensor> {
        self.with(py, |shared| shared.broadcast(name)).map(PyTensor::new)
    }

    fn shard(&self, py: Python<'_>, name: &str, dim: usize) -> PyResult<PyTensor> {
        self.with(py, |shared| shared.shard(name, dim)).map(PyTensor::new)
    }

    fn columns(&self, py: Python<'_>, names: Vec<String>, dim: usize) -> PyResult<PyTensor> {
        let join = |shared: &Shared| shared.columns(names.iter().map(String::as_str), dim);
        self.with(py, join).map(PyTensor::new)
    }

    fn push(&self, py: Python<'_>, name: &str, to: usize) -> PyResult<Option<PyTensor>> {
        Ok(self.with(py, |shared| shared.push(name, to))?.map(PyTensor::new))
    }

    /// Lets go of this rank's tensors. What was given stays.
    fn close(&self, py: Python<'_>) {
        let shared = self.shared.write().unwrap_or_else(PoisonError::into_inner).take();
        py.detach(|| drop(shared));
    }
}

/// Tensors of all ranks in one order, each broadcast as its owner has read it: iterates over `(name, tensor)`, to be handed over.
#[pyclass(name = "_Relay", module = "tensorhold._core", frozen)]
pub(crate) struct PyRelay {
    /// `None` once it has been closed, and while it is in use. Locked for moments: a group may close what it serves.
    relay: Mutex<Option<Tensors>>,
    closed: AtomicBool,
    failures: [Failure; 2],
    process: Process,
}

type Tensors = Box<dyn Iterator<Item = Result<Tensor>> + Send>;

/// Relays tensors in that order, each with the rank that has it. This rank's come from the batches, which end with the relay.
#[pyfunction]
#[pyo3(signature = (group, pool, order, batches))]
pub(crate) fn relay(
    py: Python<'_>,
    group: Option<Bound<'_, PyAny>>,
    pool: &Bound<'_, PyPool>,
    order: Vec<(PyRef<'_, PyInfo>, usize)>,
    batches: Option<&Bound<'_, PyBatches>>,
) -> PyResult<PyRelay> {
    let (group, failure) = open(group)?;
    let order: Vec<(TensorInfo, usize)> =
        order.iter().map(|(info, owner)| (info.0.clone(), *owner)).collect();
    let (device, target) = (pool.get().opened().clone(), pool.get().pool.clone());
    pool.get().check(py, "relay tensors")?;
    let taken = batches.map(|batches| batches.get().take(py)).transpose()?;
    let local_failure = batches.map(|batches| batches.get().failure.clone()).unwrap_or_default();
    let interrupted = local_failure.clone();
    let local = taken.into_iter().flat_map(move |mut batches| {
        let interrupted = interrupted.clone();
        std::iter::from_fn(move || next_or_interrupted(&mut batches, &interrupted))
    });
    let local = local.flat_map(|weights| match weights {
        Ok(weights) => weights.into_tensors().map(Ok).collect::<Vec<_>>(),
        Err(error) => vec![Err(error)],
    });
    let relay = Relay::new(group, &device, &target, order, local).map_err(|error| raise(py, error))?;
    let (relay, closed) = (Mutex::new(Some(Box::new(relay) as _)), AtomicBool::new(false));
    Ok(PyRelay { relay, closed, failures: [local_failure, failure], process: Process::current() })
}

/// The next batch; an error when a signal has come meanwhile, which is kept.
fn next_or_interrupted(batches: &mut Batches, failure: &Failure) -> Option<Result<Weights>> {
    loop {
        if let Some(next) = batches.next_within(PATIENCE) {
            return next;
        }
        if !failure.ask(false, |py| py.check_signals().map(|()| true)) {
            let total_bytes = batches.plan().bytes;
            return Some(Err(Error::Cancelled { done_bytes: 0, total_bytes }));
        }
    }
}

#[pymethods]
impl PyRelay {
    fn __reduce__(&self) -> PyResult<()> {
        pickle::refuse(
            "a relay of tensors between ranks",
            "it belongs to this process; begin another in the other process",
        )
    }

    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<(String, PyHandover)>> {
        self.process.check(py, "use a relay of tensors")?;
        let closed = "use a relay of tensors: it has been closed, or another thread uses it; begin another, or use one thread";
        let mut relay = self.take().ok_or_else(|| errors::new(py, Kind::Closed, closed))?;
        let next = py.detach(|| {
            let next = relay.next();
            self.put_back(relay);
            next
        });
        match next {
            None => Ok(None),
            Some(Ok(tensor)) => Ok(Some((tensor.name().to_owned(), PyHandover::new(tensor)))),
            Some(Err(error)) => {
                let failed = self.failures.iter().find_map(Failure::take);
                Err(failed.unwrap_or_else(|| raise(py, error)))
            }
        }
    }

    /// Stops this rank's reads. What was given stays. In a forked child, nothing is stopped.
    fn close(&self, py: Python<'_>) {
        if !self.process.is_current() {
            return;
        }
        self.closed.store(true, Ordering::SeqCst);
        let relay = self.take();
        py.detach(|| drop(relay));
    }
}

impl PyRelay {
    fn take(&self) -> Option<Tensors> {
        self.relay.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// After use, unless it has been closed meanwhile: then it goes here.
    fn put_back(&self, relay: Tensors) {
        *self.relay.lock().unwrap_or_else(PoisonError::into_inner) = Some(relay);
        if self.closed.load(Ordering::SeqCst) {
            drop(self.take());
        }
    }
}

impl Drop for PyRelay {
    fn drop(&mut self) {
        let relay = self.relay.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        // Its thread may be waiting for the interpreter. While that ends, no thread gets it any more.
        let _ = Python::try_attach(|py| py.detach(|| drop(relay)));
    }
}
