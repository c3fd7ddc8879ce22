//! The descriptions of a load's tensors, and whether its files and indexes fit together.
//!
//! A load needs the places of its tensors first. The rest of long headers, and long indexes, may be read at
//! the same time as the tensors' bytes ([`PendingMetadata::resolve`]). An error in them is then found late,
//! but before any tensor is handed out (I3).

use std::sync::{Arc, Mutex, PoisonError};
use std::{mem, thread};

use super::header::{self, HeaderState, HeaderStrings, OpenedFile, ParsedHeader};
use super::index::OpenedIndex;
use crate::device::Device;
use crate::error::Result;
use crate::format::{Catalog, Index};
use crate::loader::parallel::parallel_map;
use crate::loader::transform::{Rule, TensorTransform, TransformSpec};
use crate::names::Names;
use crate::tensor::{Description, TensorInfo};
use crate::weights::Metadata;

/// Headers and indexes, some of which may not be parsed yet.
#[derive(Debug, Default)]
pub(crate) struct PendingMetadata {
    /// By file, with the selected tensors only.
    headers: Vec<HeaderState>,
    /// The tensors that the selection rejects, with the numbers of their files.
    others: Vec<(usize, Arc<Description>)>,
    indexes: Vec<OpenedIndex>,
}

/// Headers and indexes, parsed.
#[derive(Debug)]
pub(crate) struct ResolvedMetadata {
    /// By file, with the selected tensors only.
    parsed: Vec<ParsedHeader>,
    others: Vec<(usize, Arc<Description>)>,
    indexes: Vec<Index>,
}

/// At most this many threads, and half of the cores, parse headers: more would slow down the readers of the
/// tensors' bytes.
const MAX_THREADS: usize = 8;

impl PendingMetadata {
    /// Takes the headers from the files, and removes the tensors that `wanted` rejects. With a selection, all
    /// headers are parsed.
    ///
    /// # Errors
    /// When the rule calls itself.
    pub(crate) fn take(
        files: &mut [OpenedFile],
        indexes: Vec<OpenedIndex>,
        wanted: Option<&Rule<bool>>,
    ) -> Result<Self> {
        let others = wanted.map_or_else(|| Ok(Vec::new()), |wanted| leave_out(files, wanted))?;
        let headers = files.iter_mut().map(|file| mem::take(&mut file.header)).collect();
        Ok(Self { headers, others, indexes })
    }

    /// The tensors of parsed headers: the selected ones in load order, then the others.
    pub(crate) fn infos(&self) -> impl Iterator<Item = &TensorInfo> + Clone {
        let wanted =
            self.headers.iter().filter_map(HeaderState::parsed).flat_map(|parsed| &parsed.descriptions);
        let others = self.others.iter().map(|(_, description)| description);
        wanted.chain(others).map(|description| &description.info)
    }

    /// Applies conversions and cuts to the selected tensors. All headers are parsed. Returns the transforms
    /// with their tensors' numbers.
    ///
    /// # Errors
    /// When a requested conversion or cut is not supported for a tensor.
    pub(crate) fn apply_transforms(
        &mut self,
        files: &mut [OpenedFile],
        spec: &TransformSpec,
    ) -> Result<Vec<(usize, TensorTransform)>> {
        let (mut transforms, mut number) = (Vec::new(), 0);
        for (header, file) in self.headers.iter_mut().zip(files) {
            let HeaderState::Parsed(parsed) = header else { continue };
            for (place, description) in file.places.iter_mut().zip(&mut parsed.descriptions) {
                if let Some(resolved) = spec.resolve(&description.info, *place)? {
                    *place = resolved.place;
                    let device = Arc::clone(&description.device);
                    *description = Arc::new(Description { info: resolved.info, device });
                    transforms.extend(resolved.transform.map(|transform| (number, transform)));
                }
                number += 1;
            }
        }
        Ok(transforms)
    }

