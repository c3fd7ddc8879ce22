//! The index of a checkpoint in several files, `model.safetensors.index.json`.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Component, Path, PathBuf};

use foldhash::fast::RandomState;
use serde::Deserialize;

use super::catalog::Catalog;
use super::duplicates::find_duplicate;
use crate::error::{Error, Result};

/// An index: which tensor is in which file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Index {
    path: PathBuf,
    /// Tensor to file; the files are in the index's folder.
    weight_map: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Parsed {
    weight_map: BTreeMap<String, String>,
}

impl Index {
    /// Reads an index and checks that the files it names are there.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).map_err(|source| Error::Io {
            operation: "read index",
            path: path.into(),
            source,
        })?;
        let index = Self::parse(path, &bytes)?;
        for (file, tensor) in index.files() {
            let shard = index.path_of(file);
            if !shard.exists() {
                let problem = format!(
                    "it says that tensor {tensor:?} is in {file:?}, which is not in the folder; \
                     the download may be incomplete: fetch the missing file"
                );
                return Err(index.error(problem));
            }
        }
        Ok(index)
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let error = |problem| Error::Index { path: path.into(), problem };
        let damaged = |error| format!("it is not the JSON object that it should be: {error}; fetch it again");
        let text = std::str::from_utf8(bytes).map_err(|utf8| error(damaged(utf8.to_string())))?;
        let twice = find_duplicate(text).map_err(|json| error(damaged(json.to_string())))?;
        if let Some(key) = twice {
            return Err(error(format!("the key {key:?} is there twice, expected once; fetch it again")));
        }
        let parsed: Parsed = serde_json::from_str(text).map_err(|json| error(damaged(json.to_string())))?;
        let index = Self { path: path.into(), weight_map: parsed.weight_map };
        for (file, tensor) in index.files() {
            // I5: an index must not reach out of its folder.
            let inside = Path::new(file).components().all(|part| matches!(part, Component::Normal(_)));
            if !inside || file.is_empty() {
                let expected = "expected the name of a file in the index's folder";
                return Err(error(format!(
                    "tensor {tensor:?} is in {file:?}, {expected}; do not trust this index"
                )));
            }
        }
        Ok(index)
    }

    /// The files that the index names, each once and in order, each with one of its tensors.
    fn files(&self) -> BTreeMap<&str, &str> {
        self.weight_map.iter().map(|(tensor, file)| (file.as_str(), tensor.as_str())).collect()
    }

    /// The paths of the files that the index names, in order.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.files().into_keys().map(|file| self.path_of(file)).collect()
    }

    fn path_of(&self, file: &str) -> PathBuf {
        self.path.with_file_name(file)
    }

    /// Checks that each tensor is where the index says. Tensors that the index does not name are fine: the files are
    /// what is loaded, and they are checked by themselves.
    ///
    /// # Errors
    /// When a tensor is in another file, or in none.
    pub(crate) fn check(&self, catalog: &Catalog<'_>) -> Result<()> {
        let paths: HashMap<&str, PathBuf, RandomState> =
            self.files().into_keys().map(|file| (file, self.path_of(file))).collect();
        for (tensor, file) in &self.weight_map {
            let actual = catalog.file_of(tensor);
            if actual != paths.get(file.as_str()).map(PathBuf::as_path) {
                let actual = actual.map_or("in no file".into(), |path| format!("in {path:?}"));
                let problem = format!(
                    "it says that tensor {tensor:?} is in {file:?}, but it is {actual}; \
                     index and files do not belong together: fetch them again, or load the files by name"
                );
                return Err(self.error(problem));
            }
        }
        Ok(())
    }

    fn error(&self, problem: String) -> Error {
        Error::Index { path: self.path.clone(), problem }
    }
}
