//! What the handles, the fragments and the reaper of a pool share.

pub(crate) mod locked_pool;
pub(crate) mod pool_core;
pub(crate) mod retire_queue;
pub(crate) mod shard;
pub(crate) mod thread_slot;
