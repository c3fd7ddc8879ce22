//! Loads that the ranks of a group share: each reads some of the files.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::Loader;
use crate::error::{Error, Remedy, Result};
use crate::group::{ProcessGroup, Ranks, Shared};
use crate::tensor::TensorInfo;

impl Loader {
    /// Loads the tensors of the files that are this rank's, of those that were given to every rank in the same order: the first file is rank
    /// 0's, the next rank 1's, and so on around. All ranks read the headers of all files.
    ///
    /// The device is this rank's, and so are all other options, but for [`select`](Self::select), [`dtype`](Self::dtype) and [`dtype_by`](Self::dtype_by),
    /// which are the same on every rank. Parts are had of the [`Shared`], not by [`cut`](Self::cut).
    ///
    /// No rank waits for another here: after an error on one of them, the others wait for it when they share a tensor.
    ///
    /// # Errors
    /// As [`load`](Self::load), and when tensors are cut, or the group does not know its ranks.
    pub fn load_shared(mut self, group: Arc<dyn ProcessGroup>) -> Result<Shared> {
        let Ranks { own: rank, size } = Ranks::of(&*group)?;
        if !self.options.asked.cuts.is_empty() {
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
