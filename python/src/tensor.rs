//! Tensors in Python, and how frameworks take them: DLPack.
//!
//! A capsule owns a clone of the tensor, so it keeps that tensor's bytes and no others. Bytes are complete when Python first sees a tensor, on every
//! stream, so a consumer's stream has nothing to wait for; and memory is used again only after the device's work has ended (I1), so nothing is asked
//! of the consumer's stream at the end either.

use std::ffi::OsStr;
use std::sync::{Mutex, PoisonError};

use dlpark::DlpackFlags;
use dlpark::ffi::DLDevice;
use dlpark::metadata::Dynamic;
use dlpark::python::{ExportAbi, ExportRequest};
use pyo3::exceptions::PyBufferError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};
use tensorhold::Tensor;

use crate::arguments::{flag, wrong_type};
use crate::device;
use crate::errors::raise;
use crate::info::{self, PyInfo};
use crate::pickle::{self, Reduced};
use crate::process::Process;

/// A tensor that keeps its own bytes alive, and nothing else's.
#[pyclass(name = "Tensor", module = "tensorhold", frozen)]
pub(crate) struct PyTensor {
    pub(crate) tensor: Tensor,
    process: Process,
}

impl PyTensor {
    pub(crate) fn new(tensor: Tensor) -> Self {
        Self { tensor, process: Process::current() }
    }

    /// Refuses in a forked child what needs the device.
    pub(crate) fn check(&self, py: Python<'_>, operation: &str) -> PyResult<()> {
        if self.tensor.device().is_host_accessible() { Ok(()) } else { self.process.check(py, operation) }
    }
}

#[pymethods]
impl PyTensor {
    #[getter]
    fn name(&self) -> &str {
        self.tensor.name()
    }

    /// As the format spells it: `F32`, `BF16`, `F8_E4M3`, ...
    #[getter]
    fn dtype(&self) -> &'static str {
        self.tensor.dtype().name()
    }

    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.tensor.shape())
    }

    #[getter]
    fn nbytes(&self) -> u64 {
        self.tensor.nbytes()
    }

    /// `cpu`, `pinned` or `cuda:N`.
    #[getter]
    fn device(&self) -> &str {
        device::name(self.tensor.device())
    }

    /// The file that it is from.
    #[getter]
    fn file(&self) -> &OsStr {
        self.tensor.info().file.as_os_str()
    }

    #[getter]
    fn info(&self) -> PyInfo {
        PyInfo(self.tensor.info().clone())
    }

    /// The address of the first element in the device's memory. Keep the tensor while it is used.
    #[getter]
    fn data_ptr(&self) -> usize {
        self.tensor.as_ptr() as usize
    }

    /// The same bytes as elements of another type; the last dimension becomes longer or shorter with it.
    fn view(&self, dtype: &Bound<'_, PyAny>) -> PyResult<Self> {
        let (py, dtype) = (dtype.py(), info::dtype_of("argument dtype of view", dtype)?);
        self.tensor.reinterpret(dtype).map(Self::new).map_err(|error| raise(py, error))
    }

    /// A part that is one run of bytes, sharing them.
    fn narrow(
        &self,
        py: Python<'_>,
        dim: &Bound<'_, PyAny>,
        start: &Bound<'_, PyAny>,
        length: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let numbers = [("dim", dim), ("start", start), ("length", length)];
        let [dim, start, length] = info::numbers("narrow", numbers)?;
        self.tensor.narrow(dim, start, length).map(Self::new).map_err(|error| raise(py, error))
    }

    /// A copy of the bytes.
    fn to_host<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        self.check(py, "copy a tensor")?;
        if let Ok(bytes) = self.tensor.as_bytes() {
            return Ok(PyBytes::new(py, bytes));
        }
        let copy = py.detach(|| self.tensor.to_host()).map_err(|error| raise(py, error))?;
        Ok(PyBytes::new(py, &copy))
    }

    /// The tensor as torch's, with no copy.
    fn torch<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        convert(slf, "torch")
    }

    /// The tensor as NumPy's, with no copy.
    fn numpy<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        convert(slf, "numpy")
    }

    /// The tensor as one of the framework's, with no copy.
    fn to<'py>(slf: &Bound<'py, Self>, framework: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        convert(slf, framework)
    }

    #[pyo3(signature = (*, stream=None, max_version=None, dl_device=None, copy=None))]
    fn __dlpack__<'py>(
        &self,
        py: Python<'py>,
        stream: Option<&Bound<'py, PyAny>>,
        max_version: Option<&Bound<'py, PyAny>>,
        dl_device: Option<&Bound<'py, PyAny>>,
        copy: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.check(py, "export a tensor")?;
        let request = export_request(stream, max_version, dl_device, copy)?;
        if is_copy(py, &self.tensor, &request)? {
            return export_copy(py, &self.tensor, &request);
        }
        match request.abi() {
            // Consumers of the old structure are not told that others read the same bytes.
            ExportAbi::Legacy => capsule(py, self.tensor.clone().into_legacy_dlpack()),
            ExportAbi::Versioned => capsule(py, self.tensor.to_dlpack()),
        }
    }

    fn __dlpack_device__(&self, py: Python<'_>) -> PyResult<(u32, i32)> {
        Ok(self.tensor.view().dlpack_device().map_err(|error| raise(py, error))?.into())
    }

    fn __len__(&self) -> PyResult<usize> {
        let length = self.tensor.shape().first().copied();
        length.ok_or_else(|| pyo3::exceptions::PyTypeError::new_err("a scalar has no length"))
    }

    /// A copy of the bytes with what they are, for a tensor on the same device.
    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Reduced<'py>> {
        let info = pickle::info_state(py, self.tensor.info())?;
        pickle::reduce(py, "Tensor", (info, self.device(), self.to_host(py)?))
    }

    fn __copy__(&self) -> Self {
        Self::new(self.tensor.clone())
    }

    fn __repr__(&self) -> String {
        let (shape, device) = (self.tensor.shape(), device::name(self.tensor.device()));
        format!("Tensor({:?}, {}, {shape:?}, {device})", self.tensor.name(), self.tensor.dtype())
    }
}

