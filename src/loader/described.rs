//! What the tensors of a load are, and what its indexes say of them.
//!
//! A load begins with where its tensors' bytes are. What else their headers say, and long indexes, may be read beside the reading
//! of the bytes ([`Told::read`]): then it is found out late that something is wrong, but before anything is handed out (I3).

use std::sync::Arc;
use std::{mem, thread};

use super::beside::{beside, each};
use super::headers::{self, Header, Indexed, Opened};
use super::options::Select;
use crate::device::Device;
use crate::error::Result;
use crate::format::{Catalog, Index};
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
    /// By file: the tensors of the batch.
    tensors: Vec<Vec<Arc<Description>>>,
    /// By file: the free-form strings.
    pub(super) metadata: Vec<Metadata>,
    others: Vec<(usize, Arc<Description>)>,
    indexes: Vec<Index>,
}

/// Half of the cores, up to so many threads, read headers: all of them would be in the way of those that read the tensors' bytes.
const MAX_THREADS: usize = 8;

impl Told {
    /// Takes what headers say from the files, and leaves out the tensors that are not wanted. Headers that have not been read
    /// have only wanted ones.
    pub(super) fn take(files: &mut [Opened], indexes: Vec<Indexed>, wanted: Option<&Select>) -> Self {
        let others = wanted.map_or_else(Vec::new, |wanted| leave_out(files, wanted));
        let headers = files.iter_mut().map(|file| mem::take(&mut file.header)).collect();
        Self { headers, others, indexes }
    }

    /// Reads the rest.
    ///
    /// # Errors
    /// When a header or index is not as it should be, or an index names other files than those near it, which were taken for
    /// those that it names.
    pub(super) fn read(self, files: &[Opened], device: &Device) -> Result<Described> {
        let Self { headers, others, indexes } = self;
        let unread = headers.iter().filter(|header| matches!(header, Header::Text(_))).count();
        let read_indexes = || indexes.iter().map(|index| index.read(files)).collect::<Result<Vec<_>>>();
        let threads = thread::available_parallelism().map_or(1, |cores| cores.get() / 2).min(MAX_THREADS);
        let read_headers = || {
            each(headers.len(), threads.min(unread), "tensorhold-describe", |file| match &headers[file] {
                Header::Text(text) => {
                    let Opened { source, places, .. } = &files[file];
                    let (said, descriptions, metadata) = headers::describe(text, source, device)?;
                    // Memory is given to each by its place, and lent by its description.
                    match said == *places {
                        true => Ok(Some((descriptions, metadata))),
                        false => {
                            Err(source.changed("its header says two things of its tensors' places".into()))
                        }
                    }
                }
                Header::Read(..) => Ok(None),
            })
        };
        let places = files.iter().map(|file| file.places.len()).sum();
        let (read_later, read) = beside(places, "tensorhold-index", read_indexes, read_headers);
        let indexes = indexes.into_iter().zip(read_later?).filter_map(|(index, read)| match index {
            Indexed::Read(index) => Some(index),
            Indexed::Guessed(..) => read,
        });
        let (tensors, metadata) = (Vec::with_capacity(files.len()), Vec::with_capacity(files.len()));
        let mut described = Described { tensors, metadata, others, indexes: indexes.collect() };
        for (header, read) in headers.into_iter().zip(read) {
            let (tensors, metadata) = match (header, read?) {
                (_, Some(read)) => read,
                (Header::Read(descriptions, metadata), None) => (descriptions, metadata),
                (Header::Text(_), None) => Default::default(),
            };
            described.tensors.push(tensors);
            described.metadata.push(metadata);
        }
        Ok(described)
    }
}

impl Indexed {
    /// Reads the index, unless it has been read.
    fn read(&self, files: &[Opened]) -> Result<Option<Index>> {
        let Self::Guessed(path, taken) = self else { return Ok(None) };
        let index = Index::read(path)?;
        let taken = files.get(taken.clone()).unwrap_or_default();
        match index.paths().eq(taken.iter().map(|file| &**file.source.path())) {
            true => Ok(Some(index)),
            false => Err(index.error("it names other files than those near it".into())),
        }
    }
}

/// Leaves out the tensors that are not wanted. Returns them, with their files' numbers.
fn leave_out(files: &mut [Opened], wanted: &Select) -> Vec<(usize, Arc<Description>)> {
    let mut others = Vec::new();
    for (number, file) in files.iter_mut().enumerate() {
        let Header::Read(descriptions, _) = &mut file.header else { continue };
        let all = mem::take(&mut file.places).into_iter().zip(mem::take(descriptions));
        for (place, description) in all {
            if wanted(&description.info) {
                file.places.push(place);
                descriptions.push(description);
            } else {
                others.push((number, description));
            }
        }
    }
    others
}

impl Described {
    /// The wanted tensors, in the order of the batch.
    pub(super) fn tensors(&self) -> impl Iterator<Item = &Arc<Description>> + Clone {
        self.tensors.iter().flatten()
    }

    /// What they are.
    pub(super) fn infos(&self) -> impl Iterator<Item = &TensorInfo> {
        self.tensors().map(|description| &description.info)
    }

    /// Checks whether files and indexes, each right by itself, fit together.
    pub(super) fn check(&self, files: &[Opened]) -> Result<()> {
        let paths = files.iter().map(|file| &**file.source.path()).collect();
        let wanted = self.tensors.iter().enumerate();
        let wanted = wanted.flat_map(|(file, tensors)| tensors.iter().map(move |tensor| (file, tensor)));
        let all = wanted.chain(self.others.iter().map(|(file, tensor)| (*file, tensor)));
        let count = self.tensors.iter().map(Vec::len).sum::<usize>() + self.others.len();
        let mut catalog = Catalog::new(paths, count, all.map(|(file, tensor)| (file, &*tensor.info.name)))?;
        self.indexes.iter().try_for_each(|index| index.check(&mut catalog))
    }
}
