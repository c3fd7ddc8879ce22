//! Fragments: counted owners of ranges, the views that borrow them, and their uses on streams.
//!
//! ```text
//! Fragment      [ address | length | record ]   three words; Clone counts, Drop may retire
//! FragmentView  [ address | length ]            two words; borrows a Fragment
//! ```

mod owned;
mod stream_use;
mod view;

pub use owned::Fragment;
pub use stream_use::{StreamUse, StreamUseMut};
pub use view::{FragmentView, FragmentViewMut};
