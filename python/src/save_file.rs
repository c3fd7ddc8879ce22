//! Files of tensors of any framework, whose bytes are in host memory or a device's: written to a disk, or as bytes of Python.

use std::borrow::Cow;
use std::path::PathBuf;

use dlpark::python::{ImportedDlpack, from_dlpack};
use pyo3::exceptions::{PyException, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyByteArray, PyBytes, PyDict, PyList, PyMemoryView, PyString};
use tensorhold::allocator::Quoted;
use tensorhold::save::{Durability, Entry, Item, Saver};
use tensorhold::{Deserialized, Metadata, Tensor};

use crate::arguments;
use crate::errors::{self, Kind, raise};
use crate::info;
use crate::tensor::PyTensor;

/// Where the bytes of a tensor are, all of which are in host memory.
enum Source {
    Tensor(Tensor),
    Copy(Vec<u8>),
    /// Of another library, which keeps them for as long as this lives.
    Library(ImportedDlpack),
}

impl Source {
    fn of(name: &str, found: &Bound<'_, PyAny>) -> PyResult<Self> {
        let py = found.py();
        if let Ok(tensor) = found.cast::<PyTensor>() {
            let tensor = tensor.get();
            tensor.check(py, "save a tensor")?;
            if tensor.tensor.as_bytes().is_ok() {
                return Ok(Self::Tensor(tensor.tensor.clone()));
            }
            let copy = py.detach(|| tensor.tensor.to_host()).map_err(|error| raise(py, error))?;
            return Ok(Self::Copy(copy));
        }
        let exported = capsule(found)
            .and_then(|capsule| from_dlpack(capsule.as_borrowed(), None, None))
            .map_err(|error| not_exported(py, name, error))?;
        let source = Self::Library(exported);
        match source.bytes() {
            Ok(_) => Ok(source),
            Err(problem) => {
                let message = format!(
                    "save tensor {}: got bytes that cannot be read: {problem}; expected dense ones in host memory; copy it there",
                    Quoted(name)
                );
                Err(errors::new(py, Kind::Tensor, message))
            }
        }
    }

    fn bytes(&self) -> Result<&[u8], String> {
        let managed = match self {
            Self::Tensor(tensor) => return tensor.as_bytes().map_err(|error| error.to_string()),
            Self::Copy(copy) => return Ok(copy),
            Self::Library(ImportedDlpack::Legacy(managed)) => managed.validate(),
            Self::Library(ImportedDlpack::Versioned(managed)) => managed.validate(),
        };
        let found = managed.map_err(|error| error.to_string())?;
        // SAFETY: the structure is a library's export of its own tensor, which it keeps, with its bytes, until the structure is dropped, and `self` has it. That
        // the tensor is dense and in host memory is checked. Python code may write to it meanwhile, as to any buffer that is being saved.
        unsafe { found.cpu_bytes() }.map_err(|error| error.to_string())
    }
}

/// The error for a tensor that its library does not export, with the library's own below it.
fn not_exported(py: Python<'_>, name: &str, error: PyErr) -> PyErr {
    if !error.is_instance_of::<PyException>(py) {
        return error;
    }
    let message = format!(
        "save tensor {}: its library does not export it by DLPack: {}; expected dense bytes in host memory; copy it there",
        Quoted(name),
        error.value(py)
    );
    let named = errors::new(py, Kind::Tensor, message);
    named.set_cause(py, Some(error));
    named
}

/// What a library exports, as the newest structure that it knows: those from before version 1 take no such argument.
fn capsule<'py>(found: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = found.py();
    let asked = [("max_version", (1, 0))].into_py_dict(py)?;
    match found.call_method("__dlpack__", (), Some(&asked)) {
        Err(error) if error.is_instance_of::<PyTypeError>(py) => found.call_method0("__dlpack__"),
        exported => exported,
    }
}

/// Name, type, shape, and bytes.
type PyItem<'py> = (Bound<'py, PyString>, Bound<'py, PyAny>, Vec<usize>, Bound<'py, PyAny>);

/// A text for a header, which is UTF-8: Python's strings may hold halves of surrogate pairs, which it does not have.
fn text<'py>(
    found: &'py Bound<'_, PyString>,
    subject: impl FnOnce(&str) -> String,
) -> PyResult<Cow<'py, str>> {
    found.to_cow().map_err(|_| {
        let shown = found.to_string_lossy();
        let problem = "got a lone surrogate, expected text that UTF-8 can hold; replace it";
        let message = format!("{}: {problem}", subject(&Quoted(&*shown).to_string()));
        errors::new(found.py(), Kind::Tensor, message)
    })
}

/// Key and value of a header's strings.
type PyStringPair<'py> = (Bound<'py, PyString>, Bound<'py, PyString>);

/// What is to be written: entries, where their bytes are, and the strings.
struct Content {
    sources: Vec<(Entry, Source)>,
    metadata: Option<Metadata>,
}

