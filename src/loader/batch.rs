//! A planned load: what is read, to where, and what becomes of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use tensorhold_allocator::Fragment;
use tensorhold_allocator::offsets::Layout;

use super::headers::Opened;
use super::plan::{Extent, Plan};
use crate::device::Device;
use crate::tensor::{Description, Tensor, TensorInfo};
use crate::weights::Metadata;

/// A planned load. Tensors are in the order of the layout: file by file, in the order of their bytes.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) opened: Vec<Opened>,
    pub(super) infos: Vec<TensorInfo>,
    pub(super) extents: Vec<Extent>,
    pub(super) layout: Layout,
    pub(super) plan: Plan,
}

impl Batch {
    /// What the pool enters in its books.
    pub(super) fn labels(&self) -> Vec<(Arc<str>, u64)> {
        self.infos.iter().map(|info| (Arc::clone(&info.name), info.nbytes)).collect()
    }

    /// The tensors in these fragments, one for one. They are handed out when their bytes have arrived (I3).
    pub(super) fn tensors(&self, fragments: Vec<Fragment>, device: &Device) -> Vec<Tensor> {
        let describe =
            |info: &TensorInfo| Arc::new(Description { info: info.clone(), device: device.clone() });
        self.infos.iter().zip(fragments).map(|(info, bytes)| Tensor::new(bytes, describe(info))).collect()
    }

    /// The strings in the files' headers.
    pub(super) fn metadata(&self) -> BTreeMap<PathBuf, Metadata> {
        let of = |file: &Opened| (file.source.path().to_path_buf(), file.header.metadata.clone());
        self.opened.iter().map(of).collect()
    }
}
