//! The index of a checkpoint in several files, `model.safetensors.index.json`.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use foldhash::fast::RandomState;
use indexmap::IndexMap;
use serde::{Deserialize, Deserializer};

use super::catalog::Catalog;
use super::json::for_each_pair;
use crate::error::{Error, Result};

/// An index: which tensor is in which file.
///
/// Many tensors have few files and names that one string holds, so that a long index is read quickly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Index {
    path: PathBuf,
    map: WeightMap,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct WeightMap {
    /// The files, in the index's folder, each with the place in `tensors` of the first that is in it.
    files: IndexMap<String, usize, RandomState>,
    /// The tensors' names, one after the other.
    names: String,
    /// By tensor: its name's place in `names`, and its file's in `files`.
    tensors: Vec<(Range<usize>, usize)>,
}

/// What an index file holds, as far as it matters.
#[derive(Deserialize)]
struct Parsed {
    weight_map: WeightMap,
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
        let parsed: Parsed = serde_json::from_str(text).map_err(|json| error(damaged(json.to_string())))?;
        let index = Self { path: path.into(), map: parsed.weight_map };
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
        self.map.files.iter().map(|(file, &first)| (file.as_str(), self.map.name(first))).collect()
    }

    /// The paths of the files that the index names, in order.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.files().into_keys().map(|file| self.path_of(file)).collect()
    }

    fn path_of(&self, file: &str) -> PathBuf {
        self.path.with_file_name(file)
    }

    /// Checks that each tensor is named once and is where the index says. Tensors that the index does not name are fine:
    /// the files are what is loaded, and they are checked by themselves.
    ///
    /// # Errors
    /// When a tensor is named twice, or is in another file, or in none.
    pub(crate) fn check(&self, catalog: &Catalog<'_>) -> Result<()> {
        let files: Vec<(&String, PathBuf)> =
            self.map.files.keys().map(|file| (file, self.path_of(file))).collect();
        let mut seen: HashSet<&str, RandomState> =
            HashSet::with_capacity_and_hasher(self.map.tensors.len(), RandomState::default());
        for (place, &(_, file)) in self.map.tensors.iter().enumerate() {
            let tensor = self.map.name(place);
            if !seen.insert(tensor) {
                let problem = format!("the key {tensor:?} is there twice, expected once; fetch it again");
                return Err(self.error(problem));
            }
            let (actual, (file, path)) = (catalog.file_of(tensor), &files[file]);
            if actual != Some(&**path) {
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

impl WeightMap {
    /// The name of a tensor, by its place.
    fn name(&self, place: usize) -> &str {
        &self.names[self.tensors[place].0.clone()]
    }

    fn push(&mut self, tensor: &str, file: &str) {
        let file = self
            .files
            .get_index_of(file)
            .unwrap_or_else(|| self.files.insert_full(file.to_owned(), self.tensors.len()).0);
        let start = self.names.len();
        self.names.push_str(tensor);
        self.tensors.push((start..self.names.len(), file));
    }
}

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut map = Self::default();
        for_each_pair(deserializer, |tensor, file| map.push(&tensor, &file))?;
        Ok(map)
    }
}
