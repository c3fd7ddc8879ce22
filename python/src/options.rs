//! From arguments in Python to a [`Loader`].

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyMapping, PyString};
use tensorhold::allocator::{Quoted, RegionParts};
use tensorhold::{Backend, BackendKind, Cut, Device, Loader, Pool};

use crate::arguments::{self, Whole, flag, got, number, text, wrong_type};
use crate::device;
use crate::errors::{self, Kind, raise};
use crate::info::{self, PyInfo};
use crate::interrupt::{Failure, Watch};
use crate::pool::PyPool;

/// The names of the options, for what is said of one that is none of them.
const NAMES: [&str; 12] = [
    "select",
    "dtype",
    "cuts",
    "backend",
    "memory_budget",
    "threads",
    "staging_bytes",
    "pool",
    "parts",
    "count_conversions",
    "progress",
    "variant",
];

const THREADS: Whole = Whole { range: "1 to 1024", ..Whole::OPTION };
const STAGING: Whole = Whole { range: "131072 to 2^64 - 1", ..Whole::OPTION };

/// A loader, and what ends its load from Python.
pub(crate) struct Asked {
    pub(crate) loader: Loader,
    pub(crate) failure: Failure,
    /// Whether a pool was named.
    pub(crate) has_pool: bool,
    missing: Missing,
}

/// Names that were selected and that no header has had by now: none is left once all have been read, or it is an error.
#[derive(Debug, Clone, Default)]
pub(crate) struct Missing(Arc<Mutex<HashSet<String>>>);

impl Missing {
    fn names(&self) -> MutexGuard<'_, HashSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_any(&self) -> bool {
        !self.names().is_empty()
    }

    pub(crate) fn error(&self, py: Python<'_>) -> Option<PyErr> {
        let names = self.names();
        let first = names.iter().min()?;
        let message = format!(
            "select tensor {}: no such tensor, and {} of the selected are missing in all; tensorhold.inspect lists the names",
            Quoted(first),
            names.len()
        );
        Some(errors::new(py, Kind::MissingTensor, message))
    }
}

impl Asked {
    /// A loader of these files onto that device, with these options.
    pub(crate) fn new(
        py: Python<'_>,
        paths: &Bound<'_, PyAny>,
        device: Option<&Bound<'_, PyAny>>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let device = device::open(py, device)?;
        let loader = with_paths(py, Loader::new(device).region_parts(RegionParts::Auto), paths)?;
        let mut asked =
            Self { loader, failure: Failure::default(), has_pool: false, missing: Missing::default() };
        let mut callback = None;
        for (name, value) in options.into_iter().flatten() {
            let name = arguments::utf8("the name of an option", &name, "a str")?;
            if value.is_none() && NAMES.contains(&&*name) {
                continue;
            }
            match &*name {
                "variant" => {
                    let expected = "a part of a file's name, a str such as fp16";
                    let variant = arguments::utf8("option variant", &value, expected)?;
                    asked.set(|loader| Ok(loader.variant(variant)))?;
                }
                "select" => asked.select(&value)?,
                "dtype" => asked.dtype(value)?,
                "cuts" => asked.cuts(value)?,
                "backend" => asked.set(|loader| Ok(loader.backend(backend(&value)?)))?,
                "threads" => {
                    asked.set(|loader| Ok(loader.threads(number("option threads", &value, &THREADS)?)))?
                }
                "memory_budget" => asked.set(|loader| {
                    Ok(loader.memory_budget(number("option memory_budget", &value, &Whole::OPTION)?))
                })?,
                "staging_bytes" => asked.set(|loader| {
                    Ok(loader.staging_bytes(number("option staging_bytes", &value, &STAGING)?))
                })?,
                "pool" => {
                    let pool = value.cast::<PyPool>();
                    let pool =
                        pool.map_err(|_| wrong_type("option pool", &value, "a tensorhold.Pool"))?.get();
                    pool.check(py, "load into a pool")?;
                    asked.set(|loader| Ok(loader.pool(&pool.pool)))?;
                    asked.has_pool = true;
                }
                "parts" => {
                    let parts =
                        if flag("option parts", &value)? { RegionParts::Require } else { RegionParts::Whole };
                    asked.set(|loader| Ok(loader.region_parts(parts)))?;
                }
                "count_conversions" if flag("option count_conversions", &value)? => {
                    asked.set(|loader| Ok(loader.count_conversions()))?
                }
                "count_conversions" => {}
                "progress" if value.is_callable() => callback = Some(value.unbind()),
                // The functions that can show a bar have taken True for it.
                "progress" if value.is_instance_of::<PyBool>() => {}
                "progress" => {
                    let expected = "True for a bar, or a function that is given a Progress";
                    return Err(wrong_type("option progress", &value, expected));
                }
                _ => return Err(unknown(&name)),
            }
        }
        let tells = callback.is_some() || asked.missing.is_any();
        let mut watch = Watch::new(asked.failure.clone(), asked.missing.clone(), callback);
        asked.set(|loader| {
            Ok(match tells {
                true => loader.progress(move |progress| watch.tell(progress)),
                false => loader.interrupt(move || watch.is_interrupted()),
            })
        })?;
        Ok(asked)
    }

