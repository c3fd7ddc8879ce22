//! What makes an object a mapping of Python's: the views of its keys, items and values.

use pyo3::prelude::*;
use pyo3::types::PyList;

/// The keys of a mapping, in their order.
pub(crate) fn names<'py>(py: Python<'py>, keys: &[&str]) -> PyResult<Bound<'py, PyAny>> {
    py.import("tensorhold._mapping")?.getattr("Names")?.call1((PyList::new(py, keys)?,))
}

/// The value under a key that is there, if `found`; else the default, or None.
pub(crate) fn get<'py>(
    mapping: &Bound<'py, PyAny>,
    key: &Bound<'py, PyAny>,
    found: bool,
    default: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    match found {
        true => mapping.get_item(key),
        false => Ok(default.unwrap_or_else(|| mapping.py().None().into_bound(mapping.py()))),
    }
}

/// A view of the pairs of a mapping.
pub(crate) fn items<'py>(mapping: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    mapping.py().import("collections.abc")?.getattr("ItemsView")?.call1((mapping,))
}

/// A view of the values of a mapping.
pub(crate) fn values<'py>(mapping: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    mapping.py().import("collections.abc")?.getattr("ValuesView")?.call1((mapping,))
}
