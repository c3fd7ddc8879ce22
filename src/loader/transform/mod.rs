//! Conversions and cuts of tensors: what a caller requests, and what that means for one tensor.
//!
//! [`TransformSpec`] holds the request. [`TransformSpec::resolve`] turns it into a
//! [`ResolvedTensor`](resolve::ResolvedTensor): the tensor as it will be loaded, the bytes that it is made
//! from, and the [`TensorTransform`] that makes it. Pure: no I/O and no memory of tensors.

mod cut;
mod resolve;
mod rule;
mod spec;
mod strided;

pub use cut::Cut;
pub(crate) use resolve::{TensorTransform, TensorTransforms};
pub(crate) use rule::Rule;
pub use spec::{CutReads, TransformOn};
pub(crate) use spec::{DTYPES, TransformSpec};
pub(crate) use strided::Level;
