//! Loads that are shared among the ranks of a group: each rank reads some of the files.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::builder::Loader;
use crate::error::{Error, Remedy, Result};
use crate::group::{ProcessGroup, Ranks, Shared};
use crate::tensor::TensorInfo;

impl Loader {
    /// Loads the tensors of this rank's files. Every rank passes the same files in the same order; they are
    /// assigned round-robin, the first to rank 0. All ranks read the headers of all files.
    ///
    /// [`select`](Self::select), [`dtype`](Self::dtype) and [`dtype_by`](Self::dtype_by) must be the same on
    /// every rank. The device and all other options may differ. Parts of tensors come from the [`Shared`],
    /// not from [`cut`](Self::cut).
    ///
    /// No rank waits for another here. After an error on one rank, the others wait for it when they share a
    /// tensor.
    ///
    /// # Errors
    /// As [`load`](Self::load), and when tensors are cut, or the group reports invalid ranks.
    pub fn load_shared(mut self, group: Arc<dyn ProcessGroup>) -> Result<Shared> {
        let Ranks { own: rank, size } = Ranks::of(&*group)?;
        if !self.options.transform.cuts.is_empty() {
            let (got, expected) = ("parts of tensors".into(), "whole tensors".into());
            return Err(Error::Option { option: "cut", got, expected, remedy: Remedy::SHARD_OF_SHARED });
        }
        let callback = self.callback.take();
        let checkpoint = self.open()?;
        let rank_of = |(n, file): (usize, &Path)| (file.to_path_buf(), n % size);
        let owners: HashMap<_, _> = checkpoint.files().enumerate().map(rank_of).collect();
        let owner = move |info: &TensorInfo| owners.get(&*info.file).copied().unwrap_or(0);
        let tensors: Vec<_> = checkpoint.tensors().map(|info| (info.clone(), owner(info))).collect();
        let device = checkpoint.device().clone();
        let mut loader = checkpoint.loader().select(move |info| owner(info) == rank);
        loader.callback = callback;
        let weights = loader.load()?;
        let pool = weights.pool().clone();
        Shared::new(group, &device, &pool, tensors, weights.into_tensors())
    }
}
