//! Weights in Python: by name, as a dict of a framework's tensors, and closed.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString};
use tensorhold::{Tensor, Weights};

use crate::arguments;
use crate::convert::Conversion;
use crate::errors::{self, Kind, raise};
use crate::info::PyInfo;
use crate::mapping;
use crate::pickle;
use crate::pool::PyStats;
use crate::process::Process;
use crate::report::{PyClosed, PyReport};
use crate::tensor::PyTensor;

/// The loaded tensors of a checkpoint, by name, file by file in the order of their bytes.
#[pyclass(name = "Weights", module = "tensorhold", frozen, mapping)]
pub(crate) struct PyWeights {
    /// `None` once they have been closed. Locked for moments, and never while Python is called.
    weights: RwLock<Option<Weights>>,
    process: Process,
}

impl PyWeights {
    pub(crate) fn new(weights: Weights) -> Self {
        Self { weights: RwLock::new(Some(weights)), process: Process::current() }
    }

    /// What `look` finds. It makes no object of Python's: that may collect garbage, whose finalizers may close these weights.
    fn with<T>(&self, py: Python<'_>, look: impl FnOnce(&Weights) -> T) -> PyResult<T> {
        let found = self.weights.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(look);
        found.ok_or_else(|| closed(py))
    }

    fn names(&self, py: Python<'_>) -> PyResult<Vec<Arc<str>>> {
        self.with(py, |weights| weights.iter().map(|tensor| Arc::clone(&tensor.info().name)).collect())
    }

    fn take(&self, py: Python<'_>) -> PyResult<Weights> {
        let weights = self.weights.write().unwrap_or_else(PoisonError::into_inner).take();
        weights.ok_or_else(|| closed(py))
    }
}

/// The files that tensors are from, in their order.
fn files_of(weights: &Weights) -> Vec<Arc<Path>> {
    let mut files: Vec<Arc<Path>> = Vec::new();
    for tensor in weights.iter() {
        let file = &tensor.info().file;
        if files.last().is_none_or(|last| !Arc::ptr_eq(last, file)) && !files.contains(file) {
            files.push(Arc::clone(file));
        }
    }
    files
}

fn closed(py: Python<'_>) -> PyErr {
    let message =
        "use weights: they have been closed; take the tensors that you need before, they stay valid";
    errors::new(py, Kind::Closed, message)
}

