//! A planned load: which tensors of which files, and where they will lie.

use std::collections::BTreeMap;
use std::mem;
use std::path::PathBuf;
use std::sync::Arc;

use tensorhold_allocator::offsets::Layout;
use tensorhold_allocator::{Pool, Reserved};

use super::headers::{Opened, Place};
use super::options::{Readers, Select};
use super::plan::{Extent, Plan};
use crate::error::Result;
use crate::format::{Catalog, Index};
use crate::tensor::{Description, Tensor, TensorInfo};
use crate::weights::{Metadata, Named};

/// A load's tensors, in the order of the layout: file by file, in the order of their bytes.
#[derive(Debug)]
pub(super) struct Batch {
    /// The files and, of each, the places of those tensors.
    pub(super) files: Vec<Opened>,
    pub(super) layout: Layout,
}

/// What the tensors are, and what was said of them: needed until they have been made.
#[derive(Debug, Default)]
pub(super) struct Described {
    /// By file: the tensors of the batch.
    tensors: Vec<Vec<Arc<Description>>>,
    /// Those that are not wanted, with their files' numbers.
    others: Vec<(usize, Arc<Description>)>,
    indexes: Vec<Index>,
}

impl Batch {
    /// The tensors that are left in the files, laid out by the pool.
    pub(super) fn new(files: Vec<Opened>, pool: &Pool) -> Result<Self> {
        let layout = pool.lay_out(extents(&files).map(|extent| extent.request()))?;
        Ok(Self { files, layout })
    }

    /// How many tensors there are.
    pub(super) fn len(&self) -> usize {
        self.layout.placements.len()
    }

    /// Bytes of the tensors.
    pub(super) fn bytes(&self) -> u64 {
        self.layout.placements.iter().map(|placement| placement.bytes).sum()
    }

    /// Where the tensors are.
    pub(super) fn extents(&self) -> impl Iterator<Item = Extent> {
        extents(&self.files)
    }

    /// What these readers do to read it.
    pub(super) fn plan(&self, readers: &Readers) -> Plan {
        Plan::new(self.extents(), &self.layout, readers.limits())
    }

    /// Cuts the memory into the tensors, which are handed out when their bytes have arrived (I3). After an error the memory
    /// is where it was.
    ///
    /// Tensors whose names others have too, which [`check`](Described::check) refuses, come beside the rest: dropped here,
    /// their memory could be someone else's while it is still written to.
    pub(super) fn place(
        &self,
        described: &Described,
        reserved: &mut Reserved,
    ) -> Result<(Named, Vec<Tensor>)> {
        let descriptions = || described.tensors.iter().flatten();
        let placed =
            reserved.place(&self.layout, descriptions().map(|description| &description.info.name))?;
        let mut named = Named::with_capacity_and_hasher(self.len(), Default::default());
        let mut displaced = Vec::new();
        for (description, bytes) in descriptions().zip(placed.fragments) {
            let tensor = Tensor::new(bytes, Arc::clone(description));
            displaced.extend(named.insert(Arc::clone(&description.info.name), tensor));
        }
        Ok((named, displaced))
    }

    /// The strings in the files' headers.
    pub(super) fn metadata(&self) -> BTreeMap<PathBuf, Metadata> {
        let of = |file: &Opened| (file.source.path().to_path_buf(), file.metadata.clone());
        self.files.iter().map(of).collect()
    }
}

/// Where the tensors of some files are.
fn extents(files: &[Opened]) -> impl Iterator<Item = Extent> {
    files.iter().enumerate().flat_map(|(file, opened)| {
        opened.places.iter().map(move |&Place { start, bytes }| Extent { file, start, bytes })
    })
}

/// Leaves out the tensors that are not wanted. Returns them, with their files' numbers.
fn leave_out(files: &mut [Opened], wanted: &Select) -> Vec<(usize, Arc<Description>)> {
    let mut others = Vec::new();
    for (number, file) in files.iter_mut().enumerate() {
        let all = mem::take(&mut file.places).into_iter().zip(mem::take(&mut file.descriptions));
        for (place, description) in all {
            if wanted(&description.info) {
                file.places.push(place);
                file.descriptions.push(description);
            } else {
                others.push((number, description));
            }
        }
    }
    others
}

impl Described {
    /// Takes the descriptions from the files, and leaves out the tensors that are not wanted.
    pub(super) fn take(files: &mut [Opened], indexes: Vec<Index>, wanted: Option<&Select>) -> Self {
        let others = wanted.map_or_else(Vec::new, |wanted| leave_out(files, wanted));
        let tensors = files.iter_mut().map(|file| mem::take(&mut file.descriptions)).collect();
        Self { tensors, others, indexes }
    }

    /// The wanted tensors.
    pub(super) fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.tensors.iter().flatten().map(|description| &description.info)
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

    /// What the memory is called before it is cut into tensors.
    pub(super) fn label(&self) -> Arc<str> {
        let first = self.tensors.iter().flatten().next();
        first.map_or_else(|| "".into(), |first| Arc::clone(&first.info.name))
    }
}
