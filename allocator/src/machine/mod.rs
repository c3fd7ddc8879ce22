//! The memory that this process may use: RAM, swap space and the limits of control groups.

mod cgroup;
mod memory_limit;

pub(crate) use memory_limit::memory_bytes;