/// A tensor on its way to a framework that becomes its owner: its one capsule may be written to.
#[pyclass(name = "_Handover", module = "tensorhold._core", frozen)]
pub(crate) struct PyHandover {
    tensor: Mutex<Option<Tensor>>,
}

impl PyHandover {
    pub(crate) fn new(tensor: Tensor) -> Self {
        Self { tensor: Mutex::new(Some(tensor)) }
    }

    fn with<T>(&self, use_it: impl FnOnce(&mut Option<Tensor>) -> PyResult<T>) -> PyResult<T> {
        use_it(&mut self.tensor.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn gone() -> PyErr {
    PyBufferError::new_err("the tensor has been handed over already")
}

#[pymethods]
impl PyHandover {
    #[getter]
    fn name(&self) -> PyResult<String> {
        self.with(|tensor| Ok(tensor.as_ref().ok_or_else(gone)?.name().to_owned()))
    }

    #[getter]
    fn dtype(&self) -> PyResult<&'static str> {
        self.with(|tensor| Ok(tensor.as_ref().ok_or_else(gone)?.dtype().name()))
    }

    #[getter]
    fn device(&self) -> PyResult<String> {
        self.with(|tensor| Ok(device::name(tensor.as_ref().ok_or_else(gone)?.device()).to_owned()))
    }

    /// The same, as elements of another type.
    fn view(&self, dtype: &Bound<'_, PyAny>) -> PyResult<Self> {
        let (py, dtype) = (dtype.py(), info::dtype_of("argument dtype of view", dtype)?);
        let tensor = self.with(|tensor| tensor.take().ok_or_else(gone))?;
        tensor.reinterpret(dtype).map(Self::new).map_err(|error| raise(py, error))
    }

    #[pyo3(signature = (*, stream=None, max_version=None, dl_device=None, copy=None))]
    fn __dlpack__<'py>(
        &self,
        py: Python<'py>,
        stream: Option<&Bound<'py, PyAny>>,
        max_version: Option<&Bound<'py, PyAny>>,
        dl_device: Option<&Bound<'py, PyAny>>,
        copy: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let request = export_request(stream, max_version, dl_device, copy)?;
        let tensor = self.with(|tensor| tensor.take().ok_or_else(gone))?;
        if is_copy(py, &tensor, &request)? {
            return export_copy(py, &tensor, &request);
        }
        match request.abi() {
            ExportAbi::Legacy => capsule(py, tensor.into_legacy_dlpack()),
            ExportAbi::Versioned => capsule(py, tensor.into_dlpack()),
        }
    }

    fn __reduce__(&self) -> PyResult<()> {
        pickle::refuse(
            "a tensor that is on its way to a framework",
            "it can be taken once; pickle the framework's tensor",
        )
    }

    fn __dlpack_device__(&self, py: Python<'_>) -> PyResult<(u32, i32)> {
        let device = self.with(|tensor| Ok(tensor.as_ref().ok_or_else(gone)?.view().dlpack_device()))?;
        Ok(device.map_err(|error| raise(py, error))?.into())
    }
}

/// What a consumer asks for, by the protocol's arguments.
fn export_request<'py>(
    stream: Option<&Bound<'py, PyAny>>,
    max_version: Option<&Bound<'py, PyAny>>,
    dl_device: Option<&Bound<'py, PyAny>>,
    copy: Option<&Bound<'py, PyAny>>,
) -> PyResult<ExportRequest<'py>> {
    let max_version =
        pair::<u32>("max_version", max_version, "a major and a minor version, a tuple of ints")?;
    let dl_device =
        pair::<i32>("dl_device", dl_device, "the type and the number of a device, a tuple of ints")?;
    let copy = copy.map(|value| flag("argument copy of __dlpack__", value)).transpose()?;
    ExportRequest::parse(stream, max_version, dl_device, copy)
}

