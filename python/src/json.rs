//! Values of JSON as Python's, and back.

use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyString};
use serde_json::{Map, Number, Value};

/// Values that are nested deeper are none of ours.
const MAX_DEPTH: usize = 16;

/// A value of JSON as Python's.
pub(crate) fn to_python<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
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
                list.append(to_python(py, value)?)?;
            }
            Ok(list.into_any())
        }
        Value::Object(entries) => {
            let dict = PyDict::new(py);
            for (key, value) in entries {
                dict.set_item(key, to_python(py, value)?)?;
            }
            Ok(dict.into_any())
        }
    }
}

/// The same value as JSON's; `None` for what is none, or nested too deep.
pub(crate) fn from_python(value: &Bound<'_, PyAny>) -> PyResult<Option<Value>> {
    of_depth(value, 0)
}

fn of_depth(value: &Bound<'_, PyAny>, depth: usize) -> PyResult<Option<Value>> {
    if depth > MAX_DEPTH {
        return Ok(None);
    }
    if value.is_none() {
        return Ok(Some(Value::Null));
    }
    if let Ok(value) = value.cast::<PyBool>() {
        return Ok(Some(Value::Bool(value.is_true())));
    }
    if value.is_instance_of::<PyInt>() {
        return Ok(value.extract::<u64>().ok().map(Value::from));
    }
    if value.is_instance_of::<PyFloat>() {
        return Ok(Number::from_f64(value.extract()?).map(Value::Number));
    }
    if value.is_instance_of::<PyString>() {
        return Ok(value.extract::<String>().ok().map(Value::String));
    }
    if let Ok(list) = value.cast::<PyList>() {
        let mut values = Vec::new();
        for item in list.iter() {
            let Some(item) = of_depth(&item, depth + 1)? else { return Ok(None) };
            values.push(item);
        }
        return Ok(Some(Value::Array(values)));
    }
    let Ok(dict) = value.cast::<PyDict>() else { return Ok(None) };
    let mut entries = Map::new();
    for (key, item) in dict.iter() {
        let (Ok(key), Some(item)) = (key.extract::<String>(), of_depth(&item, depth + 1)?) else {
            return Ok(None);
        };
        entries.insert(key, item);
    }
    Ok(Some(Value::Object(entries)))
}
