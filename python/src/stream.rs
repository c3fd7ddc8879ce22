//! Tensors as their bytes land.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use tensorhold::TensorStream;

use crate::errors::{self, Kind, raise};
use crate::interrupt::Failure;
use crate::pickle;
use crate::process::Process;
use crate::tensor::PyTensor;
use crate::weights::PyWeights;

/// How long a wait is before Python is asked for signals.
pub(crate) const PATIENCE: Duration = Duration::from_millis(50);

/// A load under way: iterates over `(name, tensor)`, each as its bytes land.
#[pyclass(name = "Stream", module = "tensorhold", frozen)]
pub(crate) struct PyStream {
    /// `None` once it has been closed, or finished. Only locked without the interpreter.
    stream: Mutex<Option<TensorStream>>,
    /// Someone waits to take it: who waits for a tensor makes room.
    wanted: AtomicBool,
    failure: Failure,
    process: Process,
}

impl PyStream {
    pub(crate) fn new(stream: TensorStream, failure: Failure) -> Self {
        Self {
            stream: Mutex::new(Some(stream)),
            wanted: AtomicBool::new(false),
            failure,
            process: Process::current(),
        }
    }

    fn take(&self, py: Python<'_>) -> PyResult<Option<TensorStream>> {
        self.process.check(py, "use a stream of tensors")?;
        self.wanted.store(true, Ordering::Relaxed);
        Ok(py.detach(|| self.stream.lock().unwrap_or_else(PoisonError::into_inner).take()))
    }

    /// The exception for an error of the load: what a callback raised, if that ended it.
    fn raise(&self, py: Python<'_>, error: tensorhold::Error) -> PyErr {
        self.failure.take().unwrap_or_else(|| raise(py, error))
    }
}

fn closed(py: Python<'_>) -> PyErr {
    errors::new(py, Kind::Closed, "use a stream of tensors: it has been closed or finished; begin another")
}

/// How the load has ended, if it has within so long. Tensors that land meanwhile are the weights'.
fn ended_within(stream: &mut TensorStream, patience: Duration) -> Option<tensorhold::Result<()>> {
    let until = Instant::now() + patience;
    loop {
        match stream.next_within(until.saturating_duration_since(Instant::now()))? {
            Some(Ok(_)) if Instant::now() < until => {}
            Some(Ok(_)) => return None,
            ended => return Some(ended.map_or(Ok(()), |error| error.map(drop))),
        }
    }
}

#[pymethods]
impl PyStream {
    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<(String, PyTensor)>> {
        self.process.check(py, "use a stream of tensors")?;
        loop {
            let waited = py.detach(|| {
                let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
                stream.as_mut().map(|stream| stream.next_within(PATIENCE))
            });
            match waited {
                None => return Err(closed(py)),
                Some(None) if self.wanted.load(Ordering::Relaxed) => return Err(closed(py)),
                Some(None) => py.check_signals()?,
                Some(Some(None)) => return Ok(None),
                Some(Some(Some(Err(error)))) => return Err(self.raise(py, error)),
                Some(Some(Some(Ok(tensor)))) => {
                    return Ok(Some((tensor.name().to_owned(), PyTensor::new(tensor))));
                }
            }
        }
    }

    /// Waits for the rest, and gives all tensors.
    fn finish(&self, py: Python<'_>) -> PyResult<PyWeights> {
        let mut stream = self.take(py)?.ok_or_else(|| closed(py))?;
        loop {
            match py.detach(|| ended_within(&mut stream, PATIENCE)) {
                None => {
                    if let Err(signal) = py.check_signals() {
                        py.detach(|| drop(stream));
                        return Err(signal);
                    }
                }
                Some(Err(error)) => return Err(self.raise(py, error)),
                Some(Ok(())) => break,
            }
        }
        let finished = py.detach(|| stream.finish());
        finished.map(PyWeights::new).map_err(|error| self.raise(py, error))
    }

    /// Stops the load, and waits for its reads. What was given stays. In a forked child, nothing is stopped.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        if self.process.is_current() {
            let stream = self.take(py)?;
            py.detach(|| drop(stream));
        }
        Ok(())
    }

    fn __reduce__(&self) -> PyResult<()> {
        let reason = "it is a load of this process; pickle the tensors that it gave, or begin a stream in the other process";
        pickle::refuse("a Stream", reason)
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        _kind: &Bound<'_, PyAny>,
        _error: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        self.close(py)
    }
}

impl Drop for PyStream {
    fn drop(&mut self) {
        let stream = self.stream.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        // Its thread may be waiting for the interpreter, to ask for signals. While that ends, no thread gets it any more.
        let _ = Python::try_attach(|py| py.detach(|| drop(stream)));
    }
}
