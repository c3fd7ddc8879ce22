//! The index of a checkpoint in several files, `model.safetensors.index.json`.

use std::io::Read;
use std::path::{Component, Path, PathBuf};

use foldhash::fast::RandomState;
use indexmap::IndexMap;
use rustix::fs::OFlags;
use tensorhold_allocator::{Brief, Bytes, Quoted};

use super::catalog::{Catalog, Found};
use super::foreign;
use super::json::for_each_pair_of;
use crate::error::{Error, Result};
use crate::regular::{self, NotOpened};

/// An index: which tensor is in which file.
///
/// Many tensors have few files. Only those are needed before the load begins, so the text is read once for them, and once
/// more when all is compared with what the files hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Index {
    path: PathBuf,
    text: String,
    /// The files, in the index's folder and in the order of their names, each with one of its tensors.
    files: IndexMap<String, String, RandomState>,
}

/// No index is longer: that of a million tensors takes a third of it.
const MAX_BYTES: u64 = 256 << 20;

/// Reads the text of an index.
///
/// # Errors
/// When it cannot be read, is not a regular file, or is longer than [`MAX_BYTES`].
fn read_text(path: &Path) -> Result<Vec<u8>> {
    // Some of the kernel's own files are regular, and have readers wait for more.
    let (file, metadata) = regular::open(path, OFlags::NONBLOCK).map_err(|error| match error {
        NotOpened::System(source) => Error::Io { operation: "read index", path: path.into(), source },
        NotOpened::NotRegular(what) => {
            let problem = format!("it is {what}, expected a file; name an index, or the files without one");
            Error::Index { path: path.into(), problem }
        }
    })?;
    let limited = |length: u64, more: &str| match length <= MAX_BYTES {
        true => Ok(()),
        false => {
            let problem = format!(
                "it has {more}{}, expected at most {}; fetch it again, or load the files by name",
                Bytes(length).beside(&[MAX_BYTES]),
                Bytes(MAX_BYTES).beside(&[length])
            );
            Err(Error::Index { path: path.into(), problem })
        }
    };
    limited(metadata.len(), "")?;
    // Some files have more bytes than the system says before they are read: the kernel's own, or one that is being written.
    let mut text = Vec::with_capacity(metadata.len() as usize);
    let read = file.take(MAX_BYTES + 1).read_to_end(&mut text);
    read.map_err(|source| Error::Io { operation: "read index", path: path.into(), source })?;
    limited(text.len() as u64, "at least ")?;
    Ok(text)
}

/// Where the names are.
const WEIGHT_MAP: &str = "weight_map";

impl Index {
    /// Reads an index and checks that the files it names are there.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let index = Self::parse(path, read_text(path)?)?;
        for (file, tensor) in &index.files {
            let shard = index.path_of(file);
            if !shard.exists() {
                let problem = format!(
                    "it says that tensor {} is in {}, which is not in the folder; \
                     the download may be incomplete: fetch the missing file",
                    Quoted(tensor),
                    Quoted(file)
                );
                return Err(index.error(problem));
            }
        }
        Ok(index)
    }

    fn parse(path: &Path, bytes: Vec<u8>) -> Result<Self> {
        let error = |problem| Error::Index { path: path.into(), problem };
        let damaged = |bytes: &[u8], error: String| match foreign::identify_index(bytes) {
            Some(found) => found.instead_of("the index of a checkpoint (JSON)"),
            None => format!("it is not the JSON object that it should be: {}; fetch it again", Brief(error)),
        };
        let text =
            String::from_utf8(bytes).map_err(|utf8| error(damaged(utf8.as_bytes(), utf8.to_string())))?;
        let mut files: IndexMap<String, String, RandomState> = IndexMap::default();
        let mut last = None;
        for_each_pair_of(&text, WEIGHT_MAP, |tensor, file| {
            // Neighbours are mostly in the same file.
            if last.as_ref() != Some(&file) {
                if !files.contains_key(&*file) {
                    files.insert(file.clone().into_owned(), tensor.into_owned());
                }
                last = Some(file);
            }
        })
        .map_err(|json| error(damaged(text.as_bytes(), json.to_string())))?;
        files.sort_unstable_keys();
        for (file, tensor) in &files {
            // I5: an index must not reach out of its folder.
            let inside = Path::new(file).components().all(|part| matches!(part, Component::Normal(_)));
            if !inside || file.is_empty() {
                let expected = "expected the name of a file in the index's folder";
                return Err(error(format!(
                    "tensor {} is in {}, {expected}; do not trust this index",
                    Quoted(tensor),
                    Quoted(file)
                )));
            }
        }
        Ok(Self { path: path.into(), text, files })
    }

    /// The paths of the files that the index names, in order.
    pub(crate) fn paths(&self) -> impl Iterator<Item = PathBuf> {
        self.files.keys().map(|file| self.path_of(file))
    }

    fn path_of(&self, file: &str) -> PathBuf {
        self.path.with_file_name(file)
    }

    /// Checks that each tensor is named once and is where the index says. Tensors that the index does not name are fine:
    /// the files are what is loaded, and they are checked by themselves.
    ///
    /// # Errors
    /// When a tensor is named twice, or is in another file, or in none.
    pub(crate) fn check(&self, catalog: &mut Catalog<'_>) -> Result<()> {
        catalog.begin();
        let numbers = catalog.numbers(self.files.keys().map(|file| self.path_of(file)));
        let mut wrong = None;
        let read = for_each_pair_of(&self.text, WEIGHT_MAP, |tensor, file| {
            if wrong.is_some() {
                return;
            }
            let number = self.files.get_index_of(&*file).and_then(|file| *numbers.get(file)?);
            let actual = match catalog.named(&tensor) {
                Found::In(actual) if Some(actual) == number => return,
                Found::Named => {
                    wrong = Some(format!(
                        "the key {} is there twice, expected once; fetch it again",
                        Quoted(tensor)
                    ));
                    return;
                }
                Found::In(actual) => format!("in {:?}", catalog.path_of(actual).unwrap_or(Path::new(""))),
                Found::Nowhere => "in no file".into(),
            };
            wrong = Some(format!(
                "it says that tensor {} is in {}, but it is {actual}; \
                 index and files do not belong together: fetch them again, or load the files by name",
                Quoted(tensor),
                Quoted(file)
            ));
        });
        let unread = |error| format!("it is not the JSON object that it was: {}", Brief(error));
        match wrong.or(read.err().map(unread)) {
            Some(problem) => Err(self.error(problem)),
            None => Ok(()),
        }
    }

    /// The error for an index that is wrong.
    pub(crate) fn error(&self, problem: String) -> Error {
        Error::Index { path: self.path.clone(), problem }
    }
}
