//! What a load and a close say of themselves.

use std::ffi::OsStr;

use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use serde_json::Value;
use tensorhold::allocator;
use tensorhold::{LeftOut, Report};

/// How a load went: sizes in bytes, times in seconds. Its values can be had by name, too: `report["bytes"]`.
#[pyclass(name = "Report", module = "tensorhold", frozen)]
pub(crate) struct PyReport(pub(crate) Report);

macro_rules! getters {
    ($($field:ident: $type:ty,)*) => {
        const FIELDS: &[&str] = &["device", $(stringify!($field),)* "times", "choices", "converted", "left_out"];

        #[pymethods]
        impl PyReport {
            $(#[getter]
            fn $field(&self) -> $type {
                self.0.$field
            })*

            #[getter]
            fn device(&self) -> &str {
                crate::device::name(&self.0.device)
            }

            /// `plan`, `reserve`, `fill`, `total`, and `stages`.
            #[getter]
            fn times<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
                of_value(py, &serde_json::to_value(self.0.times).unwrap_or_default())
            }

            /// What was chosen, and why.
            #[getter]
            fn choices(&self) -> Vec<PyChoice> {
                let choice = |choice: &tensorhold::Choice| PyChoice {
                    about: choice.about, picked: choice.picked.clone(), why: choice.why.clone(),
                };
                self.0.choices.iter().map(choice).collect()
            }

            /// The converted tensors that had values out of range, or NaN, if that was counted.
            #[getter]
            fn converted<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
                of_value(py, &serde_json::to_value(&self.0.converted).unwrap_or_default())
            }

            /// Files of the checkpoint's folder that were not loaded, or not wholly.
            #[getter]
            fn left_out(&self) -> Vec<PyLeftOut> {
                left_out(&self.0.left_out)
            }

            /// Bytes of files over the whole time, in 10^9 bytes a second.
            #[getter]
            fn gigabytes_per_second(&self) -> f64 {
                self.0.gigabytes_per_second()
            }

            fn as_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
                let dict = of_value(py, &serde_json::to_value(&self.0).unwrap_or_default())?;
                dict.set_item("device", self.device())?;
                Ok(dict)
            }

            fn keys(&self) -> Vec<&'static str> {
                FIELDS.to_vec()
            }

            fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
                Ok(PyList::new(py, FIELDS)?.try_iter()?.into_any())
            }

            fn __len__(&self) -> usize {
                FIELDS.len()
            }

            fn __getitem__<'py>(slf: &Bound<'py, Self>, key: &str) -> PyResult<Bound<'py, PyAny>> {
                match FIELDS.contains(&key) {
                    true => slf.getattr(key),
                    false => Err(PyKeyError::new_err(key.to_owned())),
                }
            }

            fn __repr__(&self) -> String {
                let Report { tensors, bytes, times, .. } = &self.0;
                format!("Report({tensors} tensors, {bytes} bytes on {} in {:.3} s)", self.device(), times.total.as_secs_f64())
            }
        }
    };
}

getters! {
    tensors: usize,
    bytes: u64,
    cached_bytes: u64,
    direct_bytes: u64,
    gds_bytes: u64,
    files: usize,
    regions: usize,
    region_bytes: u64,
    threads: usize,
    staging_bytes: u64,
    jobs: usize,
}

/// One thing that was chosen.
#[pyclass(name = "Choice", module = "tensorhold", frozen, get_all)]
pub(crate) struct PyChoice {
    about: &'static str,
    picked: String,
    why: String,
}

#[pymethods]
impl PyChoice {
    fn __repr__(&self) -> String {
        format!("Choice({}: {}, {})", self.about, self.picked, self.why)
    }
}

/// A file of a checkpoint's folder that is not loaded, or not wholly.
#[pyclass(name = "LeftOut", module = "tensorhold", frozen)]
pub(crate) struct PyLeftOut(LeftOut);

#[pymethods]
impl PyLeftOut {
    #[getter]
    fn path(&self) -> &OsStr {
        self.0.path.as_os_str()
    }

    #[getter]
    fn why(&self) -> &str {
        &self.0.why
    }

    fn __repr__(&self) -> String {
        format!("LeftOut({:?}: {})", self.0.path, self.0.why)
    }
}

pub(crate) fn left_out(files: &[LeftOut]) -> Vec<PyLeftOut> {
    files.iter().cloned().map(PyLeftOut).collect()
}

/// A tensor that outlived a close.
#[pyclass(name = "Held", module = "tensorhold", frozen, get_all)]
#[derive(Clone)]
pub(crate) struct PyHeld {
    name: String,
    bytes: u64,
}

#[pymethods]
impl PyHeld {
    fn __repr__(&self) -> String {
        format!("Held({:?}, {} bytes)", self.name, self.bytes)
    }
}

/// What closing found.
#[pyclass(name = "Closed", module = "tensorhold", frozen, get_all)]
pub(crate) struct PyClosed {
    released_bytes: u64,
    held: Vec<PyHeld>,
    pinned_bytes: u64,
    pending_bytes: u64,
}

impl From<allocator::Closed> for PyClosed {
    fn from(closed: allocator::Closed) -> Self {
        let held = closed.held.into_iter();
        Self {
            released_bytes: closed.released_bytes,
            held: held.map(|held| PyHeld { name: held.name.to_string(), bytes: held.bytes }).collect(),
            pinned_bytes: closed.pinned_bytes,
            pending_bytes: closed.pending_bytes,
        }
    }
}

#[pymethods]
impl PyClosed {
    fn __repr__(&self) -> String {
        let held: u64 = self.held.iter().map(|held| held.bytes).sum();
        format!(
            "Closed({} bytes released, {} tensors of {held} bytes held)",
            self.released_bytes,
            self.held.len()
        )
    }
}

/// A value of JSON as Python's.
pub(crate) fn of_value<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    match value {
        Value::Null => Ok(py.None().into_bound(py)),
        Value::Bool(value) => value.into_bound_py_any(py),
        Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
            (Some(number), ..) => number.into_bound_py_any(py),
            (_, Some(number), _) => number.into_bound_py_any(py),
            (.., number) => number.into_bound_py_any(py),
        },
        Value::String(text) => text.into_bound_py_any(py),
        Value::Array(values) => {
            let list = PyList::empty(py);
            for value in values {
                list.append(of_value(py, value)?)?;
            }
            Ok(list.into_any())
        }
        Value::Object(entries) => {
            let dict = PyDict::new(py);
            for (key, value) in entries {
                dict.set_item(key, of_value(py, value)?)?;
            }
            Ok(dict.into_any())
        }
    }
}
