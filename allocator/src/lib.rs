//! Regions, fragments and views: counted sub-allocations of a few large memory regions.
//!
//! A [`Pool`] reserves large *regions* from any [`Memory`] (host memory in this crate; device and pinned memory in
//! `tensorhold`) and carves *fragments* out of them. A [`Fragment`] is a counted owner of its range; a [`FragmentView`]
//! borrows it and costs a pointer and a length.
//!
//! ```
//! use tensorhold_allocator::{HostMemory, Pool, Request};
//!
//! let pool = Pool::new(HostMemory::new())?;
//! let mut fragment = pool.place("scales", Request::new(1024, 256))?;
//! if let Some(bytes) = fragment.as_bytes_mut() {
//!     bytes.fill(7);
//! }
//! let view = fragment.view(); // borrows `fragment`: cannot outlive it
//! assert_eq!(view.len(), 1024);
//!
//! let closed = pool.close(); // says who still holds memory
//! assert_eq!(closed.held[0].bytes, 1024);
//! # Ok::<(), tensorhold_allocator::Error>(())
//! ```
//!
//! # Invariants
//! Named in the `SAFETY` comments of this crate and of those above it.
//! - **I1 Memory outlives use.** A range goes back to the free list, and a region back to its memory, only when no
//!   fragment or view of it remains and, after the last drop, every recorded use has ended and, if its address was given out,
//!   [`Memory::synchronize`] has succeeded. [`Pool::place_on`] reuses it earlier, for work that is ordered after those uses.
//! - **R1** A record is freed by whoever took it off the retire queue, under the lock of the books, after the last fragment that
//!   points to it has retired it.
//! - **R2** The reaper of a pool runs until the pool is closed and holds no region and no fragment.
//! - **R3** A pool lives as long as each of its records: the record's fragment is in the books until the record is taken off the
//!   queue, and until then the reaper, which owns a reference to the pool, runs (R2). (In a forked child that reference stays for good.)
//!
//! # Giving memory back
//! The last drop of a range, on any thread, pushes its record onto a lock-free retire queue: no lock of the allocator,
//! no driver call, no wait. A placement reuses ranges that nothing can be using. The pool's reaper thread does the
//! rest: it waits for recorded uses, or for all work on the memory, frees the ranges, and releases empty regions.
//! [`Pool::trim`] and [`Pool::close`] wait for the reaper; nothing else does.
//!
//! # Forked children
//! A child has no reaper, and a lock that another thread held at the fork stays locked there. So drops do nothing, placements
//! and uses on streams are errors ([`Error::Forked`]), statistics are empty, and fragments can be read. [`Process`] tells a
//! child from its parent.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::todo, clippy::unimplemented)]
#![deny(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods)]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(not(all(target_os = "linux", target_pointer_width = "64", target_endian = "little")))]
compile_error!(
    "tensorhold-allocator supports 64-bit little-endian Linux only: it relies on Linux system calls and on 64-bit offsets"
);

mod backing;
mod books;
mod bytes;
#[cfg(feature = "conformance")]
pub mod conformance;
mod core;
mod error;
pub mod events;
mod fork;
mod fragment;
mod machine;
mod memory;
pub mod offsets;
mod pool;
mod quoted;
mod reclaim;
pub mod replay;
mod stream;
mod sync;

pub use backing::Bases;
pub use bytes::Bytes;
pub use core::Sharding;
pub use error::{Error, MemoryError, Result};
pub use fork::Process;
pub use fragment::{Fragment, FragmentView, FragmentViewMut, StreamUse, StreamUseMut};
pub use memory::{HostMemory, Memory, MemoryId, PartedMemory, RawRegion};
pub use offsets::Request;
pub use pool::{
    Closed, FragmentSnapshot, Held, Placed, Pool, PoolBuilder, RegionParts, RegionSnapshot, Reserved,
    Snapshot, Stats, StillHeld,
};
pub use quoted::{Brief, Quoted};
pub use stream::{Fence, OrderedStream};

// Offsets and lengths are u64 and go in and out of pointers.
const _: () = assert!(size_of::<usize>() == 8, "tensorhold needs a 64-bit target");