#[pymethods]
impl PyWeights {
    /// The names, file by file in the order of their bytes.
    fn keys<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let names = self.names(py)?;
        mapping::names(py, &names.iter().map(|name| &**name).collect::<Vec<_>>())
    }

    /// Pairs of name and tensor, in the same order.
    fn items<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        slf.get().with(slf.py(), |_| ())?;
        mapping::items(slf.as_any())
    }

    /// The tensors, in the same order.
    fn values<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        slf.get().with(slf.py(), |_| ())?;
        mapping::values(slf.as_any())
    }

    /// The tensor of that name, or `default` if there is no such tensor.
    #[pyo3(signature = (key, default=None, /))]
    fn get<'py>(
        slf: &Bound<'py, Self>,
        key: &Bound<'py, PyAny>,
        default: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        mapping::get(slf.as_any(), key, slf.get().__contains__(slf.py(), key)?, default)
    }

    /// What a tensor is.
    fn info(&self, py: Python<'_>, name: &Bound<'_, PyAny>) -> PyResult<PyInfo> {
        let name = arguments::name(name)?;
        let info = self.with(py, |weights| weights.view(&name).map(|view| view.info().clone()))?;
        info.map(PyInfo).map_err(|error| raise(py, error))
    }

    /// What all tensors are.
    fn infos(&self, py: Python<'_>) -> PyResult<Vec<PyInfo>> {
        self.with(py, |weights| weights.iter().map(|tensor| PyInfo(tensor.info().clone())).collect())
    }

    /// An owner of a tensor, which keeps the tensor's bytes beyond the weights.
    fn tensor(&self, py: Python<'_>, name: &Bound<'_, PyAny>) -> PyResult<PyTensor> {
        let name = arguments::name(name)?;
        let tensor = self.with(py, |weights| weights.tensor(&name))?;
        tensor.map(PyTensor::new).map_err(|error| raise(py, error))
    }

    /// The files that tensors are from, in the order of their bytes.
    fn files<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, self.with(py, files_of)?.iter().map(|file| file.as_os_str()))
    }

    /// The strings in a file's header, or in those of all files that tensors are from.
    #[pyo3(signature = (file=None))]
    fn metadata<'py>(
        &self,
        py: Python<'py>,
        file: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let file = file.map(|file| arguments::path("argument file of metadata", file)).transpose()?;
        let found = self.with(py, |weights| {
            let files = match file {
                Some(file) => vec![Arc::from(file)],
                None => files_of(weights),
            };
            let found = |file: Arc<Path>| match weights.files().any(|loaded| *loaded == *file) {
                true => Ok(weights.metadata(&file).cloned().unwrap_or_default()),
                false => Err(file),
            };
            files.into_iter().map(found).collect::<Result<Vec<_>, _>>()
        })?;
        let found = found.map_err(|file| {
            let message = format!("metadata of {file:?}: it is none of the loaded files; files() lists them");
            errors::new(py, Kind::Option, message)
        })?;
        let strings = PyDict::new(py);
        for (key, value) in found.into_iter().flatten() {
            strings.set_item(key, value)?;
        }
        Ok(strings)
    }

    /// How the load went.
    fn report(&self, py: Python<'_>) -> PyResult<PyReport> {
        self.with(py, |weights| PyReport::new(weights.report()))
    }

    /// The numbers of the pool that the tensors are in.
    fn pool_stats(&self, py: Python<'_>) -> PyResult<PyStats> {
        self.process.check(py, "ask a pool for its numbers")?;
        let pool = self.with(py, |weights| weights.pool().clone())?;
        Ok(py.detach(|| pool.stats()).into())
    }

    /// All tensors as the framework's, by name, with no copy.
    fn to<'py>(slf: &Bound<'py, Self>, framework: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        slf.py().import("tensorhold.frameworks")?.call_method1("convert_all", (slf, framework))
    }

    #[getter]
    fn device(&self, py: Python<'_>) -> PyResult<String> {
        self.with(py, |weights| crate::device::name(&weights.report().device).to_owned())
    }

    #[getter]
    fn closed(&self) -> bool {
        self.weights.read().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// Gives back every tensor that no one else holds, waits until that is done, and says what is still held: its memory goes when
    /// its last owner does.
    fn close(&self, py: Python<'_>) -> PyResult<PyClosed> {
        self.process.check(py, "close weights")?;
        let weights = self.take(py)?;
        Ok(py.detach(|| weights.close()).into())
    }

    /// A dict of what Python makes of each tensor ([`Conversion`]). If they are handed over, the weights are closed, and what was made is the owner.
    fn _each<'py>(
        &self,
        py: Python<'py>,
        from_capsule: Option<Py<PyAny>>,
        plain: Vec<String>,
        convert: Py<PyAny>,
        hand_over: bool,
    ) -> PyResult<Bound<'py, PyDict>> {
        let tensors: Vec<Tensor> = if hand_over {
            let weights = self.take(py)?;
            py.detach(|| weights.into_tensors().collect())
        } else {
            let all = |weights: &Weights| -> tensorhold::Result<_> {
                weights.names().map(|name| weights.tensor(name)).collect()
            };
            self.with(py, all)?.map_err(|error| raise(py, error))?
        };
        let conversion = Conversion::new(from_capsule, &plain, convert);
        let made = PyDict::new(py);
        for tensor in tensors {
            let name = PyString::new(py, tensor.name());
            let converted =
                if hand_over { conversion.hand_over(py, tensor)? } else { conversion.share(py, tensor)? };
            made.set_item(name, converted)?;
        }
        Ok(made)
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, Weights::len)
    }

    fn __contains__(&self, py: Python<'_>, name: &Bound<'_, PyAny>) -> PyResult<bool> {
        let Ok(name) = name.extract::<String>() else { return Ok(false) };
        self.with(py, |weights| weights.info(&name).is_some())
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(PyList::new(py, self.names(py)?.iter().map(|name| &**name))?.try_iter()?.into_any())
    }

    fn __getitem__(&self, py: Python<'_>, name: &Bound<'_, PyAny>) -> PyResult<PyTensor> {
        self.tensor(py, name)
    }

    fn __enter__(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        slf.get().with(slf.py(), |_| ())?;
        Ok(slf)
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        _kind: &Bound<'_, PyAny>,
        _error: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        if !self.closed() {
            self.close(py)?;
        }
        Ok(())
    }

    fn __reduce__(&self) -> PyResult<()> {
        let reason = "they own memory of this process; pickle dict(weights), whose tensors are copied, or load them in the other process";
        pickle::refuse("Weights", reason)
    }

    fn __repr__(&self) -> String {
        match &*self.weights.read().unwrap_or_else(PoisonError::into_inner) {
            Some(weights) => {
                let (tensors, bytes) = (weights.len(), weights.report().bytes);
                let noun = if tensors == 1 { "tensor" } else { "tensors" };
                format!("Weights({tensors} {noun}, {bytes} bytes)")
            }
            None => "Weights(closed)".into(),
        }
    }
}
