//! Which tensor is in which file, over all files of a load.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use foldhash::fast::RandomState;

use super::problem::Problem;
use crate::error::{Error, Result};
use crate::names::Names;

/// Tensors by name, each with its file.
pub(crate) struct Catalog<'a> {
    /// By number.
    files: Vec<&'a Path>,
    /// By number.
    tensors: Vec<Known<'a>>,
    names: Names,
    /// How many indexes have been compared.
    indexes: u32,
}

/// A tensor that is there.
struct Known<'a> {
    name: &'a str,
    file: u32,
    /// The number of the last index that named it.
    named: u32,
}

/// What a catalog knows of a tensor that an index names.
pub(super) enum Found {
    /// It is in the file of that number.
    In(usize),
    /// The index has named it before.
    Named,
    /// It is in no file.
    Nowhere,
}

impl<'a> Catalog<'a> {
    /// The catalog of so many tensors, each with its file's number. They are numbered as they come.
    ///
    /// # Errors
    /// When two tensors, of one file or of two, have the same name.
    pub(crate) fn new(
        files: Vec<&'a Path>,
        count: usize,
        tensors: impl Iterator<Item = (usize, &'a str)>,
    ) -> Result<Self> {
        let mut known: Vec<Known<'_>> = Vec::with_capacity(count);
        let mut names = Names::with_capacity(count);
        for (file, name) in tensors {
            if let Some(first) = names.insert(name, known.len(), |number| known[number].name) {
                let first = known[first].file as usize;
                if first == file {
                    return Err(Problem::duplicate(name).of(files[file]));
                }
                let (first, second) = (files[first].into(), files[file].into());
                return Err(Error::DuplicateTensor { name: name.into(), first, second });
            }
            known.push(Known { name, file: file as u32, named: 0 });
        }
        Ok(Self { files, tensors: known, names, indexes: 0 })
    }

    /// Begins to compare another index.
    pub(super) fn begin(&mut self) {
        self.indexes += 1;
    }

    /// What is known of a tensor that the index names.
    pub(super) fn named(&mut self, tensor: &str) -> Found {
        let tensors = &mut self.tensors;
        let number = self.names.find(tensor, |number| tensors[number].name);
        match number.map(|number| &mut tensors[number]) {
            None => Found::Nowhere,
            Some(known) if known.named == self.indexes => Found::Named,
            Some(known) => {
                known.named = self.indexes;
                Found::In(known.file as usize)
            }
        }
    }

    /// The numbers of files.
    pub(super) fn numbers(&self, paths: impl Iterator<Item = PathBuf>) -> Vec<Option<usize>> {
        let mut numbers: HashMap<&Path, usize, RandomState> = HashMap::default();
        for (number, file) in self.files.iter().enumerate() {
            // A file that is there twice has its first number.
            numbers.entry(file).or_insert(number);
        }
        paths.map(|path| numbers.get(&*path).copied()).collect()
    }

    /// The file of a number.
    pub(super) fn path_of(&self, number: usize) -> Option<&'a Path> {
        self.files.get(number).copied()
    }

    /// The numbers of the tensors, by name.
    pub(crate) fn into_names(self) -> Names {
        self.names
    }
}
