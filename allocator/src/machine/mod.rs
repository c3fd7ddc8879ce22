//! How much memory the machine has for its processes.

mod cgroup;
mod memory_limit;

pub(crate) use memory_limit::memory_bytes;
