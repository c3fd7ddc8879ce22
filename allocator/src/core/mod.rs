//! What the handles, the fragments and the reaper of a pool share: its books behind their locks, and the retire queues.
//!
//! [`PoolCore`] owns all of it. A [`Record`] is what the fragments of one range share; it points to its pool, and the last drop
//! pushes it onto a [`RetireQueue`](retire_queue::RetireQueue) there. [`LockedPool`] holds all locks at once.
//!
//! # Shards
//! ```text
//! pool's books   region |aaaa|span of shard 0      |bbbbbb|span of shard 1      |      |
//! shard 0                     |aa|  |aaaa|   |a|          its lock, its fragments, its retire queue
//! shard 1                                                  |b|    |bb|bbb|
//! ```
//! Threads that contend for the lock of the books place in shards. A shard takes *spans*, blocks of the pool's regions, and places
//! small fragments in them; larger ones go to the pool's books, which alone know the regions, the limit and the pending ranges. A
//! pool that one thread uses has no shards. A thread keeps to one shard, and moves on when it meets another thread there.
//!
//! A span goes back when the reaper finds it empty. Before a placement is refused, the shards dissolve: the blocks in their spans
//! become blocks of the pool's regions, where free neighbours join.
//!
//! Locks are taken in this order: shards by their numbers, then the pool's books.
//!
//! # Invariants
//! - **H1** A fragment that was placed in a shard is in that shard's entries, and its record goes to that shard's queue, until it is
//!   taken back. Its location says where it lies: in a span of the shard or, once that has dissolved, in a region.
//! - **H2** A span is a live block of a region, and of no other span.

mod config;
mod locked_pool;
mod pool_core;
mod record;
mod retire_queue;
mod shard;
mod thread_slot;

pub use config::Sharding;
pub(crate) use config::{BatchRegions, PoolConfig};
pub(crate) use locked_pool::LockedPool;
pub(crate) use pool_core::{FenceMode, PoolCore};
pub(crate) use thread_slot::ThreadSlot;

/// The records of this crate's pools.
pub(crate) type Record = record::Record<PoolCore>;

/// The shards of this crate's pools.
pub(crate) type Shard = shard::Shard<PoolCore>;