    /// Loads into that pool.
    pub(crate) fn place_in(&mut self, pool: &Pool) -> PyResult<()> {
        self.set(|loader| Ok(loader.pool(pool)))
    }

    fn set(&mut self, set: impl FnOnce(Loader) -> PyResult<Loader>) -> PyResult<()> {
        let loader = std::mem::replace(&mut self.loader, Loader::new(Device::host()));
        self.loader = set(loader)?;
        Ok(())
    }

    /// By a rule, or by names, of which each has to be there.
    fn select(&mut self, wanted: &Bound<'_, PyAny>) -> PyResult<()> {
        if wanted.is_callable() {
            let (failure, rule) = (self.failure.clone(), wanted.clone().unbind());
            let wants = move |info: &tensorhold::TensorInfo| {
                failure.ask(false, |py| rule.call1(py, (PyInfo(info.clone()),))?.is_truthy(py))
            };
            return self.set(|loader| Ok(loader.select(wants)));
        }
        if wanted.is_instance_of::<PyString>() {
            let message =
                "option select: got a str, expected a rule or a collection of names; put the name in a list";
            return Err(errors::new(wanted.py(), Kind::Option, message));
        }
        if wanted.try_iter().is_err() {
            return Err(wrong_type("option select", wanted, "a rule or a collection of names"));
        }
        let names: HashSet<String> = arguments::names("option select", wanted)?.into_iter().collect();
        self.missing = Missing(Arc::new(Mutex::new(names.clone())));
        let missing = self.missing.clone();
        self.set(|loader| {
            Ok(loader.select(move |info| {
                missing.names().remove(&*info.name);
                names.contains(&*info.name)
            }))
        })
    }

    fn dtype(&mut self, wanted: Bound<'_, PyAny>) -> PyResult<()> {
        // Types of NumPy and JAX can be called, too.
        if !wanted.is_callable() || wanted.is_instance_of::<pyo3::types::PyType>() {
            let dtype = info::target("option dtype", &wanted)?;
            return self.set(|loader| Ok(loader.dtype(dtype)));
        }
        if let Ok(dtype) = info::dtype(&wanted) {
            return self.set(|loader| Ok(loader.dtype(dtype)));
        }
        let (failure, rule) = (self.failure.clone(), wanted.unbind());
        let rule = move |info: &tensorhold::TensorInfo| {
            failure.ask(None, |py| {
                let answer = rule.call1(py, (PyInfo(info.clone()),))?;
                let subject = || format!("option dtype, the rule's answer for tensor {}", Quoted(&info.name));
                if answer.is_none(py) {
                    Ok(None)
                } else {
                    info::target(&subject(), answer.bind(py)).map(Some)
                }
            })
        };
        self.set(|loader| Ok(loader.dtype_by(rule)))
    }

