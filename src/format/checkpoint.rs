//! Finding the files of a checkpoint.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::index::Index;
use crate::error::{Error, Result};

/// The files of a checkpoint.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Shards {
    pub(crate) files: Vec<PathBuf>,
    pub(crate) index: Option<Index>,
}

const INDEX: &str = "model.safetensors.index.json";
const INDEX_SUFFIX: &str = ".safetensors.index.json";
const FILE_SUFFIX: &str = ".safetensors";

/// Finds the files that `path` stands for: a single file; an index (by its ending, `.json`) and the files it names; a
/// folder, by the index in it, or else all safetensors files in it in the order of their names. Links are followed.
///
/// # Errors
/// When the path or a file is missing or unreadable, the index is wrong, or the folder holds no checkpoint or several
/// indexes of which none is `model.safetensors.index.json`.
pub(crate) fn resolve(path: &Path) -> Result<Shards> {
    let metadata = fs::metadata(path).map_err(|source| match fs::symlink_metadata(path) {
        Ok(_) if source.kind() == io::ErrorKind::NotFound => {
            let target = fs::read_link(path).unwrap_or_default();
            not_found(
                path,
                format!("it is a link to {target:?}, which is not there; fetch the file it stands for"),
            )
        }
        _ => Error::Io { operation: "open", path: path.into(), source },
    })?;
    if metadata.is_dir() {
        return in_folder(path);
    }
    if path.extension().is_some_and(|extension| extension == "json") {
        return by_index(path);
    }
    Ok(Shards { files: vec![path.into()], index: None })
}

fn in_folder(folder: &Path) -> Result<Shards> {
    let read_error = |source| Error::Io { operation: "list", path: folder.into(), source };
    let (mut files, mut indexes) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(folder).map_err(read_error)? {
        let path = entry.map_err(read_error)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(INDEX_SUFFIX) {
            indexes.push(path);
        } else if name.ends_with(FILE_SUFFIX) {
            files.push(path);
        }
    }
    files.sort();
    indexes.sort();
    if let Some(index) = indexes.iter().find(|index| index.ends_with(INDEX)) {
        return by_index(index);
    }
    match &indexes[..] {
        [] if files.is_empty() => {
            let problem =
                "the folder holds no *.safetensors file and no index; name the folder that holds the weights";
            Err(not_found(folder, problem.into()))
        }
        [] => Ok(Shards { files, index: None }),
        [index] => by_index(index),
        several => {
            Err(not_found(folder, format!("the folder holds several indexes, {several:?}; name one of them")))
        }
    }
}

fn by_index(path: &Path) -> Result<Shards> {
    let index = Index::read(path)?;
    Ok(Shards { files: index.paths(), index: Some(index) })
}

fn not_found(path: &Path, problem: String) -> Error {
    Error::Checkpoint { path: path.into(), problem }
}
