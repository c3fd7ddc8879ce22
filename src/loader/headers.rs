//! Opening the files of a checkpoint and reading their headers, several at a time.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::beside::{Ahead, each};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::{self, Entry, Index, Place, Problem, Shards};
use crate::io::FileSource;
use crate::tensor::{Description, TensorInfo};
use crate::weights::Metadata;

/// An open file and what its header says.
#[derive(Debug, Clone)]
pub(super) struct Opened {
    pub(super) source: FileSource,
    /// Where the tensors' bytes are, in order; and how many the tensors of a batch will have.
    pub(super) places: Vec<Place>,
    /// What lies there, until it is a batch's.
    pub(super) header: Header,
}

/// What a header says, beside places.
#[derive(Debug, Clone)]
pub(super) enum Header {
    /// This, which no one has read yet.
    Text(Vec<u8>),
    Read(Said),
}

impl Header {
    /// What it says, if it has been read.
    pub(super) fn said(&self) -> Option<&Said> {
        match self {
            Self::Read(said) => Some(said),
            Self::Text(_) => None,
        }
    }
}

/// What a header says, when it has been read.
#[derive(Debug, Clone, Default)]
pub(super) struct Said {
    /// One for each place.
    pub(super) descriptions: Vec<Arc<Description>>,
    /// The same tensors' names, for their memory. Counted here, where they are at hand: later that would take longer than
    /// all else that is done for a tensor.
    pub(super) labels: Vec<Arc<str>>,
    pub(super) strings: Strings,
}

/// The free-form strings of a header.
#[derive(Debug, Clone)]
pub(super) enum Strings {
    /// Until all headers are found to be right: in little memory.
    Compact(format::Sorted),
    Map(Arc<Metadata>),
}

impl Default for Strings {
    fn default() -> Self {
        Self::Map(Arc::default())
    }
}

impl Strings {
    /// As they are handed out.
    pub(super) fn into_map(self) -> Arc<Metadata> {
        match self {
            Self::Compact(strings) => Arc::new(strings.into_map()),
            Self::Map(map) => map,
        }
    }

    /// The same, once that is what they are.
    pub(super) fn map(&self) -> Option<&Arc<Metadata>> {
        match self {
            Self::Compact(_) => None,
            Self::Map(map) => Some(map),
        }
    }
}

impl Default for Header {
    fn default() -> Self {
        Self::Read(Said::default())
    }
}

/// How much of headers and indexes is read before their tensors' bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum First {
    /// All.
    All,
    /// Of headers, where they are long, the places.
    Places,
    /// Of long indexes nothing either: the files near them are taken for those that they name.
    PlacesNearby,
}

/// An index and what was made of it.
#[derive(Debug)]
pub(super) enum Indexed {
    Read(Index),
    /// It is being read. So many files, from the first of these on, are those near it.
    Guessed(Ahead<Result<Index>>, Range<usize>),
}

impl Indexed {
    /// Begins to read an index that probably names the files with these numbers.
    fn begin(path: &Path, near: Range<usize>) -> Option<Self> {
        let path = path.to_path_buf();
        let reading = Ahead::begin("tensorhold-index", move || Index::read(&path))?;
        Some(Self::Guessed(reading, near))
    }

    /// The index. Where it was guessed which files it names, the guess is confirmed.
    ///
    /// # Errors
    /// When it is not as it should be, or names other files than those that were taken.
    pub(super) fn confirm(self, files: &[Opened]) -> Result<Option<Index>> {
        let (mut reading, taken) = match self {
            Self::Read(index) => return Ok(Some(index)),
            Self::Guessed(reading, taken) => (reading, taken),
        };
        let Some(index) = reading.take().transpose()? else { return Ok(None) };
        let taken = files.get(taken).unwrap_or_default();
        match index.paths().eq(taken.iter().map(|file| &**file.source.path())) {
            true => Ok(Some(index)),
            false => Err(index.error("it names other files than those near it".into())),
        }
    }
}

/// So much of headers is worth a thread, or so many files.
const BYTES_WORTH_A_THREAD: usize = 64 << 10;
const FILES_WORTH_A_THREAD: usize = 4;

/// So long are headers of many tensors, which are better read beside the tensors' bytes.
const LONG_HEADERS_BYTES: usize = 256 << 10;

/// Indexes that are longer than this are worth a guess.
const LONG_INDEX_BYTES: u64 = 128 << 10;

/// Whether a checkpoint has a long index, and files near it that it probably names.
pub(super) fn is_guessable(shards: &Shards) -> bool {
    match shards {
        Shards::Files(_) => false,
        Shards::Index { path, near } => {
            !near.is_empty() && fs::metadata(path).is_ok_and(|index| index.len() >= LONG_INDEX_BYTES)
        }
    }
}

