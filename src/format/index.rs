//! The index of a checkpoint in several files, `model.safetensors.index.json`.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use foldhash::fast::RandomState;
use indexmap::IndexMap;
use rustix::fs::OFlags;
use serde::de::IgnoredAny;
use tensorhold_allocator::{Brief, Bytes, Quoted};

use super::catalog::{Catalog, Found};
use super::checkpoint::{LeftOut, List, Listing, json_without_weights, with_link};
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
        NotOpened::System(source) => {
            with_link(Error::Io { operation: "read index", path: path.into(), source })
        }
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
    /// Reads an index and checks that the files it names are there: by the listing of its folder, and by a look at those that are not in it.
    pub(crate) fn read(path: &Path, listing: &Listing) -> Result<Self> {
        let index = Self::parse(path, read_text(path)?, listing)?;
        // A dangling link is an error when it is opened.
        let is_missing = |file: &str| !listing.has(file) && index.path_of(file).symlink_metadata().is_err();
        let missing: Vec<_> = index.files.iter().filter(|(file, _)| is_missing(file)).collect();
        let unfinished = || listing.unfinished(index.files.keys().map(|file| &**file));
        match index.missing(&missing, listing).or_else(unfinished) {
            Some(problem) => Err(index.error(problem)),
            None => Ok(index),
        }
    }

    /// What is wrong where files, each with one of its tensors, are missing.
    fn missing(&self, missing: &[(&String, &String)], listing: &Listing) -> Option<String> {
        let (&(first, tensor), count) = (missing.first()?, missing.len());
        let (first, tensor) = (Quoted(first), Quoted(tensor));
        let listed = List::new(missing.iter().map(|(file, _)| &***file));
        if let Some((file, _)) = missing.iter().find(|(file, _)| file.contains('\\')) {
            return Some(format!(
                "it names {}, which is not in the folder; `\\` is part of a name here and separates no folders, as it does on Windows: write \
                 `/` in its place",
                Quoted(file)
            ));
        }
        let remedy = "the download may be incomplete: fetch the rest";
        Some(match self.files.len() {
            all if all == count => {
                let others: Vec<_> = listing.names().collect();
                let others = match others.is_empty() {
                    true => String::new(),
                    false => format!(
                        ", or name others that are there, {}",
                        List::new(others.iter().map(|name| &**name))
                    ),
                };
                format!(
                    "none of the files that it names is in the folder: {count} missing, {listed}, the first of them for tensor \
                     {tensor}; perhaps only the index was fetched, or it belongs to another folder: fetch its files{others}"
                )
            }
            _ if count == 1 => {
                format!("it says that tensor {tensor} is in {first}, which is not in the folder; {remedy}")
            }
            all => {
                format!("{count} of the {all} files that it names are not in the folder: {listed}; {remedy}")
            }
        })
    }

    fn parse(path: &Path, bytes: Vec<u8>, listing: &Listing) -> Result<Self> {
        let error = |problem| Error::Index { path: path.into(), problem };
        let damaged = |bytes: &[u8], error: String| match foreign::identify_index(bytes) {
            Some(found) => found.instead_of("the index of a checkpoint (JSON)"),
            None => format!("it is not the JSON object that it should be: {}; fetch it again", Brief(error)),
        };
        if [&b"\xef\xbb\xbf"[..], b"\xff\xfe", b"\xfe\xff"].iter().any(|mark| bytes.starts_with(mark)) {
            return Err(error(
                "it begins with a byte order mark (BOM), expected JSON in UTF-8 without one; save it so, or fetch it again".into(),
            ));
        }
        let text =
            String::from_utf8(bytes).map_err(|utf8| error(damaged(utf8.as_bytes(), utf8.to_string())))?;
        let mut files: IndexMap<String, String, RandomState> = IndexMap::default();
        let mut last = None;
        // I5: an index must not reach out of its folder.
        let mut outside = None;
        let is_index = for_each_pair_of(&text, WEIGHT_MAP, |tensor, file| {
            // Neighbours are mostly in the same file.
            if last.as_ref() != Some(&file) {
                match inside(&file) {
                    Some(file) if files.contains_key(&*file) => {}
                    Some(file) => _ = files.insert(file.into_owned(), tensor.into_owned()),
                    None => _ = outside.get_or_insert((file.clone(), tensor)),
                }
                last = Some(file);
            }
        });
        match is_index {
            Ok(true) => {}
            Ok(false) => return Err(without_map(path, &text)),
            Err(_)
                if text.trim_start().starts_with('[')
                    && serde_json::from_str::<IgnoredAny>(&text).is_ok() =>
            {
                return Err(without_map(path, &text));
            }
            Err(json) => return Err(error(damaged(text.as_bytes(), json.to_string()))),
        }
        if let Some((file, tensor)) = outside {
            return Err(error(format!(
                "tensor {} is in {}, expected the name of a file in the index's folder; do not trust this index",
                Quoted(tensor),
                Quoted(file)
            )));
        }
        if files.is_empty() {
            return Err(error(
                "its \"weight_map\" is empty, expected tensors and their files; fetch it again".into(),
            ));
        }
        if let Some(file) = files.keys().find(|file| is_pickle(file))
            && !files.keys().any(|file| file.ends_with(".safetensors"))
        {
            return Err(error(format!(
                "it is an index of files of torch, such as {}, expected one of safetensors files; {}",
                Quoted(file),
                instead_of_torch(listing)
            )));
        }
        files.sort_unstable_keys();
        Ok(Self { path: path.into(), text, files })
    }

    /// The paths of the files that the index names, in order.
    pub(crate) fn paths(&self) -> impl Iterator<Item = PathBuf> {
        self.files.keys().map(|file| self.path_of(file))
    }

    fn path_of(&self, file: &str) -> PathBuf {
        self.path.with_file_name(file)
    }

    /// The number of a file in the order of [`paths`](Self::paths), by what the index calls it.
    fn number_of(&self, file: &str) -> Option<usize> {
        self.files.get_index_of(&*inside(file)?)
    }

    /// The files in the index's folder that it does not name.
    pub(crate) fn left_out(&self, listing: &Listing) -> Vec<LeftOut> {
        let named: HashSet<PathBuf, RandomState> = self.paths().collect();
        left_out(&self.path, listing.paths().filter(|path| !named.contains(path)))
    }

    /// The numbers of the files that these tensors are in, by what the index says.
    pub(crate) fn files_of<'a>(
        &self,
        tensors: &HashSet<&'a str, RandomState>,
    ) -> HashMap<&'a str, usize, RandomState> {
        let mut found = HashMap::default();
        // It has been read before. What is wrong with a tensor that it names twice is said when it is checked.
        let _ = for_each_pair_of(&self.text, WEIGHT_MAP, |tensor, file| {
            if let Some((tensor, number)) = tensors.get(&*tensor).zip(self.number_of(&file)) {
                found.entry(*tensor).or_insert(number);
            }
        });
        found
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
            let number = self.number_of(&file).and_then(|file| *numbers.get(file)?);
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

