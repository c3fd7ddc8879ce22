//! A planned load: which tensors of which files, and where they will lie.

use std::sync::Arc;

use tensorhold_allocator::offsets::Layout;
use tensorhold_allocator::{Pool, Reserved};

use super::described::Described;
use super::headers::Opened;
use super::options::Readers;
use super::plan::{Extent, Plan};
use crate::error::Result;
use crate::format::Place;
use crate::tensor::Tensor;
use crate::weights::Named;

/// A load's tensors, in the order of the layout: file by file, in the order of their bytes.
#[derive(Debug)]
pub(super) struct Batch {
    /// The files and, of each, the places of those tensors.
    pub(super) files: Vec<Opened>,
    pub(super) layout: Layout,
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

    /// What the memory is called before it is cut into tensors.
    pub(super) fn label(&self) -> Arc<str> {
        let path = self.files.first().map(|file| file.source.path().to_string_lossy());
        path.unwrap_or_default().into()
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
        let descriptions = || described.tensors();
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
}

/// Where the tensors of some files are.
fn extents(files: &[Opened]) -> impl Iterator<Item = Extent> {
    files.iter().enumerate().flat_map(|(file, opened)| {
        opened.places.iter().map(move |&Place { start, bytes }| Extent { file, start, bytes })
    })
}
