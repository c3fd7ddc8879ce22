//! The compiled module of the Python package: a translation layer, with no loading logic of its own.
//!
//! Arguments become options of a [`tensorhold::Loader`] ([`options`]), errors become exceptions ([`errors`]), and tensors are exported by DLPack
//! ([`tensor`]). The interpreter is released around all I/O and waits.
//!
//! # Invariants
//! Those of the library, I1 to I6. No lock of this crate is held while Python is called, so a callback may use every object; but for that of a walk over an
//! open checkpoint, whose rules may not read from it.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::todo, clippy::unimplemented)]
#![deny(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods)]
#![allow(missing_docs, reason = "what Python sees is described in its stubs")]

mod arguments;
mod batches;
mod convert;
mod device;
mod errors;
mod group;
mod info;
mod interrupt;
mod json;
mod mapping;
mod open;
mod options;
mod pickle;
mod pool;
mod process;
mod report;
mod save;
mod save_file;
mod stream;
mod tensor;
mod weights;

use pyo3::prelude::*;

#[pymodule(gil_used = false)]
mod _core {
    use pyo3::prelude::*;
    use pyo3::types::{PyDict, PyList};
    use tensorhold::Device;

    #[pymodule_export]
    use crate::batches::batches;
    #[pymodule_export]
    use crate::convert::PyGetter;
    #[pymodule_export]
    use crate::group::{check_group, go_on, relay, share};
    #[pymodule_export]
    use crate::info::{PyCut, PyInfo};
    #[pymodule_export]
    use crate::interrupt::PyProgress;
    #[pymodule_export]
    use crate::open::PyOpen;
    use crate::options::Asked;
    #[pymodule_export]
    use crate::options::path_list;
    #[pymodule_export]
    use crate::pickle::restore;
    #[pymodule_export]
    use crate::pool::{PyPool, PyStats};
    use crate::process::Process;
    #[pymodule_export]
    use crate::report::{PyChoice, PyClosed, PyHeld, PyLeftOut, PyReport};
    #[pymodule_export]
    use crate::save::{PyDraft, plan_shards, shard_paths, validate_shard_set};
    #[pymodule_export]
    use crate::save_file::{deserialize, save_file, serialize};
    #[pymodule_export]
    use crate::stream::PyStream;
    #[pymodule_export]
    use crate::tensor::{PyHandover, PyTensor};
    #[pymodule_export]
    use crate::weights::PyWeights;
    use crate::{arguments, device, errors};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        errors::register(module)?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }

    /// Loads the tensors.
    #[pyfunction]
    #[pyo3(signature = (paths, device=None, **options))]
    fn load(
        py: Python<'_>,
        paths: &Bound<'_, PyAny>,
        device: Option<&Bound<'_, PyAny>>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<PyWeights> {
        let asked = Asked::new(py, paths, device, options)?;
        asked.run(py, tensorhold::Loader::load).map(PyWeights::new)
    }

    /// Begins to load the tensors, and gives each as its bytes land.
    #[pyfunction]
    #[pyo3(
        signature = (paths, device=None, *, in_file_order=None, **options),
        text_signature = "(paths, device=None, *, in_file_order=False, **options)"
    )]
    fn stream(
        py: Python<'_>,
        paths: &Bound<'_, PyAny>,
        device: Option<&Bound<'_, PyAny>>,
        in_file_order: Option<&Bound<'_, PyAny>>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<PyStream> {
        let asked = Asked::new(py, paths, device, options)?;
        let in_file_order =
            in_file_order.map_or(Ok(false), |value| arguments::flag("option in_file_order", value))?;
        let failure = asked.failure.clone();
        let stream = asked.run(py, tensorhold::Loader::stream)?;
        Ok(PyStream::new(if in_file_order { stream.in_file_order() } else { stream }, failure))
    }

    /// Opens a checkpoint: reads and checks its headers.
    #[pyfunction]
    #[pyo3(signature = (paths, device=None, **options))]
    fn open(
        py: Python<'_>,
        paths: &Bound<'_, PyAny>,
        device: Option<&Bound<'_, PyAny>>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<PyOpen> {
        let asked = Asked::new(py, paths, device, options)?;
        let (has_pool, failure) = (asked.has_pool, asked.failure.clone());
        let checkpoint = asked.run(py, tensorhold::Loader::open)?;
        PyOpen::new(py, checkpoint, has_pool, failure)
    }

    /// What the headers say: the tensors as they would be loaded, and the strings of each file.
    #[pyfunction]
    #[pyo3(signature = (paths, device=None, **options))]
    fn inspect<'py>(
        py: Python<'py>,
        paths: &Bound<'py, PyAny>,
        device: Option<&Bound<'py, PyAny>>,
        options: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<(Bound<'py, PyList>, Bound<'py, PyDict>)> {
        let found = Asked::new(py, paths, device, options)?.run(py, tensorhold::Loader::inspect)?;
        let files = PyDict::new(py);
        for file in found.files {
            files.set_item(file.path.as_os_str(), file.metadata.unwrap_or_default())?;
        }
        Ok((PyList::new(py, found.tensors.into_iter().map(PyInfo))?, files))
    }

    /// How many CUDA devices there are; 0 without a driver.
    #[pyfunction]
    fn cuda_count(py: Python<'_>) -> PyResult<usize> {
        let count = py.detach(Device::cuda_count);
        if count > 0 {
            Process::use_cuda(py, "cuda")?;
        }
        Ok(count)
    }

    /// What a file is that is no safetensors file, by its first bytes and its length, as a message says it.
    #[pyfunction]
    fn foreign_format(start: &[u8], file_len: u64) -> Option<String> {
        tensorhold::foreign_format(start, file_len)
    }

    /// The name of the device that is named, if there is such a name; of the CPU for None.
    #[pyfunction]
    #[pyo3(signature = (named))]
    fn device_name(py: Python<'_>, named: Option<&Bound<'_, PyAny>>) -> PyResult<String> {
        device::spelled(py, named)
    }
}