/// A pair of numbers that an argument of `__dlpack__` is.
fn pair<T>(argument: &str, value: Option<&Bound<'_, PyAny>>, expected: &str) -> PyResult<Option<(u32, T)>>
where
    for<'a, 'py> (u32, T): FromPyObject<'a, 'py>,
{
    let wrong = |value| wrong_type(&format!("argument {argument} of __dlpack__"), value, expected);
    value.map(|value| value.extract::<(u32, T)>().map_err(|_| wrong(value))).transpose()
}

/// Checks what is asked for, and says whether that is a copy in host memory instead of the tensor's own bytes.
fn is_copy(py: Python<'_>, tensor: &Tensor, request: &ExportRequest<'_>) -> PyResult<bool> {
    let device = tensor.view().dlpack_device().map_err(|error| raise(py, error))?;
    check_stream(request, device)?;
    let wanted = request.device().unwrap_or(device);
    if !request.copy().unwrap_or(wanted == DLDevice::CPU && device != wanted) {
        request.validate_zero_copy(device, DlpackFlags::empty())?;
        return Ok(false);
    }
    if wanted == DLDevice::CPU {
        return Ok(true);
    }
    Err(PyBufferError::new_err(format!(
        "copy tensor {:?}: got a copy onto a device, expected one into host memory, or none; take the tensor as it is, and clone it there",
        tensor.name()
    )))
}

fn export_copy<'py>(
    py: Python<'py>,
    tensor: &Tensor,
    request: &ExportRequest<'_>,
) -> PyResult<Bound<'py, PyAny>> {
    let bytes = py.detach(|| tensor.to_host()).map_err(|error| raise(py, error))?;
    match request.abi() {
        ExportAbi::Legacy => capsule_of_copy::<dlpark::ffi::DLManagedTensor>(py, tensor, bytes),
        ExportAbi::Versioned => capsule_of_copy::<dlpark::ffi::DLManagedTensorVersioned>(py, tensor, bytes),
    }
}

/// A consumer on the CPU has no stream; one of CUDA names one in the way of the protocol.
fn check_stream(request: &ExportRequest<'_>, device: DLDevice) -> PyResult<()> {
    if device.device_type == dlpark::ffi::DLDeviceType::CUDA {
        return request.cuda_stream().map(drop);
    }
    match request.stream() {
        Some(stream) if !stream.extract::<i64>().is_ok_and(|stream| stream == -1) => {
            Err(PyBufferError::new_err(format!(
                "a tensor in host memory is on no stream: got stream {stream}, expected None"
            )))
        }
        _ => Ok(()),
    }
}

fn capsule_of_copy<'py, M: dlpark::ManagedTensorBase>(
    py: Python<'py>,
    tensor: &Tensor,
    mut bytes: Vec<u8>,
) -> PyResult<Bound<'py, PyAny>>
where
    dlpark::Managed<M>: IntoPyObject<'py, Target = PyAny, Output = Bound<'py, PyAny>, Error = PyErr>,
{
    let prepared = Dynamic::compact(tensor.shape()).prepare_as::<M>();
    let prepared = prepared.map_err(|error| PyBufferError::new_err(error.to_string()))?;
    let data = if bytes.is_empty() { std::ptr::null_mut() } else { bytes.as_mut_ptr().cast() };
    // A vector's bytes stay where they are when it moves.
    let mut managed = prepared.initialize(Box::new(bytes));
    managed.set_data(data).set_device(DLDevice::CPU).set_dtype(tensor.dtype().dlpack());
    // SAFETY: it is a copy, as it is flagged.
    unsafe { managed.set_flags_unchecked(DlpackFlags::IS_COPIED) };
    // SAFETY: shape and strides are of the allocation, which owns the bytes; they are as many as shape and type say, since they are the tensor's,
    // and no one else has them.
    unsafe { managed.finish() }.into_pyobject(py)
}

/// What was exported, as Python's.
pub(crate) fn capsule<'py, M: dlpark::ManagedTensorBase>(
    py: Python<'py>,
    exported: tensorhold::Result<dlpark::Managed<M>>,
) -> PyResult<Bound<'py, PyAny>>
where
    dlpark::Managed<M>: IntoPyObject<'py, Target = PyAny, Output = Bound<'py, PyAny>, Error = PyErr>,
{
    exported.map_err(|error| raise(py, error))?.into_pyobject(py)
}

fn convert<'py>(
    tensor: &Bound<'py, PyTensor>,
    framework: impl IntoPyObject<'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let frameworks = tensor.py().import("tensorhold.frameworks")?;
    frameworks.call_method1("convert", (tensor, framework))
}
