//! Opening the files of a checkpoint and reading their headers, several at a time.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::{fs, thread};

use super::beside::beside;
use crate::device::Device;
use crate::error::Result;
use crate::format::{self, Entry, Index, Shards};
use crate::io::FileSource;
use crate::tensor::{Description, TensorInfo};
use crate::weights::Metadata;

/// An open file and what its header says.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) source: FileSource,
    /// Where the tensors' bytes are, in order.
    pub(super) places: Vec<Place>,
    /// One for each place, until they become a batch's.
    pub(super) descriptions: Vec<Arc<Description>>,
    pub(super) metadata: Metadata,
}

/// Where a tensor's bytes are in its file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) start: u64,
    pub(super) bytes: u64,
}

/// So much of headers is worth a thread, or so many files.
const BYTES_WORTH_A_THREAD: usize = 64 << 10;
const FILES_WORTH_A_THREAD: usize = 4;

/// What an index says of one tensor is about so long.
const INDEX_BYTES: u64 = 64;

/// Opens the files of all checkpoints and parses their headers, in order, and reads the indexes. The error, if any, is that of
/// the first checkpoint and file that has one.
///
/// A long index takes as long to read as the headers do: meanwhile the files near it are opened, which are probably those that
/// it names.
pub(super) fn open_all(
    checkpoints: &[Shards],
    device: &Device,
    threads: usize,
) -> Result<(Vec<Opened>, Vec<Index>)> {
    let indexes = checkpoints.iter().filter_map(|shards| match shards {
        Shards::Files(_) => None,
        Shards::Index { path, .. } => Some(path),
    });
    let index_bytes: u64 = indexes.clone().filter_map(|path| Some(fs::metadata(path).ok()?.len())).sum();
    let read = || -> Vec<Result<Index>> { indexes.clone().map(|path| Index::read(path)).collect() };
    let likely: Vec<PathBuf> = checkpoints.iter().flat_map(Shards::likely).cloned().collect();
    let open = || open_files(&likely, device, threads);
    let (indexes, opened) = beside((index_bytes / INDEX_BYTES) as usize, "tensorhold-index", read, open);

    let (mut indexes, mut opened) = (indexes.into_iter(), opened.into_iter());
    let (mut files, mut read) = (Vec::with_capacity(likely.len()), Vec::new());
    for shards in checkpoints {
        let likely = shards.likely();
        let near = opened.by_ref().take(likely.len());
        match shards {
            Shards::Files(_) => files.extend(near.collect::<Result<Vec<_>>>()?),
            Shards::Index { .. } => {
                let Some(index) = indexes.next().transpose()? else { continue };
                let mut near: HashMap<_, _> = likely.iter().zip(near).collect();
                for path in index.paths() {
                    files.push(
                        near.remove(&path)
                            .unwrap_or_else(|| Begun::new(&path)?.finish(device, &mut Vec::new()))?,
                    );
                }
                read.push(index);
            }
        }
    }
    Ok((files, read))
}

/// Opens files and parses their headers, in order.
fn open_files(paths: &[PathBuf], device: &Device, threads: usize) -> Vec<Result<Opened>> {
    let next = AtomicUsize::new(1);
    let results = Mutex::new(Vec::with_capacity(paths.len()));
    let add = |index, result| {
        results.lock().unwrap_or_else(PoisonError::into_inner).push((index, result));
    };
    let work = |mut memory: Vec<u8>| {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(path) = paths.get(index) else { return };
            add(index, Begun::new(path).and_then(|begun| begun.finish(device, &mut memory)));
        }
    };
    let Some(first) = paths.first().map(|path| Begun::new(path)) else { return Vec::new() };
    let header_bytes = first.as_ref().map_or(0, |first| first.header_bytes) * paths.len();
    let useful = header_bytes / BYTES_WORTH_A_THREAD + paths.len() / FILES_WORTH_A_THREAD;
    thread::scope(|scope| {
        // This thread works too, so the others are help: one that cannot be started is not missed.
        for _ in 1..threads.min(paths.len()).min(useful) {
            if thread::Builder::new()
                .name("tensorhold-open".into())
                .spawn_scoped(scope, || work(Vec::new()))
                .is_err()
            {
                break;
            }
        }
        let mut memory = Vec::new();
        add(0, first.and_then(|first| first.finish(device, &mut memory)));
        work(memory);
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_unstable_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

/// An open file, of whose header the length is known.
struct Begun {
    source: FileSource,
    header_bytes: usize,
}

impl Begun {
    fn new(path: &Path) -> Result<Self> {
        let source = FileSource::open(path)?;
        let mut prefix = [0; 8];
        let prefix_bytes = source.read(&mut prefix, 0)?;
        let header_bytes =
            format::header_len(&prefix[..prefix_bytes], source.len()).map_err(|problem| problem.of(path))?;
        Ok(Self { source, header_bytes })
    }

    /// Reads the header into `memory` and parses it.
    fn finish(self, device: &Device, memory: &mut Vec<u8>) -> Result<Opened> {
        let Self { source, header_bytes } = self;
        memory.resize(header_bytes, 0);
        let got = source.read(memory, 8)?;
        if got < header_bytes {
            return Err(source.changed(format!("it was cut short to {} bytes", 8 + got)));
        }
        let (path, device) = (source.path(), Arc::new(device.clone()));
        let (mut places, mut descriptions) = (Vec::new(), Vec::new());
        let add = |Entry { name, dtype, shape, start, nbytes }| {
            let info = TensorInfo { name, dtype, shape, nbytes, file: Arc::clone(path) };
            descriptions.push(Arc::new(Description { info, device: Arc::clone(&device) }));
            places.push(Place { start, bytes: nbytes });
        };
        let metadata = format::parse(memory, source.len(), add).map_err(|problem| problem.of(path))?;
        Ok(Opened { source, places, descriptions, metadata })
    }
}
