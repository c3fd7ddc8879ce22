//! What a load asks Python while it runs without the interpreter: whether Ctrl-C was pressed, and what the callbacks say.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use tensorhold::Progress;

use crate::options::Missing;
use crate::pickle::{self, Reduced};

/// How often Python is asked at most: often enough for a hand on the keyboard, and rarely enough to wait for the interpreter.
const EVERY: Duration = Duration::from_millis(20);

/// The first exception that a callback raised. It ends the load, and is raised in the place of the load's own error.
#[derive(Debug, Clone, Default)]
pub(crate) struct Failure(Arc<Mutex<Failed>>);

#[derive(Debug, Default)]
struct Failed {
    error: Option<PyErr>,
    /// How many reads with the same callbacks are under way.
    reads: usize,
}

impl Failure {
    fn failed(&self) -> MutexGuard<'_, Failed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set(&self, error: PyErr) {
        self.failed().error.get_or_insert(error);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.failed().error.is_some()
    }

    pub(crate) fn take(&self) -> Option<PyErr> {
        self.failed().error.take()
    }

    /// Does one of several reads that share the callbacks. After one of these has raised, the others that are under way are not answered any more: so all of
    /// them raise it.
    pub(crate) fn of_read<T>(&self, py: Python<'_>, read: impl FnOnce() -> T) -> PyResult<T> {
        self.failed().reads += 1;
        let found = read();
        let (raised, last) = {
            let mut failed = self.failed();
            failed.reads -= 1;
            let raised = failed.error.as_ref().map(|error| error.clone_ref(py));
            (raised, if failed.reads == 0 { failed.error.take() } else { None })
        };
        // Without the lock, since Python may run.
        drop(last);
        raised.map_or(Ok(found), Err)
    }

    /// Calls Python. An exception is kept, and everything after it is `otherwise`.
    pub(crate) fn ask<T>(&self, otherwise: T, call: impl FnOnce(Python<'_>) -> PyResult<T>) -> T {
        if self.is_set() {
            return otherwise;
        }
        // `None` while the interpreter ends: no one waits for the load any more.
        match Python::try_attach(call) {
            Some(Ok(answer)) => answer,
            Some(Err(error)) => {
                self.set(error);
                otherwise
            }
            None => otherwise,
        }
    }
}

/// How far a load is. Sizes in bytes.
#[pyclass(name = "Progress", module = "tensorhold", frozen, get_all)]
pub(crate) struct PyProgress {
    done_bytes: u64,
    total_bytes: u64,
    tensors: usize,
}

impl PyProgress {
    /// That which a pickle has.
    pub(crate) fn restored((done_bytes, total_bytes, tensors): (u64, u64, usize)) -> Self {
        Self { done_bytes, total_bytes, tensors }
    }
}

#[pymethods]
impl PyProgress {
    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Reduced<'py>> {
        pickle::reduce(py, "Progress", (self.done_bytes, self.total_bytes, self.tensors))
    }

    fn __repr__(&self) -> String {
        format!("Progress({} of {} bytes, {} tensors)", self.done_bytes, self.total_bytes, self.tensors)
    }
}

/// Answers a load's progress callback.
pub(crate) struct Watch {
    failure: Failure,
    callback: Option<Py<PyAny>>,
    asked: Option<Instant>,
    missing: Missing,
}

impl Watch {
    pub(crate) fn new(failure: Failure, missing: Missing, callback: Option<Py<PyAny>>) -> Self {
        Self { failure, callback, asked: None, missing }
    }

    /// Whether the load goes on; for loads whose progress no one is told.
    pub(crate) fn is_interrupted(&mut self) -> bool {
        let nothing_new = self.asked.is_some_and(|asked| asked.elapsed() < EVERY);
        if nothing_new && !self.failure.is_set() {
            return false;
        }
        self.asked = Some(Instant::now());
        !self.failure.ask(false, |py| py.check_signals().map(|()| true))
    }

    /// Whether the load goes on.
    pub(crate) fn tell(&mut self, progress: &Progress) -> ControlFlow<()> {
        // All headers have been read by now.
        if self.missing.is_any() {
            self.failure.ask((), |py| self.missing.error(py).map_or(Ok(()), Err));
        }
        if self.failure.is_set() {
            return ControlFlow::Break(());
        }
        // At the end only a callback is told; what is pressed then comes after the load.
        let is_last = progress.done_bytes == progress.total_bytes && self.callback.is_some();
        let is_due = is_last || self.asked.is_none_or(|asked| asked.elapsed() >= EVERY);
        if !is_due {
            return ControlFlow::Continue(());
        }
        let goes_on = self.failure.ask(false, |py| {
            py.check_signals()?;
            let Some(callback) = &self.callback else { return Ok(true) };
            let Progress { done_bytes, total_bytes, tensors, .. } = *progress;
            let answer = callback.call1(py, (PyProgress { done_bytes, total_bytes, tensors },))?;
            Ok(answer.is_none(py) || answer.is_truthy(py)?)
        });
        self.asked = Some(Instant::now());
        if goes_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }
}
