//! What the tensors of a load are, and what its indexes say of them.
//!
//! A load begins with where its tensors' bytes are. What else their headers say, and long indexes, may be read beside the reading
//! of the bytes ([`Told::read`]): then it is found out late that something is wrong, but before anything is handed out (I3).

use std::sync::{Arc, Mutex, PoisonError};
use std::{mem, thread};

use super::asked::Asked;
use super::beside::each;
use super::change::Change;
use super::headers::{self, Header, Indexed, Opened, Said, Strings};
use super::rule::Rule;
use crate::device::Device;
use crate::error::Result;
use crate::format::{Catalog, Index};
use crate::names::Names;
use crate::tensor::{Description, TensorInfo};
use crate::weights::Metadata;

/// What headers and indexes say, as far as it has been read.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// By file: of the tensors that are wanted.
    headers: Vec<Header>,
    /// The tensors that are not wanted, with their files' numbers.
    others: Vec<(usize, Arc<Description>)>,
    indexes: Vec<Indexed>,
}

/// The same, when all of it has been read.
#[derive(Debug)]
pub(super) struct Described {
    /// By file: of the tensors of the batch.
    said: Vec<Said>,
    others: Vec<(usize, Arc<Description>)>,
    indexes: Vec<Index>,
}

/// Half of the cores, up to so many threads, read headers: all of them would be in the way of those that read the tensors' bytes.
const MAX_THREADS: usize = 8;

impl Told {
    /// Takes what headers say from the files, and leaves out the tensors that are not wanted. Headers that have not been read
    /// have only wanted ones.
    ///
    /// # Errors
    /// When the rule asks for its own answer.
    pub(super) fn take(
        files: &mut [Opened],
        indexes: Vec<Indexed>,
        wanted: Option<&Rule<bool>>,
    ) -> Result<Self> {
        let others = wanted.map_or_else(|| Ok(Vec::new()), |wanted| leave_out(files, wanted))?;
        let headers = files.iter_mut().map(|file| mem::take(&mut file.header)).collect();
        Ok(Self { headers, others, indexes })
    }

    /// What the tensors of headers that have been read are, wanted or not: the wanted ones first, in the order of the batch.
    pub(super) fn infos(&self) -> impl Iterator<Item = &TensorInfo> + Clone {
        let wanted = self.headers.iter().filter_map(Header::said).flat_map(|said| &said.descriptions);
        let others = self.others.iter().map(|(_, description)| description);
        wanted.chain(others).map(|description| &description.info)
    }

    /// Makes of the wanted tensors what is asked. All headers have been read.
    ///
    /// # Errors
    /// When a tensor cannot be had like that.
    pub(super) fn change(&mut self, files: &mut [Opened], asked: &Asked) -> Result<Vec<(usize, Change)>> {
        let (mut changed, mut number) = (Vec::new(), 0);
        for (header, file) in self.headers.iter_mut().zip(files) {
            let Header::Read(said) = header else { continue };
            for (place, description) in file.places.iter_mut().zip(&mut said.descriptions) {
                if let Some(found) = asked.of(&description.info, *place)? {
                    *place = found.place;
                    let device = Arc::clone(&description.device);
                    *description = Arc::new(Description { info: found.info, device });
                    changed.extend(found.change.map(|change| (number, change)));
                }
                number += 1;
            }
        }
        Ok(changed)
    }

    /// Reads the rest.
    ///
    /// # Errors
    /// When a header or index is not as it should be, or an index names other files than those near it, which were taken for
    /// those that it names.
    pub(super) fn read(self, files: &[Opened], device: &Device) -> Result<Described> {
        let Self { headers, others, indexes } = self;
        let unread = headers.iter().filter(|header| matches!(header, Header::Text(_))).count();
        // Asking for the number of cores takes longer than to hand on what has been read.
        let threads = match unread {
            0 | 1 => 1,
            _ => thread::available_parallelism().map_or(1, |cores| cores.get() / 2).min(MAX_THREADS),
        };
        // Taken one by one, so that each text goes when it has been read.
        let headers: Vec<_> = headers.into_iter().map(Mutex::new).collect();
        let read = each(headers.len(), threads.min(unread), "tensorhold-describe", |file| {
            let header = mem::take(&mut *headers[file].lock().unwrap_or_else(PoisonError::into_inner));
            let text = match header {
                Header::Read(said) => return Ok(said),
                Header::Text(text) => text,
            };
            let Opened { source, places, .. } = &files[file];
            let (said_places, said) = headers::describe(&text, source, device)?;
            // Memory is given to each by its place, and lent by its description.
            match said_places == *places {
                true => Ok(said),
                false => Err(source.changed("its header says two things of its tensors' places".into())),
            }
        });
        let indexes = indexes.into_iter().filter_map(|index| index.confirm(files).transpose());
        let indexes = indexes.collect::<Result<_>>()?;
        Ok(Described { said: read.into_iter().collect::<Result<_>>()?, others, indexes })
    }
}

/// Leaves out the tensors that are not wanted. Returns them, with their files' numbers.
fn leave_out(files: &mut [Opened], wanted: &Rule<bool>) -> Result<Vec<(usize, Arc<Description>)>> {
    let mut others = Vec::new();
    for (number, file) in files.iter_mut().enumerate() {
        let of_file = file.retain(|info| wanted.of(info))?;
        others.extend(of_file.into_iter().map(|description| (number, description)));
    }
    Ok(others)
}

impl Described {
    /// What the wanted tensors are, in the order of the batch.
    pub(super) fn infos(&self) -> impl Iterator<Item = &TensorInfo> + Clone {
        self.said.iter().flat_map(|said| &said.descriptions).map(|description| &description.info)
    }

    /// Their names, for their memory. Taken once.
    pub(super) fn take_labels(&mut self) -> Vec<Arc<str>> {
        let count = self.said.iter().map(|said| said.labels.len()).sum();
        let mut labels = Vec::with_capacity(count);
        self.said.iter_mut().for_each(|said| labels.append(&mut mem::take(&mut said.labels)));
        labels
    }

    /// Files' free-form strings, by file. Taken once, when all has been checked: as maps they take much memory.
    pub(super) fn take_metadata(&mut self) -> Vec<Option<Arc<Metadata>>> {
        self.said.iter_mut().map(|said| said.strings.take().map(Strings::into_map)).collect()
    }

    /// Gives what headers say back to the files, when all has been checked.
    pub(super) fn give_back(self, files: &mut [Opened]) {
        for (file, mut said) in files.iter_mut().zip(self.said) {
            said.strings = said.strings.map(|strings| Strings::Map(strings.into_map()));
            file.header = Header::Read(said);
        }
    }

    /// The wanted tensors' descriptions, in the order of the batch.
    pub(super) fn into_descriptions(self) -> impl Iterator<Item = Arc<Description>> {
        self.said.into_iter().flat_map(|said| said.descriptions)
    }

    /// Checks whether files and indexes, each right by itself, fit together. Returns the numbers of the wanted tensors in the
    /// order of the batch, by name.
    pub(super) fn check(&self, files: &[Opened]) -> Result<Names> {
        let paths = files.iter().map(|file| &**file.source.path()).collect();
        let files = self.said.iter().enumerate();
        let wanted =
            files.flat_map(|(file, said)| said.descriptions.iter().map(move |tensor| (file, tensor)));
        let all = wanted.chain(self.others.iter().map(|(file, tensor)| (*file, tensor)));
        let wanted_count = self.said.iter().map(|said| said.descriptions.len()).sum::<usize>();
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
