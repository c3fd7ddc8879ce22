//! Fragments: counted owners of ranges, the views that borrow them, and their uses on streams.

pub(crate) mod owned;
mod stream_use;

pub use owned::{Fragment, FragmentView, FragmentViewMut};
pub use stream_use::{StreamUse, StreamUseMut};
