//! Indexes: read before the files that they name or, for a guess, at the same time.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::duplicates;
use super::header::OpenedFile;
use crate::error::{Error, Result};
use crate::format::{Index, LeftOut, Listing, Shards};
use crate::io::DescriptorCache;
use crate::limits;
use crate::loader::parallel::BackgroundTask;

/// An index, and the numbers of the files that it names.
#[derive(Debug)]
pub(crate) struct OpenedIndex {
    pub(super) files: Range<usize>,
    pub(super) state: IndexState,
}

#[derive(Debug)]
pub(super) enum IndexState {
    Parsed(Index),
    /// The index is being read. Its files are a guess: those next to it.
    Guessed(BackgroundTask<Result<Index>>),
}

impl OpenedIndex {
    /// Starts to read an index that probably names the files with these numbers.
    pub(super) fn spawn(path: &Path, listing: &Arc<Listing>, files: Range<usize>) -> Option<Self> {
        let (path, listing) = (path.to_path_buf(), Arc::clone(listing));
        let reading = BackgroundTask::spawn("tensorhold-index", move || {
            with_descriptors(|| Index::read(&path, &listing))
        })?;
        Some(Self { files, state: IndexState::Guessed(reading) })
    }

    /// Returns the index, and checks a guess of its files.
    ///
    /// # Errors
    /// When the index is invalid, or names other files than those that were guessed.
    pub(crate) fn confirm(self, files: &[OpenedFile]) -> Result<Option<Index>> {
        let mut reading = match self.state {
            IndexState::Parsed(index) => return Ok(Some(index)),
            IndexState::Guessed(reading) => reading,
        };
        let Some(index) = reading.join().transpose()? else { return Ok(None) };
        let taken = files.get(self.files).unwrap_or_default();
        match index.paths().eq(taken.iter().map(|file| &**file.source.path())) {
            true => Ok(Some(index)),
            false => Err(index.error("it names other files than those near it".into())),
        }
    }

    /// Removes tensors from files other than the one that the index names for them. Does nothing before the
    /// index and all headers are parsed.
    pub(super) fn leave_out_copies(&self, files: &mut [OpenedFile]) -> Result<Vec<LeftOut>> {
        match (&self.state, files.get_mut(self.files.clone())) {
            (IndexState::Parsed(index), Some(files)) => duplicates::leave_out(files, index),
            _ => Ok(Vec::new()),
        }
    }
}

/// A guess saves time for indexes of this length or more.
const LONG_INDEX_BYTES: u64 = 128 << 10;

/// Whether a checkpoint has a long index, and files next to it that it probably names.
pub(crate) fn is_guessable(shards: &Shards) -> bool {
    match shards {
        Shards::Files { .. } => false,
        Shards::Index { path, near, .. } => {
            !near.is_empty() && fs::metadata(path).is_ok_and(|index| index.len() >= LONG_INDEX_BYTES)
        }
    }
}

/// Calls `read`, which reads an index or lists a folder. If the process is out of descriptors, closes idle
/// files and calls it again.
pub(crate) fn with_descriptors<T>(read: impl Fn() -> Result<T>) -> Result<T> {
    let is_refused =
        |error: &Error| matches!(error, Error::Io { source, .. } if limits::is_of_descriptors(source));
    DescriptorCache::of_process().retry(read, is_refused)
}