    fn cuts(&mut self, wanted: Bound<'_, PyAny>) -> PyResult<()> {
        if let Ok(by_name) = wanted.cast::<PyMapping>() {
            for item in by_name.items()? {
                let (name, cuts) = item.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>()?;
                let name = text("option cuts, a key in it", &name, "the name of a tensor, a str")?;
                let subject = format!("option cuts of tensor {}", Quoted(&name));
                for cut in info::cuts(&subject, &cuts)? {
                    self.set(|loader| Ok(loader.cut(&*name, cut)))?;
                }
            }
            return Ok(());
        }
        if !wanted.is_callable() {
            let message = format!(
                "option cuts: got {}, expected a dict from names to cuts, or a rule; see tensorhold.Cut",
                got(&wanted)
            );
            return Err(errors::new(wanted.py(), Kind::Option, message));
        }
        let (failure, rule) = (self.failure.clone(), wanted.unbind());
        let rule = move |info: &tensorhold::TensorInfo| -> Vec<Cut> {
            failure.ask(Vec::new(), |py| {
                let answer = rule.call1(py, (PyInfo(info.clone()),))?;
                let subject = format!("option cuts, the rule's answer for tensor {}", Quoted(&info.name));
                info::cuts(&subject, answer.bind(py))
            })
        };
        self.set(|loader| Ok(loader.cut_by(rule)))
    }

    /// Lets the load run without the interpreter, and says what ended it.
    pub(crate) fn run<T: Send>(
        self,
        py: Python<'_>,
        load: impl FnOnce(Loader) -> tensorhold::Result<T> + Send,
    ) -> PyResult<T> {
        let Self { loader, failure, missing, .. } = self;
        let loaded = py.detach(|| load(loader));
        let failed = failure.take().or_else(|| loaded.is_ok().then(|| missing.error(py)).flatten());
        match failed {
            Some(failed) => {
                py.detach(|| drop(loaded));
                Err(failed)
            }
            None => loaded.map_err(|error| raise(py, error)),
        }
    }
}

/// A loader of one path, or several.
fn with_paths(py: Python<'_>, loader: Loader, paths: &Bound<'_, PyAny>) -> PyResult<Loader> {
    let checkpoint = |loader: Loader, path: PathBuf| {
        py.detach(|| loader.checkpoint(path)).map_err(|error| raise(py, error))
    };
    path_list(py, "option paths", paths)?.into_iter().try_fold(loader, checkpoint)
}

/// One path, or several, of the argument that messages call `subject`.
#[pyfunction]
pub(crate) fn path_list(py: Python<'_>, subject: &str, paths: &Bound<'_, PyAny>) -> PyResult<Vec<PathBuf>> {
    if let Some(path) = arguments::as_path(paths) {
        return Ok(vec![path]);
    }
    let wrong = |found: &Bound<'_, PyAny>| {
        let remedy = match found.hasattr("read") {
            Ok(true) => "pass the file's name",
            _ => "name a file, an index or a folder",
        };
        let message = format!(
            "{subject}: got {}, expected a path or several, each a str or os.PathLike; {remedy}",
            got(found)
        );
        errors::new(py, Kind::Option, message)
    };
    // Texts, bytes and open files can be iterated over, too, and are no lists of paths.
    let is_text = paths.is_instance_of::<PyString>() || paths.is_instance_of::<PyBytes>();
    let is_single = is_text || paths.hasattr("read")?;
    let several = paths.try_iter().ok().filter(|_| !is_single);
    let mut found = Vec::new();
    for path in several.ok_or_else(|| wrong(paths))? {
        let path = path?;
        found.push(arguments::as_path(&path).ok_or_else(|| wrong(&path))?);
    }
    Ok(found)
}

fn backend(named: &Bound<'_, PyAny>) -> PyResult<Backend> {
    let name = text("option backend", named, "the name of a backend, a str")?;
    // Those of `safetensors`, which are hints here: how files are read does not change what is read.
    if ["auto", "mmap", "pread"].contains(&&*name) {
        return Ok(Backend::Auto);
    }
    let kind = BackendKind::ALL.into_iter().find(|kind| kind.name() == name);
    kind.map(Backend::Require).ok_or_else(|| {
        let known = BackendKind::ALL.map(BackendKind::name).join(", ");
        let message =
            format!("option backend: got {}, expected auto, {known}, or mmap or pread for auto; leave it out for auto", Quoted(name));
        errors::new(named.py(), Kind::Option, message)
    })
}

fn unknown(name: &str) -> PyErr {
    PyTypeError::new_err(format!("there is no option {name:?}; there are {}", NAMES.join(", ")))
}
