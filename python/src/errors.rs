//! The exceptions, and which of them an error of the library is.
//!
//! All are under `tensorhold.Error`, and each is also the built-in one that a caller would catch. Messages are those of the library,
//! with the reasons below them.

use std::error::Error as _;
use std::path::Path;

use pyo3::exceptions::{
    PyException, PyFileNotFoundError, PyImportError, PyIndexError, PyKeyError, PyMemoryError, PyOSError,
    PyPermissionError, PyRuntimeError, PyValueError,
};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple, PyType};
use tensorhold::{Error, Vocabulary, allocator};

/// The classes, in the order of their making: a class's bases come before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Kind {
    Error,
    File,
    MissingFile,
    Access,
    FileChanged,
    Format,
    Option,
    Tensor,
    TensorIndex,
    MissingTensor,
    Closed,
    OutOfMemory,
    Device,
    Cancelled,
    Fork,
    Framework,
    Group,
}

struct Class {
    kind: Kind,
    name: &'static str,
    doc: &'static str,
    /// The class of ours that it is below; none for the first.
    base: Option<Kind>,
    built_in: fn(Python<'_>) -> Bound<'_, PyType>,
}

macro_rules! classes {
    ($($kind:ident $name:literal: $base:expr, $built_in:ty, $doc:literal;)*) => {
        const CLASSES: &[Class] = &[$(Class {
            kind: Kind::$kind,
            name: concat!("tensorhold.", $name),
            doc: $doc,
            base: $base,
            built_in: |py| py.get_type::<$built_in>(),
        }),*];
    };
}

classes! {
    Error "Error": None, PyException, "What can go wrong in a call of this package. A failed call leaves nothing behind.";
    File "FileError": Some(Kind::Error), PyOSError, "The system refused to open or to read a file.";
    MissingFile "MissingFileError": Some(Kind::File), PyFileNotFoundError, "There is no such file.";
    Access "AccessError": Some(Kind::File), PyPermissionError, "The file may not be read or written.";
    FileChanged "FileChangedError": Some(Kind::File), PyOSError, "A file is not what it was when the load began.";
    Format "FormatError": Some(Kind::Error), PyValueError, "A header, an index or a folder is not as the format has it.";
    Option "OptionError": Some(Kind::Error), PyValueError, "An option, a setting or an argument that cannot be followed.";
    Tensor "TensorError": Some(Kind::Error), PyValueError, "A tensor cannot be used like that.";
    TensorIndex "TensorIndexError": Some(Kind::Tensor), PyIndexError, "A tensor has no such element or part.";
    MissingTensor "MissingTensorError": Some(Kind::Error), PyKeyError, "There is no tensor of that name.";
    Closed "ClosedError": Some(Kind::Error), PyValueError, "What was closed is used.";
    OutOfMemory "OutOfMemoryError": Some(Kind::Error), PyMemoryError, "The memory, the budget or the pool's limit does not allow it.";
    Device "DeviceError": Some(Kind::Error), PyRuntimeError, "A device or its driver cannot do as asked.";
    Cancelled "CancelledError": Some(Kind::Error), PyRuntimeError, "The load was broken off by its progress callback.";
    Fork "ForkError": Some(Kind::Error), PyRuntimeError, "A forked child uses what belongs to its parent.";
    Framework "FrameworkError": Some(Kind::Error), PyImportError, "A framework is missing, or cannot use the device.";
    Group "GroupError": Some(Kind::Error), PyRuntimeError, "A process group, or one of its ranks, cannot do as asked.";
}

static TYPES: PyOnceLock<Vec<Py<PyType>>> = PyOnceLock::new();

/// Makes the classes and adds them to the module.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    let types = TYPES.get_or_try_init(py, || make(py))?;
    for (class, made) in CLASSES.iter().zip(types) {
        module.add(class.name.trim_start_matches("tensorhold."), made)?;
    }
    Ok(())
}

fn make(py: Python<'_>) -> PyResult<Vec<Py<PyType>>> {
    let mut made: Vec<Py<PyType>> = Vec::with_capacity(CLASSES.len());
    for class in CLASSES {
        let built_in = (class.built_in)(py);
        let attributes = PyDict::new(py);
        let mut bases = vec![];
        match class.base.and_then(|base| made.get(base as usize)) {
            Some(base) => {
                let base = base.bind(py);
                let is_below = base.is_subclass(&built_in)?;
                bases.push(base.clone());
                if !is_below {
                    bases.push(built_in);
                }
            }
            None => {
                // `KeyError` would show the message quoted, and `OSError` with a number.
                attributes.set_item("__str__", built_in.getattr("__str__")?)?;
                // `BaseException` leaves out what `OSError` keeps elsewhere.
                attributes
                    .set_item("__reduce__", py.import("tensorhold._pickle")?.getattr("reduce_error")?)?;
                for name in ["operation", "path"] {
                    attributes.set_item(name, py.None())?;
                }
                bases.push(built_in);
            }
        }
        attributes.set_item("__doc__", class.doc)?;
        attributes.set_item("__module__", "tensorhold")?;
        let name = class.name.trim_start_matches("tensorhold.");
        let made_of = (name, PyTuple::new(py, bases)?, attributes);
        let class = py.get_type::<PyType>().call1(made_of)?;
        made.push(class.cast_into::<PyType>()?.unbind());
    }
    debug_assert!(CLASSES.iter().enumerate().all(|(number, class)| class.kind as usize == number));
    Ok(made)
}