/// Opens the files of all checkpoints and reads their headers, in order, and the indexes. The error, if any, is that of the first
/// checkpoint and file that has one.
pub(super) fn open_all(
    checkpoints: &[Shards],
    device: &Device,
    threads: usize,
    first: First,
) -> Result<(Vec<Opened>, Vec<Indexed>)> {
    let (mut paths, mut indexes) = (Vec::new(), Vec::new());
    for shards in checkpoints {
        match shards {
            Shards::Files(files) => paths.extend_from_slice(files),
            Shards::Index { path, near } => {
                let guess = first == First::PlacesNearby && is_guessable(shards);
                match guess.then(|| Indexed::begin(path, paths.len()..paths.len() + near.len())).flatten() {
                    Some(index) => {
                        indexes.push(index);
                        paths.extend_from_slice(near);
                    }
                    None => {
                        let index = Index::read(path)?;
                        paths.extend(index.paths());
                        indexes.push(Indexed::Read(index));
                    }
                }
            }
        }
    }
    Ok((open_files(&paths, device, threads, first)?, indexes))
}

/// Opens files and reads their headers, in order.
fn open_files(paths: &[PathBuf], device: &Device, threads: usize, first: First) -> Result<Vec<Opened>> {
    let Some(path) = paths.first() else { return Ok(Vec::new()) };
    let begun = Begun::new(path)?;
    let header_bytes = begun.header_bytes * paths.len();
    let outlines = first != First::All && header_bytes >= LONG_HEADERS_BYTES;
    let useful = header_bytes / BYTES_WORTH_A_THREAD + paths.len() / FILES_WORTH_A_THREAD;
    let first = Mutex::new(Some(begun));
    let open = |index: usize| {
        let begun = match index {
            0 => first.lock().unwrap_or_else(PoisonError::into_inner).take(),
            _ => None,
        };
        begun.map_or_else(|| Begun::new(&paths[index]), Ok)?.finish(device, outlines)
    };
    each(paths.len(), threads.min(useful), "tensorhold-open", open).into_iter().collect()
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
        // Of a file that says that it is shorter nothing is read: the kernel's own say so, and some of these have readers wait.
        let prefix_bytes = if source.len() < 8 { 0 } else { source.read(&mut prefix, 0)? };
        let header_bytes = format::header_len(&prefix[..prefix_bytes], source.len())
            .map_err(|problem| wrong(&source, problem))?;
        Ok(Self { source, header_bytes })
    }

    /// Reads the header, or its outline if that is there.
    fn finish(self, device: &Device, outlines: bool) -> Result<Opened> {
        let Self { source, header_bytes } = self;
        // Not zeroes: memory of zeroes is not written to before it is used, and then page by page by the system.
        let mut text = vec![b' '; header_bytes];
        let got = source.read(&mut text, 8)?;
        if got < header_bytes {
            return Err(source.changed(format!("it was cut short to {} bytes", 8 + got)));
        }
        if outlines && let Some(places) = format::outline(&text, source.len()) {
            return Ok(Opened { source, places, header: Header::Text(text) });
        }
        let (places, said) = describe(&text, &source, device)?;
        Ok(Opened { source, places, header: Header::Read(said) })
    }
}

/// The error for a header that is wrong. A file that is something else is named for that, by as much of it as can be read.
fn wrong(source: &FileSource, problem: Problem) -> Error {
    let problem = match problem.doubts_format() {
        // Of a file that says that it is empty nothing is read: the kernel's own say so, and some of these have readers wait.
        true if source.len() > 0 => {
            let mut start =
                vec![0; format::START_BYTES.min(usize::try_from(source.len()).unwrap_or(usize::MAX))];
            let bytes = source.read(&mut start, 0).unwrap_or(0);
            problem.of_start(start.get(..bytes).unwrap_or_default(), source.len())
        }
        _ => problem,
    };
    problem.of(source.path())
}

/// Reads what a file's header says.
pub(super) fn describe(text: &[u8], source: &FileSource, device: &Device) -> Result<(Vec<Place>, Said)> {
    let (path, device) = (source.path(), Arc::new(device.clone()));
    let (entries, strings) = format::parse(text, source.len()).map_err(|problem| wrong(source, problem))?;
    let mut places = Vec::with_capacity(entries.len());
    let (descriptions, labels) = (Vec::with_capacity(entries.len()), Vec::with_capacity(entries.len()));
    let mut said = Said { descriptions, labels, strings: Strings::Compact(strings) };
    for Entry { name, dtype, shape, start, nbytes } in entries {
        said.labels.push(Arc::clone(&name));
        let info = TensorInfo { name, dtype, shape, nbytes, file: Arc::clone(path) };
        said.descriptions.push(Arc::new(Description { info, device: Arc::clone(&device) }));
        places.push(Place { start, bytes: nbytes });
    }
    Ok((places, said))
}
