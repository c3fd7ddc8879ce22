//! Tensors: descriptions, borrowed views and counted owners.
//!
//! A tensor is a fragment of a region and a description. [`TensorView`] borrows both, [`Tensor`] counts both;
//! what can be done with a tensor is written once, on the view.
//!
//! # Invariants
//! Of every [`Tensor`] and the views of it:
//! - **Y1** Its fragment lies in its device's memory: the memory's id is that of the device's (M4). So it is the device that says whether the CPU can access it.
//! - **Y2** Its fragment is as long as its info says, and that is what type and shape take.
//! - **Y3** Its fragment is written to only while its only owner is borrowed mutably, through [`TensorViewMut`]: it is never lent for writing on a stream
//!   ([`Fragment::use_mut_on`](tensorhold_allocator::Fragment::use_mut_on)), so no recorded use of it writes.
//!
//! `Tensor::new` checks the first two, whoever calls it.

#[cfg(feature = "dlpack")]
mod dlpack;
mod from_host;
#[cfg(feature = "cuda-external")]
mod lend;
mod owned;
mod reinterpret;
mod view;

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use tensorhold_allocator::Brief;

use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::as_text;
use crate::shape::{Shape, elements};

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

impl TensorInfo {
    /// Checks that it has as many bytes as its type and shape take (Y2). Its fields are public: any can be anything.
    ///
    /// # Errors
    /// When it has not.
    pub(crate) fn check(&self, operation: &'static str) -> Result<()> {
        let bits = elements(&self.shape).and_then(|count| count.checked_mul(self.dtype.bits().into()));
        if bits.is_some_and(|bits| bits.is_multiple_of(8) && bits / 8 == self.nbytes) {
            return Ok(());
        }
        let expected = match bits {
            Some(bits) => format!("{} bits by its type and shape, {}, in whole bytes", bits, self.spelled()),
            None => format!("a type and shape of fewer than 2^64 bits, not {}", self.spelled()),
        };
        Err(Error::Tensor {
            operation,
            name: self.name.to_string(),
            got: format!("{} bytes", self.nbytes),
            expected,
            remedy: "take infos from a checkpoint, and correct the bytes of those that you change".into(),
        })
    }

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
