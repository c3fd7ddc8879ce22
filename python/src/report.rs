//! What a load and a close say of themselves.

use std::ffi::OsStr;
use std::path::PathBuf;

use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;
use pyo3::types::PyList;
use serde_json::Value;
use tensorhold::allocator;
use tensorhold::{LeftOut, Report};

use crate::pickle::{self, Reduced};
use crate::{json, mapping};

/// How a load went: sizes in bytes, times in seconds. Its values can be had by name, too: `report["bytes"]`.
#[pyclass(name = "Report", module = "tensorhold", frozen, mapping)]
pub(crate) struct PyReport {
    device: String,
    /// All of it as JSON has it, an object.
    said: Value,
    /// As they are: JSON has no path that is not UTF-8.
    left_out: Vec<LeftOut>,
}

/// The device's name, what is said, and the files that are left out.
type ReportState<'py> = (String, Bound<'py, PyAny>, Vec<(PathBuf, String)>);

impl PyReport {
    pub(crate) fn new(report: &Report) -> Self {
        Self {
            device: crate::device::name(&report.device).to_owned(),
            said: serde_json::to_value(report).unwrap_or_default(),
            left_out: report.left_out.to_vec(),
        }
    }

    /// That which a pickle has.
    pub(crate) fn restored(py: Python<'_>, (device, said, left_out): ReportState<'_>) -> PyResult<Self> {
        let said = json::from_python(&said)?.ok_or_else(|| pickle::damaged(py, "Report"))?;
        let left_out = left_out.into_iter().map(|(path, why)| LeftOut::new(path, why)).collect();
        let restored = Self { device, said, left_out };
        let choices = restored.said.get("choices").and_then(Value::as_array).map(Vec::len);
        let is_whole = NUMBERS.iter().all(|field| restored.said.get(field).is_some_and(Value::is_u64))
            && restored.said.get("converted").is_some()
            && restored.said.pointer("/times/total").is_some_and(Value::is_f64)
            && choices.is_some_and(|choices| choices == restored.choices().len());
        if is_whole { Ok(restored) } else { Err(pickle::damaged(py, "Report")) }
    }

    fn number(&self, field: &str) -> u64 {
        self.said.get(field).and_then(Value::as_u64).unwrap_or_default()
    }

    /// In seconds.
    fn total(&self) -> f64 {
        self.said.pointer("/times/total").and_then(Value::as_f64).unwrap_or_default()
    }
}

macro_rules! getters {
    ($($field:ident,)*) => {
        const NUMBERS: &[&str] = &[$(stringify!($field),)*];
        const FIELDS: &[&str] = &["device", $(stringify!($field),)* "times", "choices", "converted", "left_out"];

        #[pymethods]
        impl PyReport {
            $(#[getter]
            fn $field(&self) -> u64 {
                self.number(stringify!($field))
            })*

            #[getter]
            fn device(&self) -> &str {
                &self.device
            }

            /// `plan`, `reserve`, `fill`, `total`, and `stages`.
            #[getter]
            fn times<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
                json::to_python(py, self.said.get("times").unwrap_or(&Value::Null))
            }

            /// What was chosen, and why.
            #[getter]
            fn choices(&self) -> Vec<PyChoice> {
                let choice = |choice: &Value| {
                    let text = |field| choice.get(field)?.as_str().map(str::to_owned);
                    Some(PyChoice { about: text("about")?, picked: text("picked")?, why: text("why")? })
                };
                self.said.get("choices").and_then(Value::as_array).into_iter().flatten().filter_map(choice).collect()
            }

            /// The converted tensors that had values out of range, or NaN, if that was counted.
            #[getter]
            fn converted<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
                json::to_python(py, self.said.get("converted").unwrap_or(&Value::Null))
            }

            /// Files of the checkpoint's folder that were not loaded, or not wholly.
            #[getter]
            fn left_out(&self) -> Vec<PyLeftOut> {
                left_out(&self.left_out)
            }

            /// Bytes of files over the whole time, in 10^9 bytes a second.
            #[getter]
            fn gigabytes_per_second(&self) -> f64 {
                let bytes = ["cached_bytes", "direct_bytes", "gds_bytes"].map(|field| self.number(field) as f64);
                bytes.iter().sum::<f64>() / 1e9 / self.total().max(f64::MIN_POSITIVE)
            }

            fn as_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
                let dict = json::to_python(py, &self.said)?;
                dict.set_item("device", self.device())?;
                Ok(dict)
            }

            fn keys<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
                mapping::names(py, FIELDS)
            }

            fn items<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
                mapping::items(slf.as_any())
            }

            fn values<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
                mapping::values(slf.as_any())
            }

            #[pyo3(signature = (key, default=None, /))]
            fn get<'py>(
                slf: &Bound<'py, Self>,
                key: &Bound<'py, PyAny>,
                default: Option<Bound<'py, PyAny>>,
            ) -> PyResult<Bound<'py, PyAny>> {
                mapping::get(slf.as_any(), key, slf.get().__contains__(key), default)
            }

            fn __contains__(&self, key: &Bound<'_, PyAny>) -> bool {
                key.extract::<String>().is_ok_and(|key| FIELDS.contains(&&*key))
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

            fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Reduced<'py>> {
                let left_out: Vec<_> = self.left_out.iter().map(|file| (file.path.as_os_str(), &*file.why)).collect();
                pickle::reduce(py, "Report", (self.device(), json::to_python(py, &self.said)?, left_out))
            }

            fn __repr__(&self) -> String {
                let (tensors, bytes) = (self.number("tensors"), self.number("bytes"));
                format!("Report({tensors} tensors, {bytes} bytes on {} in {:.3} s)", self.device, self.total())
            }
        }
    };
}

