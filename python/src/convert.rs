//! Tensors that a framework comes to own, one at a time or all of them.

use pyo3::prelude::*;
use tensorhold::{DType, Tensor};

use crate::arguments;
use crate::open::PyOpen;
use crate::pickle;
use crate::tensor::{PyHandover, PyTensor, capsule};

/// What Python makes of a tensor: `from_capsule`, of a capsule of the old structure, where the tensor's type is one of `plain`, else `convert`.
pub(crate) struct Conversion {
    from_capsule: Option<Py<PyAny>>,
    plain: Vec<DType>,
    convert: Py<PyAny>,
}

impl Conversion {
    pub(crate) fn new(from_capsule: Option<Py<PyAny>>, plain: &[String], convert: Py<PyAny>) -> Self {
        let is_plain = |dtype: &DType| plain.iter().any(|plain| plain == dtype.name());
        let plain = DType::ALL.iter().copied().filter(is_plain).collect();
        Self { from_capsule, plain, convert }
    }

    /// The framework's tensor, which owns its memory.
    pub(crate) fn hand_over<'py>(&self, py: Python<'py>, tensor: Tensor) -> PyResult<Bound<'py, PyAny>> {
        self.of(py, tensor, |tensor| Ok(Py::new(py, PyHandover::new(tensor))?.into_any()))
    }

    /// The framework's tensor, which shares its memory with others.
    pub(crate) fn share<'py>(&self, py: Python<'py>, tensor: Tensor) -> PyResult<Bound<'py, PyAny>> {
        self.of(py, tensor, |tensor| Ok(Py::new(py, PyTensor::new(tensor))?.into_any()))
    }

    fn of<'py>(
        &self,
        py: Python<'py>,
        tensor: Tensor,
        wrap: impl FnOnce(Tensor) -> PyResult<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        match &self.from_capsule {
            Some(from_capsule) if self.plain.contains(&tensor.dtype()) => {
                from_capsule.bind(py).call1((capsule(py, tensor.into_legacy_dlpack())?,))
            }
            _ => self.convert.bind(py).call1((wrap(tensor)?,)),
        }
    }
}

/// Reads tensors of an open checkpoint, by name, as the framework's.
#[pyclass(name = "_Getter", module = "tensorhold._core", frozen)]
pub(crate) struct PyGetter {
    open: Py<PyOpen>,
    conversion: Conversion,
}

impl PyGetter {
    pub(crate) fn new(open: Py<PyOpen>, conversion: Conversion) -> Self {
        Self { open, conversion }
    }
}

#[pymethods]
impl PyGetter {
    fn __call__<'py>(&self, py: Python<'py>, name: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let name = arguments::name(name)?;
        self.conversion.hand_over(py, self.open.get().read(py, &name)?)
    }

    fn __reduce__(&self) -> PyResult<()> {
        pickle::refuse(
            "what a safe_open reads with",
            "its files are open in this process; pickle the safe_open itself",
        )
    }
}
