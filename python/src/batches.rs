//! Loads in batches, in Python: weights, a part of the checkpoint at a time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyDict;
use tensorhold::{Batches, Batching};

use crate::errors::{self, Kind, raise};
use crate::info::PyInfo;
use crate::interrupt::Failure;
use crate::options::Asked;
use crate::pickle;
use crate::pool::PyPool;
use crate::process::Process;
use crate::stream::PATIENCE;
use crate::weights::PyWeights;

/// A load in batches under way: iterates over `Weights`, each a part of the checkpoint. Asking for the next one says that the one before is done with.
#[pyclass(name = "_Batches", module = "tensorhold._core", frozen)]
pub(crate) struct PyBatches {
    /// `None` once they have been closed, or handed on. Only locked without the interpreter.
    batches: Mutex<Option<Batches>>,
    /// Someone waits to take them: who waits for a batch makes room.
    wanted: AtomicBool,
    plan: Py<PyDict>,
    pool: Py<PyPool>,
    pub(crate) failure: Failure,
    process: Process,
}

impl PyBatches {
    /// Takes the batches out.
    pub(crate) fn take(&self, py: Python<'_>) -> PyResult<Batches> {
        self.process.check(py, "use batches of tensors")?;
        self.taken(py).ok_or_else(|| closed(py))
    }

    fn taken(&self, py: Python<'_>) -> Option<Batches> {
        self.wanted.store(true, Ordering::Relaxed);
        py.detach(|| self.batches.lock().unwrap_or_else(PoisonError::into_inner).take())
    }
}

fn closed(py: Python<'_>) -> PyErr {
    errors::new(py, Kind::Closed, "use batches of tensors: they have been closed; begin another load")
}

/// Begins to load in batches. `keep`: whether the consumer keeps all tensors, or a rule from a `TensorInfo` to whether it keeps that one.
#[pyfunction]
#[pyo3(signature = (paths, device=None, *, max_batch_bytes=None, ahead=1, keep=None, even_regions=false, memory_budget=None, **options))]
#[allow(clippy::too_many_arguments, reason = "keywords in Python")]
pub(crate) fn batches(
    py: Python<'_>,
    paths: &Bound<'_, PyAny>,
    device: Option<&Bound<'_, PyAny>>,
    max_batch_bytes: Option<u64>,
    ahead: usize,
    keep: Option<Bound<'_, PyAny>>,
    even_regions: bool,
    memory_budget: Option<u64>,
    options: Option<&Bound<'_, PyDict>>,
) -> PyResult<PyBatches> {
    let asked = Asked::new(py, paths, device, options)?;
    let failure = asked.failure.clone();
    let mut batching = Batching::new().ahead(ahead);
    if let Some(bytes) = max_batch_bytes {
        batching = batching.max_batch_bytes(bytes);
    }
    if even_regions {
        batching = batching.even_regions();
    }
    match keep {
        Some(rule) if rule.is_callable() => {
            let (failure, rule) = (failure.clone(), rule.unbind());
            batching = batching.keep(move |info| {
                failure.ask(false, |py| rule.call1(py, (PyInfo(info.clone()),))?.is_truthy(py))
            });
        }
        Some(all) if all.is_truthy()? => batching = batching.keep_all(),
        _ => {}
    }
    let batches = asked.run(py, |loader| match memory_budget {
        Some(bytes) => loader.memory_budget(bytes).batches(batching),
        None => loader.batches(batching),
    })?;
    let found = batches.plan();
    let plan = PyDict::new(py);
    plan.set_item("batches", found.batches)?;
    plan.set_item("max_batch_bytes", found.max_batch_bytes)?;
    plan.set_item("ahead", found.ahead)?;
    plan.set_item("tensors", found.tensors)?;
    plan.set_item("bytes", found.bytes)?;
    plan.set_item("kept_bytes", found.kept_bytes)?;
    plan.set_item("peak_bytes", found.peak_bytes)?;
    let pool = Py::new(py, PyPool::of(py, batches.pool().clone(), device)?)?;
    let (plan, process) = (plan.unbind(), Process::current());
    let (batches, wanted) = (Mutex::new(Some(batches)), AtomicBool::new(false));
    Ok(PyBatches { batches, wanted, plan, pool, failure, process })
}

#[pymethods]
impl PyBatches {
    fn __reduce__(&self) -> PyResult<()> {
        pickle::refuse("a load in batches", "it belongs to this process; begin another in the other process")
    }

    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<PyWeights>> {
        self.process.check(py, "use batches of tensors")?;
        loop {
            let waited = py.detach(|| {
                let mut batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
                batches.as_mut().map(|batches| batches.next_within(PATIENCE))
            });
            match waited {
                None => return Err(closed(py)),
                Some(None) if self.wanted.load(Ordering::Relaxed) => return Err(closed(py)),
                Some(None) => py.check_signals()?,
                Some(Some(None)) => return Ok(None),
                Some(Some(Some(Ok(weights)))) => return Ok(Some(PyWeights::new(weights))),
                Some(Some(Some(Err(error)))) => {
                    return Err(self.failure.take().unwrap_or_else(|| raise(py, error)));
                }
            }
        }
    }

    /// How the load is divided, as chosen: sizes in bytes.
    #[getter]
    fn plan(&self, py: Python<'_>) -> Py<PyDict> {
        self.plan.clone_ref(py)
    }

    /// Where the batches are placed.
    #[getter]
    fn pool(&self, py: Python<'_>) -> Py<PyPool> {
        self.pool.clone_ref(py)
    }

    /// Stops the load, and waits for its reads. What was given stays. In a forked child, nothing is stopped.
    fn close(&self, py: Python<'_>) {
        if self.process.is_current() {
            let batches = self.taken(py);
            py.detach(|| drop(batches));
        }
    }
}

impl Drop for PyBatches {
    fn drop(&mut self) {
        let batches = self.batches.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        // Its thread may be waiting for the interpreter. While that ends, no thread gets it any more.
        let _ = Python::try_attach(|py| py.detach(|| drop(batches)));
    }
}
