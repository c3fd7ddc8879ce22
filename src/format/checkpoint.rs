//! Finding the files of a checkpoint.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Which files a checkpoint has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Shards {
    /// These.
    Files(Vec<PathBuf>),
    /// Those that the index names: probably the ones `near` it, which have its name.
    Index { path: PathBuf, near: Vec<PathBuf> },
}

impl Shards {
    /// The files that it has, as far as that is known before an index is read.
    pub(crate) fn likely(&self) -> &[PathBuf] {
        match self {
            Self::Files(files) | Self::Index { near: files, .. } => files,
        }
    }
}

const INDEX: &str = "model.safetensors.index.json";
const INDEX_SUFFIX: &str = ".safetensors.index.json";
const FILE_SUFFIX: &str = ".safetensors";

/// Finds what `path` stands for: a single file; an index, by its ending, `.json`; a folder, by the index in it, or else all
/// safetensors files in it in the order of their names. Links are followed.
///
/// # Errors
/// When the path is missing or unreadable, or the folder holds no checkpoint or several indexes of which none is
/// `model.safetensors.index.json`.
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
        // A folder that cannot be listed may hold files that can be opened.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let files = list(folder.unwrap_or(Path::new("."))).map_or_else(|_| Vec::new(), |(files, _)| files);
        let files = files.iter().map(|file| path.with_file_name(file.file_name().unwrap_or_default()));
        return Ok(by_index(path.into(), files.collect()));
    }
    Ok(Shards::Files(vec![path.into()]))
}

/// The safetensors files in a folder and the indexes, in the order of their names.
fn list(folder: &Path) -> io::Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let (mut files, mut indexes) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(INDEX_SUFFIX) {
            indexes.push(path);
        } else if name.ends_with(FILE_SUFFIX) {
            files.push(path);
        }
    }
    files.sort();
    indexes.sort();
    Ok((files, indexes))
}

fn in_folder(folder: &Path) -> Result<Shards> {
    let (files, mut indexes) =
        list(folder).map_err(|source| Error::Io { operation: "list", path: folder.into(), source })?;
    if let Some(index) = indexes.iter().position(|index| index.ends_with(INDEX)) {
        return Ok(by_index(indexes.swap_remove(index), files));
    }
    match &indexes[..] {
        [] if files.is_empty() => {
            let problem =
                "the folder holds no *.safetensors file and no index; name the folder that holds the weights";
            Err(not_found(folder, problem.into()))
        }
        [] => Ok(Shards::Files(files)),
        [index] => Ok(by_index(index.clone(), files)),
        several => {
            Err(not_found(folder, format!("the folder holds several indexes, {several:?}; name one of them")))
        }
    }
}

/// An index in whose folder `files` are.
fn by_index(path: PathBuf, mut files: Vec<PathBuf>) -> Shards {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let index = name(&path);
    let stem = index.strip_suffix(INDEX_SUFFIX);
    files.retain(|file| stem.is_some_and(|stem| name(file).starts_with(stem)));
    Shards::Index { path, near: files }
}

fn not_found(path: &Path, problem: String) -> Error {
    Error::Checkpoint { path: path.into(), problem }
}
