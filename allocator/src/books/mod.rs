//! The books: which regions a pool has, which fragments lie in them, and which dropped ranges are not free yet.
//!
//! [`Books`] are those of the pool; each shard has [`ShardBooks`] beside them. Both are plain data under locks that the `core`
//! module holds: nothing here locks, waits, or calls a memory, a fence or a stream.
//!
//! ```text
//! Books ── RegionTable ── Region ── offsets::Space     free and live blocks
//!   ├──── Slab<Entry> ── Location                      live fragments, and where they lie
//!   ├──── DeferredFrees ── PendingRange                dropped ranges that a device may still use
//!   ├──── Usage, Passes, Contention                    byte counts, passes of the reaper, waits for the lock
//!   └──── Journal ── events::Recorder                  the event log
//! ```

mod contention;
mod deferred;
mod entry;
mod frees;
mod journal;
mod passes;
mod pool_books;
mod regions;
mod reservations;
mod shard_books;
mod span;
mod usage;

pub(crate) use deferred::{FenceWait, PendingRange};
pub(crate) use entry::{Entry, Location, RegionBlock};
pub(crate) use passes::Pass;
pub(crate) use pool_books::Books;
pub(crate) use regions::{Region, UnusedPart};
pub(crate) use shard_books::ShardBooks;
pub(crate) use span::Span;
