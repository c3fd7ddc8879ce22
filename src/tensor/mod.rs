//! Tensors: descriptions, borrowed views and counted owners.
//!
//! A tensor is a fragment of a region and a description. [`TensorView`] borrows both, [`Tensor`] counts both;
//! what can be done with a tensor is written once, on the view.

#[cfg(feature = "dlpack")]
mod dlpack;
#[cfg(feature = "cuda-external")]
mod lend;
mod owned;
mod reinterpret;
mod view;

use std::path::Path;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use tensorhold_allocator::Brief;

use crate::device::Device;
use crate::dtype::DType;
use crate::shape::Shape;

#[cfg(feature = "cuda-external")]
pub use lend::{Lent, LentMut};
pub use owned::Tensor;
pub use view::{TensorView, TensorViewMut};

/// A tensor as it is on its device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TensorInfo {
    /// Its name in the checkpoint.
    pub name: Arc<str>,
    /// The type of its elements.
    pub dtype: DType,
    /// Its dimensions, outermost first; none for a scalar.
    pub shape: Shape,
    /// Its size in bytes.
    pub nbytes: u64,
    /// The file that it was read from. Serialized, bytes of its path that are not UTF-8 are replaced by U+FFFD.
    #[serde(serialize_with = "as_text")]
    pub file: Arc<Path>,
}

/// Serializes a path, which need not be UTF-8.
pub(crate) fn as_text<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

impl TensorInfo {
    /// Its type and shape, for an error.
    pub(crate) fn spelled(&self) -> String {
        format!("{}{}", self.dtype, Brief(format_args!("{:?}", self.shape)))
    }
}

/// What a tensor's views and owners point to.
#[derive(Debug)]
pub(crate) struct Description {
    pub(crate) info: TensorInfo,
    /// Counted for each file by itself: descriptions of many files are made at once, and one count would be in their way.
    pub(crate) device: Arc<Device>,
}