/// Files that an index leaves out.
pub(crate) fn left_out(index: &Path, files: impl Iterator<Item = PathBuf>) -> Vec<LeftOut> {
    let name = index.file_name().unwrap_or_default().to_string_lossy();
    let why = format!("the index {} does not name it", Quoted(name));
    files.map(|path| LeftOut { path, why: why.clone() }).collect()
}

/// The name of a file in the index's folder, or in a folder there, without components that mean nothing; `None` for another.
fn inside(file: &str) -> Option<Cow<'_, str>> {
    if !file.contains('/') && !matches!(file, "" | "." | "..") {
        return Some(file.into());
    }
    let mut names = Vec::new();
    for component in Path::new(file).components() {
        match component {
            Component::Normal(name) => names.push(name.to_str()?),
            Component::CurDir => {}
            _ => return None,
        }
    }
    match &names[..] {
        [] => None,
        names => Some(names.join("/").into()),
    }
}

/// What to load instead of files of torch, by what is in their folder.
fn instead_of_torch(listing: &Listing) -> String {
    if let Some(index) = listing.index_names().next() {
        return format!("name the index {}, which is in the same folder", Quoted(index));
    }
    let files: Vec<_> = listing.names().collect();
    match files.is_empty() {
        true => "fetch the safetensors files of the model, or convert these".into(),
        false => format!(
            "name the folder, which holds safetensors files, {}, or one of these",
            List::new(files.iter().map(|name| &**name))
        ),
    }
}

/// Whether a file is a pickle of torch, by its name.
fn is_pickle(file: &str) -> bool {
    [".bin", ".pt", ".pth", ".ckpt"].iter().any(|ending| file.ends_with(ending))
}

/// The error for a JSON object without a map of weights.
fn without_map(path: &Path, text: &str) -> Error {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let problem = format!(
        "it is {}, which names no weights; name the folder {folder:?}, an index (*.safetensors.index.json) or a safetensors file",
        json_without_weights(&name, text)
    );
    Error::Checkpoint { path: path.into(), problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_stay_in_the_folder_of_the_index() {
        for (file, expected) in [
            ("a", Some("a")),
            ("./a", Some("a")),
            ("part/a", Some("part/a")),
            ("./part//./a", Some("part/a")),
            ("a/", Some("a")),
            ("..", None),
            ("part/../../a", None),
            ("part/../a", None),
            ("/a", None),
            ("", None),
            (".", None),
            ("./", None),
        ] {
            assert_eq!(inside(file).as_deref(), expected, "{file:?}");
        }
    }
}
