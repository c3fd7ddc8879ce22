//! Opening the files of a checkpoint and reading their headers, several at a time.

use std::fs;
use std::mem;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tensorhold_allocator as allocator;

use super::beside::{Ahead, each};
use super::copies;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::{self, Entry, Index, LeftOut, Listing, Place, Problem, Shards};
use crate::io::{DescriptorCache, FileSource};
use crate::limits;
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
    /// `None` of a header that has no place for them.
    pub(super) strings: Option<Strings>,
}

/// The free-form strings of a header.
#[derive(Debug, Clone)]
pub(super) enum Strings {
    /// Until all headers are found to be right: in little memory.
    Compact(format::Sorted),
    Map(Arc<Metadata>),
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

impl Opened {
    /// Leaves out the tensors that are not wanted, and returns them. Of a header that has not been read, all stay.
    ///
    /// # Errors
    /// That of the first answer that is one.
    pub(super) fn retain(
        &mut self,
        wants: impl Fn(&TensorInfo) -> Result<bool>,
    ) -> Result<Vec<Arc<Description>>> {
        let mut others = Vec::new();
        let Header::Read(said) = &mut self.header else { return Ok(others) };
        let (descriptions, labels) = (mem::take(&mut said.descriptions), mem::take(&mut said.labels));
        let places = mem::take(&mut self.places);
        for ((place, description), label) in places.into_iter().zip(descriptions).zip(labels) {
            if wants(&description.info)? {
                self.places.push(place);
                said.descriptions.push(description);
                said.labels.push(label);
            } else {
                others.push(description);
            }
        }
        Ok(others)
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

impl First {
    /// What a load reads first when it begins again after an error: where indexes were not `confirmed`, the indexes; where an index may say which of two
    /// tensors of a name is the right one, all headers, before memory is reserved for both. `None` where that would not help.
    pub(super) fn after(self, error: &Error, confirmed: bool, checkpoints: &[Shards]) -> Option<Self> {
        let has_index = || checkpoints.iter().any(|shards| matches!(shards, Shards::Index { .. }));
        let next = match (self, error) {
            (_, Error::Cancelled { .. }) => None,
            (Self::PlacesNearby, _) if !confirmed => Some(Self::Places),
            (
                Self::Places | Self::PlacesNearby,
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

/// An index, and the numbers of the files that it names.
#[derive(Debug)]
pub(super) struct Indexed {
    files: Range<usize>,
    text: IndexText,
}

#[derive(Debug)]
enum IndexText {
    Read(Index),
    /// It is being read. The files are those near it.
    Guessed(Ahead<Result<Index>>),
}

impl Indexed {
    /// Begins to read an index that probably names the files with these numbers.
    fn begin(path: &Path, listing: &Arc<Listing>, files: Range<usize>) -> Option<Self> {
        let (path, listing) = (path.to_path_buf(), Arc::clone(listing));
        let reading =
            Ahead::begin("tensorhold-index", move || with_descriptors(|| Index::read(&path, &listing)))?;
        Some(Self { files, text: IndexText::Guessed(reading) })
    }

    /// The index. Where it was guessed which files it names, the guess is confirmed.
    ///
    /// # Errors
    /// When it is not as it should be, or names other files than those that were taken.
    pub(super) fn confirm(self, files: &[Opened]) -> Result<Option<Index>> {
        let mut reading = match self.text {
            IndexText::Read(index) => return Ok(Some(index)),
            IndexText::Guessed(reading) => reading,
        };
        let Some(index) = reading.take().transpose()? else { return Ok(None) };
        let taken = files.get(self.files).unwrap_or_default();
        match index.paths().eq(taken.iter().map(|file| &**file.source.path())) {
            true => Ok(Some(index)),
            false => Err(index.error("it names other files than those near it".into())),
        }
    }

    /// Leaves out tensors of its files that it says are in other ones, if all of this has been read.
    fn leave_out_copies(&self, files: &mut [Opened]) -> Result<Vec<LeftOut>> {
        match (&self.text, files.get_mut(self.files.clone())) {
            (IndexText::Read(index), Some(files)) => copies::leave_out(files, index),
            _ => Ok(Vec::new()),
        }
    }
}

/// The files of all checkpoints.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) files: Vec<Opened>,
    pub(super) indexes: Vec<Indexed>,
    pub(super) left_out: Vec<LeftOut>,
}

/// So much of headers is worth a thread, or so many files.
const BYTES_WORTH_A_THREAD: usize = 64 << 10;
const FILES_WORTH_A_THREAD: usize = 4;

/// Headers of this length describe many tensors. They are better read while the tensors' bytes are.
const LONG_HEADERS_BYTES: usize = 256 << 10;

/// Where tensors have fewer bytes than this for each of their header's, reading them hides too little of the time that a second pass over the header takes.
const HIDING_BYTES: u64 = 4;

/// Indexes that are longer than this are worth a guess.
const LONG_INDEX_BYTES: u64 = 128 << 10;

/// Whether a checkpoint has a long index, and files near it that it probably names.
pub(super) fn is_guessable(shards: &Shards) -> bool {
    match shards {
        Shards::Files { .. } => false,
        Shards::Index { path, near, .. } => {
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
) -> Result<Found> {
    let (mut paths, mut indexes, mut left_out) = (Vec::new(), Vec::new(), Vec::new());
    for shards in checkpoints {
        match shards {
            Shards::Files { files, left_out: others } => {
                paths.extend_from_slice(files);
                left_out.extend_from_slice(others);
            }
            Shards::Index { path, near, listing } => {
                let guess = first == First::PlacesNearby && is_guessable(shards);
                let taken = paths.len()..paths.len() + near.len();
                match guess.then(|| Indexed::begin(path, listing, taken)).flatten() {
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
                        indexes.push(Indexed { files: before..paths.len(), text: IndexText::Read(index) });
                    }
                }
            }
        }
    }
    let mut files = open_files(&paths, device, threads, first)?;
    for index in &indexes {
        left_out.extend(index.leave_out_copies(&mut files)?);
    }
    Ok(Found { files, indexes, left_out })
}

/// Reads an index or lists a folder; where no descriptor is left for that, idle files are closed first.
pub(super) fn with_descriptors<T>(read: impl Fn() -> Result<T>) -> Result<T> {
    let is_refused =
        |error: &Error| matches!(error, Error::Io { source, .. } if limits::is_of_descriptors(source));
    DescriptorCache::of_process().retry(read, is_refused)
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
        let source = FileSource::open(path).map_err(format::with_link)?;
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
        let hides = source.len() / HIDING_BYTES >= header_bytes as u64;
        if outlines
            && hides
            && let Some(places) = format::outline(&text, source.len())
        {
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
    let mut said = Said { descriptions, labels, strings: strings.map(Strings::Compact) };
    for Entry { name, dtype, shape, start, nbytes } in entries {
        said.labels.push(Arc::clone(&name));
        let info = TensorInfo { name, dtype, shape, nbytes, file: Arc::clone(path) };
        said.descriptions.push(Arc::new(Description { info, device: Arc::clone(&device) }));
        places.push(Place { start, bytes: nbytes });
    }
    Ok((places, said))
}
