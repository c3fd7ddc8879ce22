//! The safetensors format: headers, indexes, and the files of a checkpoint. Everything is checked before it is
//! believed (I5); no tensor's bytes are read here.
#![forbid(unsafe_code)]

mod catalog;
mod checkpoint;
mod foreign;
mod header;
#[cfg(test)]
mod header_tests;
mod in_memory;
mod index;
mod json;
mod outline;
mod problem;
mod read;
mod strings;
mod values;

pub(crate) use catalog::Catalog;
pub use checkpoint::LeftOut;
pub(crate) use checkpoint::{Listing, Named, Shards, as_text, with_link};
pub(crate) use foreign::START_BYTES;
pub use foreign::foreign_format;
pub(crate) use header::{Entry, MAX_HEADER_LEN, header_len, parse};
pub use in_memory::{Deserialized, TensorBytes};
pub(crate) use index::{Index, left_out};
pub(crate) use outline::{Place, outline};
pub(crate) use problem::Problem;
pub(crate) use strings::Sorted;

/// The key of a header that is no tensor's name.
pub(crate) const METADATA: &str = "__metadata__";