/// An exception of that class.
pub(crate) fn new(py: Python<'_>, kind: Kind, message: impl Into<String>) -> PyErr {
    let made = TYPES.get(py).and_then(|types| types.get(kind as usize));
    match made {
        Some(class) => PyErr::from_type(class.bind(py).clone(), (message.into(),)),
        None => PyRuntimeError::new_err(message.into()),
    }
}

/// The exception for an error of the library.
pub(crate) fn raise(py: Python<'_>, error: Error) -> PyErr {
    let mut message = Vocabulary::Python.describe(&error);
    let mut source = error.source();
    while let Some(below) = source {
        let below_message = Vocabulary::Python.describe(below);
        if !message.contains(&below_message) {
            message += &format!(": {below_message}");
        }
        source = below.source();
    }
    let exception = new(py, kind(&error), message);
    let value = exception.value(py);
    // Only attributes: if one cannot be set, the exception says all the same.
    let (path, operation, errno) = details(&error);
    let set = || {
        if let Some(path) = path {
            value.setattr("path", path.to_string_lossy())?;
        }
        if let Some(operation) = operation {
            value.setattr("operation", operation)?;
        }
        if let Some(errno) = errno {
            value.setattr("errno", errno)?;
        }
        PyResult::Ok(())
    };
    match set() {
        Ok(()) => exception,
        Err(failed) => failed,
    }
}

fn kind(error: &Error) -> Kind {
    match error {
        Error::Io { source, .. } | Error::Target { source: Some(source), .. } => match source.kind() {
            std::io::ErrorKind::NotFound => Kind::MissingFile,
            std::io::ErrorKind::PermissionDenied => Kind::Access,
            _ => Kind::File,
        },
        Error::Read { source, .. } | Error::Write { source, .. }
            if source.kind() == std::io::ErrorKind::PermissionDenied =>
        {
            Kind::Access
        }
        Error::Read { .. } | Error::Write { .. } | Error::Space { .. } | Error::Target { .. } => Kind::File,
        Error::FileChanged { .. } => Kind::FileChanged,
        Error::NotAFile { .. }
        | Error::Checkpoint { .. }
        | Error::Index { .. }
        | Error::Header { .. }
        | Error::Bytes { .. }
        | Error::DuplicateTensor { .. }
        | Error::ShardSet { .. } => Kind::Format,
        Error::NoFiles | Error::Option { .. } | Error::Setting { .. } | Error::Backend { .. } => Kind::Option,
        Error::OverBudget { .. } | Error::InfeasibleBudget { .. } => Kind::OutOfMemory,
        Error::Cancelled { .. } => Kind::Cancelled,
        Error::UnknownTensor { .. } => Kind::MissingTensor,
        Error::Tensor { .. } => Kind::Tensor,
        Error::Device { .. } => Kind::Device,
        Error::Group { .. } => Kind::Group,
        Error::Forked { .. } => Kind::Fork,
        Error::Memory(allocator::Error::LimitReached { .. } | allocator::Error::OutOfMemory { .. }) => {
            Kind::OutOfMemory
        }
        Error::Memory(allocator::Error::Closed { .. }) => Kind::Closed,
        Error::Memory(allocator::Error::NoParts { .. }) => Kind::Option,
        Error::Memory(allocator::Error::Forked { .. }) => Kind::Fork,
        _ => Kind::Error,
    }
}

/// What of an error can be had by name: file, operation, and the system's number.
fn details(error: &Error) -> (Option<&Path>, Option<&'static str>, Option<i32>) {
    match error {
        Error::Io { operation, path, source } => (Some(path), Some(operation), source.raw_os_error()),
        Error::Read { path, source, .. } => (Some(path), Some("read"), source.raw_os_error()),
        Error::Write { path, source, .. } => (Some(path), Some("write"), source.raw_os_error()),
        Error::Space { folder, .. } => (Some(folder), Some("save"), None),
        Error::Target { path, source, .. } => {
            (Some(path), Some("save"), source.as_ref().and_then(std::io::Error::raw_os_error))
        }
        Error::NotAFile { path, .. }
        | Error::Backend { path, .. }
        | Error::Checkpoint { path, .. }
        | Error::Index { path, .. }
        | Error::Header { path, .. }
        | Error::ShardSet { path, .. }
        | Error::FileChanged { path, .. } => (Some(path), None, None),
        Error::Tensor { operation, .. }
        | Error::Device { operation, .. }
        | Error::Panicked { operation, .. }
        | Error::Forked { operation }
        | Error::Group { operation, .. } => (None, Some(operation), None),
        _ => (None, None, None),
    }
}
