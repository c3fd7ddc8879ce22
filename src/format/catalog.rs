//! Which tensor is in which file, over all files of a load.

use std::collections::HashMap;
use std::path::Path;

use foldhash::fast::RandomState;

use super::problem::Problem;
use crate::error::{Error, Result};

/// Tensors by name, each with its file.
pub(crate) struct Catalog<'a> {
    /// By number.
    files: Vec<&'a Path>,
    tensors: HashMap<&'a str, Place, RandomState>,
    /// How many indexes have been compared.
    indexes: u32,
}

/// Where a tensor is.
struct Place {
    file: u32,
    /// The number of the last index that named it.
    named: u32,
}

/// What a catalog knows of a tensor that an index names.
pub(super) enum Known {
    /// It is in the file of that number.
    In(usize),
    /// The index has named it before.
    Named,
    /// It is in no file.
    Nowhere,
}

impl<'a> Catalog<'a> {
    /// The catalog of so many tensors, each with its file's number.
    ///
    /// # Errors
    /// When two tensors, of one file or of two, have the same name.
    pub(crate) fn new(
        files: Vec<&'a Path>,
        count: usize,
        tensors: impl Iterator<Item = (usize, &'a str)>,
    ) -> Result<Self> {
        let mut known: HashMap<&str, Place, _> =
            HashMap::with_capacity_and_hasher(count, RandomState::default());
        for (file, name) in tensors {
            if let Some(first) = known.insert(name, Place { file: file as u32, named: 0 }) {
                if first.file as usize == file {
                    return Err(Problem::Duplicate { key: name.into() }.of(files[file]));
                }
                let (first, second) = (files[first.file as usize].into(), files[file].into());
                return Err(Error::DuplicateTensor { name: name.into(), first, second });
            }
        }
        Ok(Self { files, tensors: known, indexes: 0 })
    }

    /// Begins to compare another index.
    pub(super) fn begin(&mut self) {
        self.indexes += 1;
    }

    /// What is known of a tensor that the index names.
    pub(super) fn named(&mut self, tensor: &str) -> Known {
        match self.tensors.get_mut(tensor) {
            None => Known::Nowhere,
            Some(place) if place.named == self.indexes => Known::Named,
            Some(place) => {
                place.named = self.indexes;
                Known::In(place.file as usize)
            }
        }
    }

    /// The number of a file.
    pub(super) fn number_of(&self, path: &Path) -> Option<usize> {
        self.files.iter().position(|file| *file == path)
    }

    /// The file of a number.
    pub(super) fn path_of(&self, number: usize) -> Option<&'a Path> {
        self.files.get(number).copied()
    }
}
