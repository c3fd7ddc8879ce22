//! Which tensor is in which file, over all files of a load.

use std::collections::HashMap;
use std::path::Path;

use foldhash::fast::RandomState;

use super::header::Header;
use crate::error::{Error, Result};

/// Tensors by name, each with the path of its file.
pub(crate) struct Catalog<'a> {
    tensors: HashMap<&'a str, &'a Path, RandomState>,
}

impl<'a> Catalog<'a> {
    /// The catalog of some files.
    ///
    /// # Errors
    /// When two files hold tensors of the same name.
    pub(crate) fn new(files: impl Iterator<Item = (&'a Path, &'a Header)> + Clone) -> Result<Self> {
        let count = files.clone().map(|(_, header)| header.tensors.len()).sum();
        let mut tensors = HashMap::with_capacity_and_hasher(count, RandomState::default());
        for (path, header) in files {
            for entry in &header.tensors {
                if let Some(first) = tensors.insert(&*entry.name, path) {
                    return Err(Error::DuplicateTensor {
                        name: entry.name.to_string(),
                        first: first.into(),
                        second: path.into(),
                    });
                }
            }
        }
        Ok(Self { tensors })
    }

    /// The file that holds a tensor.
    pub(crate) fn file_of(&self, tensor: &str) -> Option<&'a Path> {
        self.tensors.get(tensor).copied()
    }
}
