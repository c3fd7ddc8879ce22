//! A planned load: which tensors of which files, and where they will lie.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use tensorhold_allocator::offsets::Layout;
use tensorhold_allocator::{Request, Reserved};

use super::beside::beside;
use super::headers::Opened;
use super::options::{Readers, Select};
use super::plan::{Extent, Plan};
use crate::device::Device;
use crate::error::Result;
use crate::format::{Catalog, Entry, Index};
use crate::tensor::{Description, Tensor, TensorInfo};
use crate::weights::{Metadata, Named};

/// A load's tensors, in the order of the layout: file by file, in the order of their bytes.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) opened: Vec<Opened>,
    /// By tensor: the file and the place in its header.
    chosen: Vec<(usize, usize)>,
    pub(super) extents: Vec<Extent>,
    pub(super) layout: Layout,
}

/// Files and headers that were checked one by one, and tell whether they fit together.
pub(super) fn check(opened: &[Opened], indexes: &[Index]) -> Result<()> {
    let catalog = Catalog::new(opened.iter().map(|file| (&**file.source.path(), &file.header)))?;
    indexes.iter().try_for_each(|index| index.check(&catalog))
}

/// The tensors that are wanted: file and place in its header.
pub(super) fn select(opened: &[Opened], wanted: Option<&Select>) -> Vec<(usize, usize)> {
    let mut chosen = Vec::with_capacity(opened.iter().map(|file| file.header.tensors.len()).sum());
    for (index, file) in opened.iter().enumerate() {
        let entries = file.header.tensors.iter().enumerate();
        // A description is made only if someone wants to see it.
        let wanted = entries.filter(|(_, entry)| wanted.is_none_or(|wanted| wanted(&describe(file, entry))));
        chosen.extend(wanted.map(|(entry, _)| (index, entry)));
    }
    chosen
}

/// The descriptions of those tensors.
pub(super) fn infos(opened: &[Opened], chosen: &[(usize, usize)]) -> Vec<TensorInfo> {
    chosen.iter().map(|&(file, entry)| describe(&opened[file], &opened[file].header.tensors[entry])).collect()
}

fn describe(file: &Opened, entry: &Entry) -> TensorInfo {
    TensorInfo {
        name: Arc::clone(&entry.name),
        dtype: entry.dtype,
        shape: entry.shape.clone(),
        nbytes: entry.nbytes,
        file: Arc::clone(file.source.path()),
    }
}

impl Batch {
    /// The batch of the chosen tensors, laid out by `lay_out`.
    pub(super) fn new(
        opened: Vec<Opened>,
        chosen: Vec<(usize, usize)>,
        lay_out: impl FnOnce(&[Request]) -> tensorhold_allocator::Result<Layout>,
    ) -> Result<Self> {
        let extent = |&(file, entry): &(usize, usize)| {
            let Entry { start, nbytes: bytes, .. } = opened[file].header.tensors[entry];
            Extent { file, start, bytes }
        };
        let extents: Vec<Extent> = chosen.iter().map(extent).collect();
        let requests: Vec<Request> = extents.iter().map(Extent::request).collect();
        let layout = lay_out(&requests)?;
        Ok(Self { opened, chosen, extents, layout })
    }

    /// The tensors' files and entries, in order.
    fn chosen(&self) -> impl Iterator<Item = (&Opened, &Entry)> {
        self.chosen.iter().map(|&(file, entry)| {
            let file = &self.opened[file];
            (file, &file.header.tensors[entry])
        })
    }

    /// What these readers do to read it.
    pub(super) fn plan(&self, readers: &Readers) -> Plan {
        Plan::new(&self.extents, &self.layout, readers.span(), readers.group_bytes())
    }

    /// Bytes of the tensors.
    pub(super) fn bytes(&self) -> u64 {
        self.extents.iter().map(|extent| extent.bytes).sum()
    }

    /// What the memory is called before it is cut into tensors.
    pub(super) fn label(&self) -> Arc<str> {
        let first = self.chosen.first().map(|&(file, entry)| &self.opened[file].header.tensors[entry].name);
        first.map_or_else(|| "".into(), Arc::clone)
    }

    /// Cuts the memory into the tensors, which are handed out when their bytes have arrived (I3). After an error the memory
    /// is where it was.
    ///
    /// Tensors whose names others have too, which [`check`] refuses, come beside the rest: dropped here, their memory
    /// could be someone else's while it is still written to.
    pub(super) fn place(&self, reserved: &mut Reserved, device: &Device) -> Result<(Named, Vec<Tensor>)> {
        let describe = || -> Vec<Arc<Description>> {
            let description = |info| Arc::new(Description { info, device: device.clone() });
            self.chosen().map(|(file, entry)| description(describe(file, entry))).collect()
        };
        let cut = || {
            let labels: Vec<_> =
                self.chosen().map(|(_, entry)| (Arc::clone(&entry.name), entry.nbytes)).collect();
            reserved.place(&self.layout, &labels)
        };
        let (descriptions, cut) = beside(self.chosen.len(), "tensorhold-describe", describe, cut);
        let mut named = Named::with_capacity_and_hasher(descriptions.len(), Default::default());
        let mut displaced = Vec::new();
        for (description, bytes) in descriptions.into_iter().zip(cut?.fragments) {
            let name = Arc::clone(&description.info.name);
            displaced.extend(named.insert(name, Tensor::new(bytes, description)));
        }
        Ok((named, displaced))
    }

    /// The strings in the files' headers.
    pub(super) fn metadata(&self) -> BTreeMap<PathBuf, Metadata> {
        let of = |file: &Opened| (file.source.path().to_path_buf(), file.header.metadata.clone());
        self.opened.iter().map(of).collect()
    }
}
