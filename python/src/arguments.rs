//! Arguments of Python that cannot be converted: errors name the argument, what was got and what is expected.

use std::borrow::Cow;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use pyo3::exceptions::{PyOverflowError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyFloat, PyInt, PyString};
use tensorhold::allocator::{Brief, Quoted};

use crate::errors::{self, Kind};

/// What was got, as a message shows it: simple values with their type, of others the type alone, since their text may be long.
pub(crate) fn got(value: &Bound<'_, PyAny>) -> String {
    let kind =
        value.get_type().name().map_or_else(|_| "object".into(), |name| name.to_string_lossy().into_owned());
    if value.is_none() {
        return kind.replace("NoneType", "None");
    }
    if let Ok(text) = value.cast::<PyString>() {
        return format!("{} (str)", Quoted(text.to_string_lossy()));
    }
    let is_number = value.is_instance_of::<PyInt>() || value.is_instance_of::<PyFloat>();
    // Of a number with thousands of digits there is no text.
    if is_number && let Ok(text) = value.repr() {
        return format!("{} ({kind})", Brief(text.to_string_lossy()));
    }
    match value.hasattr("read") {
        _ if value.is_instance_of::<PyBytes>() => "bytes".into(),
        Ok(true) => format!("an open file ({kind})"),
        _ => format!("an object of type {kind}"),
    }
}

/// The error for a value of the wrong type. `subject` is the argument with what it belongs to: `option threads`, `argument dim of narrow`.
pub(crate) fn wrong_type(subject: &str, value: &Bound<'_, PyAny>, expected: &str) -> PyErr {
    PyTypeError::new_err(format!("{subject}: got {}, expected {expected}", got(value)))
}

/// The numbers that an argument takes, and the remedy for others, as messages say them.
pub(crate) struct Whole {
    pub(crate) range: &'static str,
    pub(crate) remedy: &'static str,
}

impl Whole {
    /// Of an argument that has to be there.
    pub(crate) const ANY: Self = Self { range: "0 to 2^64 - 1", remedy: "correct it" };
    /// Of an option.
    pub(crate) const OPTION: Self = Self { remedy: "correct it, or leave it out", ..Self::ANY };
}

/// A whole number that is not negative; of NumPy's types, too, but no bool.
pub(crate) fn number<'py, T>(subject: &str, value: &Bound<'py, PyAny>, whole: &Whole) -> PyResult<T>
where
    T: for<'a> FromPyObject<'a, 'py, Error = PyErr>,
{
    const EXPECTED: &str = "a whole number, an int";
    let py = value.py();
    if value.is_instance_of::<PyBool>() {
        return Err(wrong_type(subject, value, EXPECTED));
    }
    value.extract::<T>().map_err(|error| {
        if error.is_instance_of::<PyTypeError>(py) {
            return wrong_type(subject, value, EXPECTED);
        }
        if !error.is_instance_of::<PyOverflowError>(py) {
            return error;
        }
        let message = format!("{subject}: got {}, expected {}; {}", shown(value), whole.range, whole.remedy);
        errors::new(py, Kind::Option, message)
    })
}

/// The text of a number.
fn shown(value: &Bound<'_, PyAny>) -> String {
    value.str().map_or_else(|_| got(value), |text| Brief(text.to_string_lossy()).to_string())
}

/// A bool, of NumPy's type, too. Other objects are none, whatever their truth is: that of the text "no" is True.
pub(crate) fn flag(subject: &str, value: &Bound<'_, PyAny>) -> PyResult<bool> {
    value.extract::<bool>().map_err(|_| wrong_type(subject, value, "True or False"))
}

/// A text.
pub(crate) fn text<'a>(subject: &str, value: &'a Bound<'_, PyAny>, expected: &str) -> PyResult<Cow<'a, str>> {
    let text = value.cast::<PyString>().map_err(|_| wrong_type(subject, value, expected))?;
    // No name in a file has half of a surrogate pair.
    Ok(text.to_string_lossy())
}

/// A text that UTF-8 can hold.
pub(crate) fn utf8(subject: &str, value: &Bound<'_, PyAny>, expected: &str) -> PyResult<String> {
    let text = value.cast::<PyString>().map_err(|_| wrong_type(subject, value, expected))?;
    text.to_cow().map(Cow::into_owned).map_err(|_| {
        let shown = Quoted(text.to_string_lossy());
        let message = format!(
            "{subject}: got {shown} with a lone surrogate, expected text that UTF-8 can hold; replace it"
        );
        errors::new(value.py(), Kind::Option, message)
    })
}

/// The name of a tensor.
pub(crate) fn name<'a>(value: &'a Bound<'_, PyAny>) -> PyResult<Cow<'a, str>> {
    text("argument name", value, "the name of a tensor, a str")
}

/// The names of tensors, but not a single one, which is a collection of texts, too.
pub(crate) fn names(subject: &str, values: &Bound<'_, PyAny>) -> PyResult<Vec<String>> {
    let wrong = || wrong_type(subject, values, "names of tensors, a list of str");
    if values.is_instance_of::<PyString>() || values.is_instance_of::<PyBytes>() {
        return Err(wrong());
    }
    let item = |value: PyResult<Bound<'_, PyAny>>| {
        let value = value?;
        Ok(text(&format!("{subject}, a name in it"), &value, "the name of a tensor, a str")?.into_owned())
    };
    values.try_iter().map_err(|_| wrong())?.map(item).collect()
}

/// A path.
pub(crate) fn path(subject: &str, value: &Bound<'_, PyAny>) -> PyResult<PathBuf> {
    as_path(value).ok_or_else(|| wrong_type(subject, value, "a path, a str or os.PathLike"))
}

/// The path that a value is, if it is one.
pub(crate) fn as_path(value: &Bound<'_, PyAny>) -> Option<PathBuf> {
    // Python encodes it as it does for its own calls, and refuses what no path can have.
    let encode = || value.py().import("os")?.call_method1("fsencode", (value,));
    let is_bytes = value.is_instance_of::<PyBytes>();
    let encoded = if is_bytes { None } else { encode().ok() };
    encoded?.extract::<Vec<u8>>().ok().map(|path| OsString::from_vec(path).into())
}
