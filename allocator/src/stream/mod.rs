//! Streams of device work, and the uses of a range that are recorded on them.

mod fence;
pub(crate) mod uses;

pub use fence::{Fence, OrderedStream};