impl Content {
    fn new(py: Python<'_>, items: &[PyItem<'_>], metadata: Option<&[PyStringPair<'_>]>) -> PyResult<Self> {
        let mut sources = Vec::with_capacity(items.len());
        for (name, dtype, shape, found) in items {
            let name = text(name, |name| format!("save tensor {name}: its name"))?;
            let dtype = info::dtype(dtype).map_err(|_| {
                let message = format!(
                    "save tensor {}: got {dtype}, expected a type of the format; convert it",
                    Quoted(&name)
                );
                errors::new(py, Kind::Tensor, message)
            })?;
            let entry = Entry::new(&*name, dtype, shape).map_err(|error| raise(py, error))?;
            sources.push((entry, Source::of(&name, found)?));
        }
        let strings = |(key, value): &PyStringPair<'_>| {
            let named = text(key, |key| format!("save metadata {key}: its key"))?;
            let value = text(value, |_| format!("save metadata {}: its value", Quoted(&named)))?;
            Ok((named.into_owned(), value.into_owned()))
        };
        let metadata = metadata.map(|metadata| metadata.iter().map(strings).collect::<PyResult<_>>());
        Ok(Self { sources, metadata: metadata.transpose()? })
    }

    fn saver(&self) -> Saver {
        match &self.metadata {
            Some(metadata) => Saver::new().metadata(metadata.clone()),
            None => Saver::new(),
        }
    }

    fn items(&self) -> tensorhold::Result<Vec<Item<'_>>> {
        let items = self.sources.iter().map(|(entry, source)| {
            // Found to be there before.
            Item::bytes(entry.clone(), source.bytes().unwrap_or_default())
        });
        items.collect()
    }
}

/// Writes a file of tensors, each a name, a type, a shape, and its bytes. Without `metadata` the header has no `__metadata__`.
#[pyfunction]
pub(crate) fn save_file(
    py: Python<'_>,
    path: PathBuf,
    items: Vec<PyItem<'_>>,
    metadata: Option<Vec<PyStringPair<'_>>>,
    synced: bool,
) -> PyResult<()> {
    let content = Content::new(py, &items, metadata.as_deref())?;
    let durability = if synced { Durability::Synced } else { Durability::Cached };
    let saver = content.saver().durability(durability);
    py.detach(|| saver.save_file(path, content.items()?)).map_err(|error| raise(py, error))?;
    Ok(())
}

/// The bytes of the file that `save_file` writes of the same arguments.
#[pyfunction]
#[pyo3(signature = (items, metadata=None))]
pub(crate) fn serialize<'py>(
    py: Python<'py>,
    items: Vec<PyItem<'py>>,
    metadata: Option<Vec<PyStringPair<'py>>>,
) -> PyResult<Bound<'py, PyBytes>> {
    let content = Content::new(py, &items, metadata.as_deref())?;
    let planned = content.items().and_then(|items| content.saver().serialize(items));
    let planned = planned.map_err(|error| raise(py, error))?;
    let length = usize::try_from(planned.total_bytes())?;
    // No one else has the object before it is returned.
    PyBytes::new_with(py, length, |buffer| {
        py.detach(|| planned.write_to(buffer)).map_err(|error| raise(py, error))
    })
}

/// The tensors of a file whose bytes are given, in the order of their bytes.
#[pyfunction]
pub(crate) fn deserialize<'py>(
    py: Python<'py>,
    data: &Bound<'py, PyAny>,
) -> PyResult<Vec<(String, Bound<'py, PyDict>)>> {
    let bytes = match data.cast::<PyBytes>() {
        Ok(bytes) => bytes.clone(),
        // A copy, which stays what it is while the interpreter is released.
        Err(_) => PyMemoryView::from(data)
            .map_err(|_| {
                arguments::wrong_type("argument data", data, "bytes, or an object that gives its bytes")
            })?
            .call_method0("tobytes")?
            .cast_into::<PyBytes>()?,
    };
    let bytes = bytes.as_bytes();
    let file = py.detach(|| Deserialized::new(bytes)).map_err(|error| raise(py, error))?;
    let mut tensors = Vec::with_capacity(file.tensors().len());
    for tensor in file.tensors() {
        let found = PyDict::new(py);
        found.set_item("shape", PyList::new(py, tensor.shape)?)?;
        found.set_item("dtype", tensor.dtype.name())?;
        found.set_item("data", copy_of(py, tensor.bytes)?)?;
        tensors.push((tensor.name.to_owned(), found));
    }
    Ok(tensors)
}

/// Copies of more bytes than this release the interpreter.
const LARGE_BYTES: usize = 1 << 20;

fn copy_of<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyByteArray>> {
    if bytes.len() <= LARGE_BYTES {
        return Ok(PyByteArray::new(py, bytes));
    }
    // No one else has the object before it is returned.
    PyByteArray::new_with(py, bytes.len(), |buffer| {
        py.detach(|| buffer.copy_from_slice(bytes));
        Ok(())
    })
}
