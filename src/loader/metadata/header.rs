//! The header of a file: reading it, and what it says about tensors.

use std::mem;
use std::path::Path;
use std::sync::Arc;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::{self, Entry, Place, Problem};
use crate::io::FileSource;
use crate::tensor::{Description, TensorInfo};
use crate::weights::Metadata;

/// An open file and its header.
#[derive(Debug, Clone)]
pub(crate) struct OpenedFile {
    pub(crate) source: FileSource,
    /// Offset of each tensor's bytes, in file order, and the tensor's length in the region.
    pub(crate) places: Vec<Place>,
    /// The tensors at these places, until a load takes them.
    pub(crate) header: HeaderState,
}

/// The content of a header other than places.
#[derive(Debug, Clone)]
pub(crate) enum HeaderState {
    /// The text, of which only the places are known.
    Unparsed(Vec<u8>),
    Parsed(ParsedHeader),
}

impl HeaderState {
    /// The parsed header; `None` before it is parsed.
    pub(crate) fn parsed(&self) -> Option<&ParsedHeader> {
        match self {
            Self::Parsed(parsed) => Some(parsed),
            Self::Unparsed(_) => None,
        }
    }
}

/// A parsed header.
#[derive(Debug, Clone, Default)]
pub(crate) struct ParsedHeader {
    /// One for each place.
    pub(crate) descriptions: Vec<Arc<Description>>,
    /// The same tensors' names, as labels of their memory. Their references are counted here, while they are
    /// in cache: later that takes longer than all other work for a tensor.
    pub(crate) labels: Vec<Arc<str>>,
    /// `None` if the header has no `__metadata__`.
    pub(crate) strings: Option<HeaderStrings>,
}

/// The free-form strings of a header.
#[derive(Debug, Clone)]
pub(crate) enum HeaderStrings {
    /// In little memory, until all headers are checked.
    Compact(format::Sorted),
    Map(Arc<Metadata>),
}

impl HeaderStrings {
    /// The form that callers get.
    pub(crate) fn into_map(self) -> Arc<Metadata> {
        match self {
            Self::Compact(strings) => Arc::new(strings.into_map()),
            Self::Map(map) => map,
        }
    }

    /// The map, if the strings have that form already.
    pub(crate) fn map(&self) -> Option<&Arc<Metadata>> {
        match self {
            Self::Compact(_) => None,
            Self::Map(map) => Some(map),
        }
    }
}

impl OpenedFile {
    /// Removes the tensors that `wants` rejects, and returns them. Does nothing if the header is not parsed.
    ///
    /// # Errors
    /// The first error of `wants`.
    pub(crate) fn retain(
        &mut self,
        wants: impl Fn(&TensorInfo) -> Result<bool>,
    ) -> Result<Vec<Arc<Description>>> {
        let mut others = Vec::new();
        let HeaderState::Parsed(parsed) = &mut self.header else { return Ok(others) };
        let (descriptions, labels) = (mem::take(&mut parsed.descriptions), mem::take(&mut parsed.labels));
        let places = mem::take(&mut self.places);
        for ((place, description), label) in places.into_iter().zip(descriptions).zip(labels) {
            if wants(&description.info)? {
                self.places.push(place);
                parsed.descriptions.push(description);
                parsed.labels.push(label);
            } else {
                others.push(description);
            }
        }
        Ok(others)
    }
}

impl Default for HeaderState {
    fn default() -> Self {
        Self::Parsed(ParsedHeader::default())
    }
}

/// With fewer bytes of tensors for each byte of header than this, reading the tensors hides too little of the
/// time for a second pass over the header.
const HIDING_BYTES: u64 = 4;

/// An open file whose header's length is known.
pub(super) struct PendingHeader {
    source: FileSource,
    pub(super) header_bytes: usize,
}

impl PendingHeader {
    pub(super) fn new(path: &Path) -> Result<Self> {
        let source = FileSource::open(path).map_err(format::with_link)?;
        let mut prefix = [0; 8];
        // Files of the kernel report a length of 0, and reads of some of them block: nothing is read from a
        // file that is too short.
        let prefix_bytes = if source.len() < 8 { 0 } else { source.read(&mut prefix, 0)? };
        let header_bytes = format::header_len(&prefix[..prefix_bytes], source.len())
            .map_err(|problem| wrong(&source, problem))?;
        Ok(Self { source, header_bytes })
    }

    /// Reads the header. With `outlines`, parses only the places where that is possible and worthwhile.
    pub(super) fn finish(self, device: &Device, outlines: bool) -> Result<OpenedFile> {
        let Self { source, header_bytes } = self;
        // Not zeroes: the system supplies zeroed memory page by page, on first use.
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
            return Ok(OpenedFile { source, places, header: HeaderState::Unparsed(text) });
        }
        let (places, parsed) = parse(&text, &source, device)?;
        Ok(OpenedFile { source, places, header: HeaderState::Parsed(parsed) })
    }
}

/// The error for a header that is wrong. Names the format of a file that is not safetensors, by its first
/// bytes.
fn wrong(source: &FileSource, problem: Problem) -> Error {
    let problem = match problem.doubts_format() {
        // As above: nothing is read from a file that reports a length of 0.
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

/// Parses a header.
pub(super) fn parse(text: &[u8], source: &FileSource, device: &Device) -> Result<(Vec<Place>, ParsedHeader)> {
    let (path, device) = (source.path(), Arc::new(device.clone()));
    let (entries, strings) = format::parse(text, source.len()).map_err(|problem| wrong(source, problem))?;
    let mut places = Vec::with_capacity(entries.len());
    let (descriptions, labels) = (Vec::with_capacity(entries.len()), Vec::with_capacity(entries.len()));
    let mut parsed = ParsedHeader { descriptions, labels, strings: strings.map(HeaderStrings::Compact) };
    for Entry { name, dtype, shape, start, nbytes } in entries {
        parsed.labels.push(Arc::clone(&name));
        let info = TensorInfo { name, dtype, shape, nbytes, file: Arc::clone(path) };
        parsed.descriptions.push(Arc::new(Description { info, device: Arc::clone(&device) }));
        places.push(Place { start, bytes: nbytes });
    }
    Ok((places, parsed))
}
