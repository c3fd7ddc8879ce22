//! Where regions come from: the [`Memory`] trait, and the host's memory.

mod host;
mod traits;

pub use host::HostMemory;
pub use traits::{Memory, MemoryId, PartedMemory, RawRegion};
