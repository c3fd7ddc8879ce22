//! Opening the files of a checkpoint and reading their headers, several at once.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use tensorhold_allocator as allocator;

use super::header::{OpenedFile, PendingHeader};
use super::index::{IndexState, OpenedIndex, is_guessable, with_descriptors};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::{self, Index, LeftOut, Shards};
use crate::loader::parallel::parallel_map;

/// How much of headers and indexes is read before the tensors' bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InitialRead {
    /// Everything.
    All,
    /// Of long headers only the tensors' places.
    Places,
    /// As `Places`, and nothing of long indexes: the files next to an index are assumed to be those that it
    /// names.
    GuessedPlaces,
}

impl InitialRead {
    /// What a second attempt reads first after an error: the indexes, if the guess of their files was not
    /// `confirmed`; all headers, if an index may decide between two tensors of one name before memory is
    /// reserved for both. `None` if a second attempt would not help.
    pub(crate) fn after(self, error: &Error, confirmed: bool, checkpoints: &[Shards]) -> Option<Self> {
        let has_index = || checkpoints.iter().any(|shards| matches!(shards, Shards::Index { .. }));
        let next = match (self, error) {
            (_, Error::Cancelled { .. }) => None,
            (Self::GuessedPlaces, _) if !confirmed => Some(Self::Places),
            (
                Self::Places | Self::GuessedPlaces,
                Error::DuplicateTensor { .. }
                | Error::Memory(allocator::Error::LimitReached { .. } | allocator::Error::OutOfMemory { .. }),
            ) if has_index() => Some(Self::All),
            _ => None,
        };
        if let Some(first) = next {
            tracing::debug!(%error, ?first, "begins again");
        }
        next
    }
}

/// The opened files of all checkpoints.
#[derive(Debug, Default)]
pub(crate) struct OpenedFiles {
    pub(crate) files: Vec<OpenedFile>,
    pub(crate) indexes: Vec<OpenedIndex>,
    pub(crate) left_out: Vec<LeftOut>,
}

/// A thread is worth its start for this many bytes of headers, or this many files.
const BYTES_WORTH_A_THREAD: usize = 64 << 10;
const FILES_WORTH_A_THREAD: usize = 4;

/// Headers of this length together describe many tensors. They are parsed while the tensors' bytes are read.
const LONG_HEADERS_BYTES: usize = 256 << 10;

/// Opens the files of all checkpoints, and reads their headers and indexes.
///
/// # Errors
/// The error of the first checkpoint and file that has one.
pub(crate) fn open_all(
    checkpoints: &[Shards],
    device: &Device,
    threads: usize,
    initial: InitialRead,
) -> Result<OpenedFiles> {
    let (mut paths, mut indexes, mut left_out) = (Vec::new(), Vec::new(), Vec::new());
    for shards in checkpoints {
        match shards {
            Shards::Files { files, left_out: others } => {
                paths.extend_from_slice(files);
                left_out.extend_from_slice(others);
            }
            Shards::Index { path, near, listing } => {
                let guess = initial == InitialRead::GuessedPlaces && is_guessable(shards);
                let taken = paths.len()..paths.len() + near.len();
                match guess.then(|| OpenedIndex::spawn(path, listing, taken)).flatten() {
                    Some(index) => {
                        indexes.push(index);
                        let others = listing.paths().filter(|path| near.binary_search(path).is_err());
                        left_out.extend(format::left_out(path, others));
                        paths.extend_from_slice(near);
                    }
                    None => {
                        let index = with_descriptors(|| Index::read(path, listing))?;
                        left_out.extend(index.left_out(listing));
                        let before = paths.len();
                        paths.extend(index.paths());
                        indexes.push(OpenedIndex {
                            files: before..paths.len(),
                            state: IndexState::Parsed(index),
                        });
                    }
                }
            }
        }
    }
    let mut files = open_files(&paths, device, threads, initial)?;
    for index in &indexes {
        left_out.extend(index.leave_out_copies(&mut files)?);
    }
    Ok(OpenedFiles { files, indexes, left_out })
}

/// Opens files and reads their headers, in order.
fn open_files(
    paths: &[PathBuf],
    device: &Device,
    threads: usize,
    initial: InitialRead,
) -> Result<Vec<OpenedFile>> {
    let Some(path) = paths.first() else { return Ok(Vec::new()) };
    let pending = PendingHeader::new(path)?;
    let header_bytes = pending.header_bytes * paths.len();
    let outlines = initial != InitialRead::All && header_bytes >= LONG_HEADERS_BYTES;
    let useful = header_bytes / BYTES_WORTH_A_THREAD + paths.len() / FILES_WORTH_A_THREAD;
    let first = Mutex::new(Some(pending));
    let open = |index: usize| {
        let pending = match index {
            0 => first.lock().unwrap_or_else(PoisonError::into_inner).take(),
            _ => None,
        };
        pending.map_or_else(|| PendingHeader::new(&paths[index]), Ok)?.finish(device, outlines)
    };
    parallel_map(paths.len(), threads.min(useful), "tensorhold-open", open).into_iter().collect()
}
