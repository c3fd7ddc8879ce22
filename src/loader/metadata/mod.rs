//! Headers and indexes: opening files, reading what they say about tensors, and checking that they fit
//! together.

mod duplicates;
mod header;
mod index;
mod inspection;
mod open;
mod resolve;

pub(crate) use header::{HeaderState, OpenedFile, ParsedHeader};
pub(crate) use index::{is_guessable, with_descriptors};
pub use inspection::{FileInfo, Inspection};
pub(crate) use open::{InitialRead, OpenedFiles, open_all};
pub(crate) use resolve::PendingMetadata;
