//! Pickles: a description is its fields, and a tensor is its description, the name of its device, and its bytes. What belongs to this process refuses.
//!
//! Pickles may be made by hand: [`restore`] checks all that it is given, as the functions that callers use do.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};
use tensorhold::allocator::RegionParts;
use tensorhold::{Device, LeftOut, Pool, Tensor, TensorInfo};

use crate::device;
use crate::errors::{self, Kind, raise};
use crate::info::{self, PyCut, PyInfo};
use crate::interrupt::PyProgress;
use crate::pool::PyStats;
use crate::process::Process;
use crate::report::{PyChoice, PyClosed, PyHeld, PyLeftOut, PyReport};
use crate::tensor::PyTensor;

/// What `__reduce__` gives: a function, and its arguments.
pub(crate) type Reduced<'py> = (Bound<'py, PyAny>, (&'static str, Bound<'py, PyTuple>));

/// An object of that class as a pickle has it: by its state, which [`restore`] takes.
pub(crate) fn reduce<'py>(
    py: Python<'py>,
    class: &'static str,
    state: impl IntoPyObject<'py, Target = PyTuple, Output = Bound<'py, PyTuple>, Error = PyErr>,
) -> PyResult<Reduced<'py>> {
    let restore = py.import("tensorhold._core")?.getattr("restore")?;
    Ok((restore, (class, state.into_pyobject(py)?)))
}

/// The error for what is of use in this process alone. `what` is what callers call it.
pub(crate) fn refuse(what: &str, reason: &str) -> PyResult<()> {
    Err(PyTypeError::new_err(format!("pickle {what}: {reason}")))
}

/// Name, type, shape and file of a tensor.
pub(crate) type InfoState<'py> = (String, Bound<'py, PyAny>, Vec<usize>, Bound<'py, PyAny>);

/// The same of a description.
pub(crate) fn info_state<'py>(py: Python<'py>, info: &TensorInfo) -> PyResult<InfoState<'py>> {
    let file = info.file.as_os_str().into_bound_py_any(py)?;
    let dtype = info.dtype.name().into_bound_py_any(py)?;
    Ok((info.name.to_string(), dtype, info.shape.to_vec(), file))
}

fn info_of(py: Python<'_>, (name, dtype, shape, file): InfoState<'_>) -> PyResult<TensorInfo> {
    let dtype = info::dtype_of("the dtype of a pickled tensor", &dtype)?;
    let file: PathBuf = file.extract()?;
    TensorInfo::new(name, dtype, shape, file).map_err(|error| raise(py, error))
}

/// The pools of tensors that have been unpickled, one for each device: a pool has a thread, and a pickle may have many tensors.
static POOLS: Mutex<Vec<(Process, String, Pool)>> = Mutex::new(Vec::new());

/// The pool of a device. Memory goes back tensor by tensor where the device can do so.
fn pool_of(py: Python<'_>, device: &Device) -> PyResult<Pool> {
    let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
    // A forked child has pools of its own.
    pools.retain(|(process, ..)| process.is_current());
    let name = device::name(device);
    if let Some((.., pool)) = pools.iter().find(|(_, of, _)| of == name) {
        return Ok(pool.clone());
    }
    let builder = Pool::builder(device.memory()).region_parts(RegionParts::Auto).name("unpickled tensors");
    let pool = builder.build().map_err(|error| raise(py, error.into()))?;
    pools.push((Process::current(), name.to_owned(), pool.clone()));
    Ok(pool)
}

/// Makes an object of a class from the state that its pickle has.
#[pyfunction]
pub(crate) fn restore<'py>(
    py: Python<'py>,
    kind: &str,
    state: &Bound<'py, PyTuple>,
) -> PyResult<Bound<'py, PyAny>> {
    match kind {
        "Tensor" => {
            let (info, on, bytes): (InfoState<'_>, Bound<'_, PyAny>, Bound<'_, PyBytes>) = state.extract()?;
            let (info, on, bytes) = (info_of(py, info)?, device::open(py, Some(&on))?, bytes.as_bytes());
            let pool = pool_of(py, &on)?;
            let made = py.detach(|| Tensor::from_host(info, &on, &pool, bytes));
            PyTensor::new(made.map_err(|error| raise(py, error))?).into_bound_py_any(py)
        }
        "TensorInfo" => PyInfo(info_of(py, state.extract()?)?).into_bound_py_any(py),
        "Cut" => PyCut::restored(py, state.extract()?)?.into_bound_py_any(py),
        "Progress" => PyProgress::restored(state.extract()?).into_bound_py_any(py),
        "Stats" => PyStats::restored(state.extract()?).into_bound_py_any(py),
        "Choice" => {
            let (about, picked, why) = state.extract()?;
            PyChoice { about, picked, why }.into_bound_py_any(py)
        }
        "LeftOut" => {
            let (path, why): (PathBuf, String) = state.extract()?;
            PyLeftOut(LeftOut::new(path, why)).into_bound_py_any(py)
        }
        "Held" => PyHeld::restored(state.extract()?).into_bound_py_any(py),
        "Closed" => PyClosed::restored(state.extract()?).into_bound_py_any(py),
        "Report" => PyReport::restored(py, state.extract()?)?.into_bound_py_any(py),
        _ => Err(damaged(py, kind)),
    }
}

/// The error for a state that no object has.
pub(crate) fn damaged(py: Python<'_>, class: &str) -> PyErr {
    let message = format!(
        "unpickle: got a state that no {class:?} of tensorhold {} has; pickle it again with this version",
        env!("CARGO_PKG_VERSION")
    );
    errors::new(py, Kind::Option, message)
}