    /// Parses the remaining headers and indexes.
    ///
    /// # Errors
    /// When a header or index is invalid, or an index names other files than those that were guessed.
    pub(crate) fn resolve(self, files: &[OpenedFile], device: &Device) -> Result<ResolvedMetadata> {
        let Self { headers, others, indexes } = self;
        let unread = headers.iter().filter(|header| matches!(header, HeaderState::Unparsed(_))).count();
        // Asking for the number of cores takes longer than passing parsed headers on.
        let threads = match unread {
            0 | 1 => 1,
            _ => thread::available_parallelism().map_or(1, |cores| cores.get() / 2).min(MAX_THREADS),
        };
        // Taken one by one, so that each text is freed once it is parsed.
        let headers: Vec<_> = headers.into_iter().map(Mutex::new).collect();
        let read = parallel_map(headers.len(), threads.min(unread), "tensorhold-describe", |file| {
            let header = mem::take(&mut *headers[file].lock().unwrap_or_else(PoisonError::into_inner));
            let text = match header {
                HeaderState::Parsed(parsed) => return Ok(parsed),
                HeaderState::Unparsed(text) => text,
            };
            let OpenedFile { source, places, .. } = &files[file];
            let (parsed_places, parsed) = header::parse(&text, source, device)?;
            // Memory is reserved by place and lent by description: both must agree.
            match parsed_places == *places {
                true => Ok(parsed),
                false => Err(source.changed("its header says two things of its tensors' places".into())),
            }
        });
        let indexes = indexes.into_iter().filter_map(|index| index.confirm(files).transpose());
        let indexes = indexes.collect::<Result<_>>()?;
        Ok(ResolvedMetadata { parsed: read.into_iter().collect::<Result<_>>()?, others, indexes })
    }
}

/// Removes the tensors that `wanted` rejects. Returns them with the numbers of their files.
fn leave_out(files: &mut [OpenedFile], wanted: &Rule<bool>) -> Result<Vec<(usize, Arc<Description>)>> {
    let mut others = Vec::new();
    for (number, file) in files.iter_mut().enumerate() {
        let of_file = file.retain(|info| wanted.of(info))?;
        others.extend(of_file.into_iter().map(|description| (number, description)));
    }
    Ok(others)
}

impl ResolvedMetadata {
    /// The selected tensors, in load order.
    pub(crate) fn infos(&self) -> impl Iterator<Item = &TensorInfo> + Clone {
        self.parsed.iter().flat_map(|parsed| &parsed.descriptions).map(|description| &description.info)
    }

    /// Their names, as labels of their memory. Empties them.
    pub(crate) fn take_labels(&mut self) -> Vec<Arc<str>> {
        let count = self.parsed.iter().map(|parsed| parsed.labels.len()).sum();
        let mut labels = Vec::with_capacity(count);
        self.parsed.iter_mut().for_each(|parsed| labels.append(&mut mem::take(&mut parsed.labels)));
        labels
    }

    /// The free-form strings, by file. Called once, after all checks: as maps the strings take much memory.
    pub(crate) fn take_metadata(&mut self) -> Vec<Option<Arc<Metadata>>> {
        self.parsed.iter_mut().map(|parsed| parsed.strings.take().map(HeaderStrings::into_map)).collect()
    }

    /// Returns the headers to their files, after all checks.
    pub(crate) fn give_back(self, files: &mut [OpenedFile]) {
        for (file, mut parsed) in files.iter_mut().zip(self.parsed) {
            parsed.strings = parsed.strings.map(|strings| HeaderStrings::Map(strings.into_map()));
            file.header = HeaderState::Parsed(parsed);
        }
    }

    /// The descriptions of the selected tensors, in load order.
    pub(crate) fn into_descriptions(self) -> impl Iterator<Item = Arc<Description>> {
        self.parsed.into_iter().flat_map(|parsed| parsed.descriptions)
    }

    /// Checks that files and indexes, each valid by itself, fit together. Returns the numbers of the selected
    /// tensors, by name.
    ///
    /// # Errors
    /// When two files have a tensor of one name, or an index and a file disagree.
    pub(crate) fn check(&self, files: &[OpenedFile]) -> Result<Names> {
        let paths = files.iter().map(|file| &**file.source.path()).collect();
        let files = self.parsed.iter().enumerate();
        let wanted =
            files.flat_map(|(file, parsed)| parsed.descriptions.iter().map(move |tensor| (file, tensor)));
        let all = wanted.chain(self.others.iter().map(|(file, tensor)| (*file, tensor)));
        let wanted_count = self.parsed.iter().map(|parsed| parsed.descriptions.len()).sum::<usize>();
        let count = wanted_count + self.others.len();
        let mut catalog = Catalog::new(paths, count, all.map(|(file, tensor)| (file, &*tensor.info.name)))?;
        self.indexes.iter().try_for_each(|index| index.check(&mut catalog))?;
        let mut names = catalog.into_names();
        if !self.others.is_empty() {
            names.truncate(wanted_count);
        }
        Ok(names)
    }
}
