//! Writing sharded sets from Python: plans, and drafts of files whose bytes Python maps and fills.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};
use tensorhold::Metadata;
use tensorhold::save::{self, Draft, Durability, Entry, PlanOptions, ShardPlan};

use crate::errors::{self, Kind, raise};
use crate::info;
use crate::interrupt::Failure;
use crate::pickle;

/// A file that is to be written: its header, and where each tensor goes.
#[pyclass(name = "_ShardPlan", module = "tensorhold._core", frozen)]
pub(crate) struct PyShardPlan {
    plan: ShardPlan,
}

#[pymethods]
impl PyShardPlan {
    fn __reduce__(&self) -> PyResult<()> {
        pickle::refuse("a ShardPlan", "it is made for this process; call plan_shards() in the other")
    }

    #[getter]
    fn path(&self) -> PathBuf {
        self.plan.path().into()
    }

    /// The names of the tensors, in the order of their bytes.
    #[getter]
    fn names(&self) -> Vec<&str> {
        self.plan.entries().iter().map(Entry::name).collect()
    }

    /// With its length before it.
    #[getter]
    fn header<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.plan.header())
    }

    /// Where each tensor lies in the file, in the order of `names`.
    #[getter]
    fn ranges(&self) -> Vec<(u64, u64)> {
        self.plan.ranges().map(|range| (range.start, range.end)).collect()
    }

    #[getter]
    fn total_bytes(&self) -> u64 {
        self.plan.total_bytes()
    }
}

/// Divides tensors, each a name, a type and a shape, among files. `shard_metadata` is given the names of a file's tensors.
#[pyfunction]
#[pyo3(signature = (tensors, paths, *, metadata, first_metadata, shard_metadata, header_align, shard_set))]
#[allow(clippy::too_many_arguments, reason = "keywords in Python")]
pub(crate) fn plan_shards(
    py: Python<'_>,
    tensors: Vec<(String, Bound<'_, PyAny>, Vec<usize>)>,
    paths: Vec<PathBuf>,
    metadata: Metadata,
    first_metadata: Metadata,
    shard_metadata: Option<Py<PyAny>>,
    header_align: u64,
    shard_set: Option<String>,
) -> PyResult<Vec<PyShardPlan>> {
    let entry = |(name, dtype, shape): (String, Bound<'_, PyAny>, Vec<usize>)| {
        Entry::new(name, info::dtype(&dtype)?, &shape).map_err(|error| raise(py, error))
    };
    let entries = tensors.into_iter().map(entry).collect::<PyResult<Vec<_>>>()?;
    let mut options =
        PlanOptions::new().metadata(metadata).first_metadata(first_metadata).header_align(header_align);
    if let Some(set) = shard_set {
        options = options.shard_set(set);
    }
    let failure = Failure::default();
    if let Some(of) = shard_metadata {
        let failure = failure.clone();
        options = options.shard_metadata(move |_, entries| {
            failure.ask(Metadata::new(), |py| {
                let names = PyList::new(py, entries.iter().map(|entry| entry.name()))?;
                of.call1(py, (names,))?.extract(py)
            })
        });
    }
    let plans = save::plan_shards(&entries, &paths, &options);
    match failure.take() {
        Some(failed) => Err(failed),
        None => Ok(plans
            .map_err(|error| raise(py, error))?
            .into_iter()
            .map(|plan| PyShardPlan { plan })
            .collect()),
    }
}

/// The names of the files of a set.
#[pyfunction]
pub(crate) fn shard_paths(py: Python<'_>, base: PathBuf, shards: usize) -> PyResult<Vec<PathBuf>> {
    save::shard_paths(base, shards).map_err(|error| raise(py, error))
}

/// Checks that files, each with the strings in its header, are all of one set, as it was written, in its order.
#[pyfunction]
pub(crate) fn validate_shard_set(py: Python<'_>, shards: Vec<(PathBuf, Metadata)>) -> PyResult<()> {
    let shards = shards.iter().map(|(path, metadata)| (path.as_path(), metadata));
    save::validate_shard_set(shards).map_err(|error| raise(py, error))
}

/// Files of their full length, with their headers, under other names. What is not committed goes when this is closed.
#[pyclass(name = "_Draft", module = "tensorhold._core", frozen)]
pub(crate) struct PyDraft {
    draft: Mutex<Option<Draft>>,
    /// Where the files are for now, in the order of the plans.
    #[pyo3(get)]
    paths: Vec<PathBuf>,
}

impl PyDraft {
    fn take(&self) -> Option<Draft> {
        self.draft.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[pymethods]
impl PyDraft {
    fn __reduce__(&self) -> PyResult<()> {
        pickle::refuse(
            "a save that is not committed",
            "its files belong to this process; commit or close it here",
        )
    }

    #[new]
    #[pyo3(signature = (plans, *, min_free_bytes=0))]
    fn new(py: Python<'_>, plans: Vec<PyRef<'_, PyShardPlan>>, min_free_bytes: u64) -> PyResult<Self> {
        let plans: Vec<_> = plans.iter().map(|plan| plan.plan.clone()).collect();
        let draft = py.detach(|| Draft::create(plans, min_free_bytes)).map_err(|error| raise(py, error))?;
        let paths = draft.temporary_paths().map(Into::into).collect();
        Ok(Self { draft: Mutex::new(Some(draft)), paths })
    }

    /// Gives the files their names, on the disk if they are to be synced.
    #[pyo3(signature = (*, synced=false))]
    fn commit(&self, py: Python<'_>, synced: bool) -> PyResult<Vec<PathBuf>> {
        let committed = "commit files: they have been committed or closed; make another draft";
        let draft = self.take().ok_or_else(|| errors::new(py, Kind::Closed, committed))?;
        let durability = if synced { Durability::Synced } else { Durability::Cached };
        py.detach(|| draft.commit(durability)).map_err(|error| raise(py, error))
    }

    /// Removes what is not committed.
    fn close(&self, py: Python<'_>) {
        let draft = self.take();
        py.detach(|| drop(draft));
    }
}
