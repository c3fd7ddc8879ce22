//! What makes an object a mapping of Python's: the views of its keys, items and values.

use pyo3::prelude::*;
use pyo3::types::PyList;

/// The keys of a mapping, in their order.
pub(crate) fn names<'py>(py: Python<'py>, keys: &[&str]) -> PyResult<Bound<'py, PyAny>> {
    py.import("tensorhold._mapping")?.getattr("Names")?.call1((PyList::new(py, keys)?,))
}

/// A view of the pairs of a mapping.
pub(crate) fn items<'py>(mapping: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    mapping.py().import("collections.abc")?.getattr("ItemsView")?.call1((mapping,))
}

/// A view of the values of a mapping.
pub(crate) fn values<'py>(mapping: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    mapping.py().import("collections.abc")?.getattr("ValuesView")?.call1((mapping,))
}