getters! {
    tensors,
    bytes,
    cached_bytes,
    direct_bytes,
    gds_bytes,
    files,
    regions,
    region_bytes,
    threads,
    staging_bytes,
    jobs,
}

/// One thing that was chosen.
#[pyclass(name = "Choice", module = "tensorhold", frozen, get_all)]
pub(crate) struct PyChoice {
    pub(crate) about: String,
    pub(crate) picked: String,
    pub(crate) why: String,
}

#[pymethods]
impl PyChoice {
    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Reduced<'py>> {
        pickle::reduce(py, "Choice", (&*self.about, &*self.picked, &*self.why))
    }

    fn __repr__(&self) -> String {
        format!("Choice({}: {}, {})", self.about, self.picked, self.why)
    }
}

/// A file of a checkpoint's folder that is not loaded, or not wholly.
#[pyclass(name = "LeftOut", module = "tensorhold", frozen)]
pub(crate) struct PyLeftOut(pub(crate) LeftOut);

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

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Reduced<'py>> {
        pickle::reduce(py, "LeftOut", (self.path(), self.why()))
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

impl PyHeld {
    /// That which a pickle has.
    pub(crate) fn restored((name, bytes): (String, u64)) -> Self {
        Self { name, bytes }
    }
}

#[pymethods]
impl PyHeld {
    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Reduced<'py>> {
        pickle::reduce(py, "Held", (&*self.name, self.bytes))
    }

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

/// Released bytes, what is held, pinned and pending bytes.
type ClosedState = (u64, Vec<(String, u64)>, u64, u64);

impl PyClosed {
    /// That which a pickle has.
    pub(crate) fn restored((released_bytes, held, pinned_bytes, pending_bytes): ClosedState) -> Self {
        let held = held.into_iter().map(PyHeld::restored).collect();
        Self { released_bytes, held, pinned_bytes, pending_bytes }
    }
}

#[pymethods]
impl PyClosed {
    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Reduced<'py>> {
        let held: Vec<_> = self.held.iter().map(|held| (&*held.name, held.bytes)).collect();
        pickle::reduce(py, "Closed", (self.released_bytes, held, self.pinned_bytes, self.pending_bytes))
    }

    fn __repr__(&self) -> String {
        let held: u64 = self.held.iter().map(|held| held.bytes).sum();
        format!(
            "Closed({} bytes released, {} tensors of {held} bytes held)",
            self.released_bytes,
            self.held.len()
        )
    }
}
