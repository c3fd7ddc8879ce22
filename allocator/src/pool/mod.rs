//! The pool as its users see it: options, placement, statistics and closing.

mod builder;
mod close;
mod growth;
mod handle;
mod layout_check;
mod planned;
mod shard_placement;
mod stats;
mod stream_placement;

pub use builder::{PoolBuilder, RegionParts};
pub use close::{Closed, Held, StillHeld};
pub use handle::Pool;
pub use planned::{Placed, Reserved};
pub use stats::{FragmentSnapshot, RegionSnapshot, Snapshot, Stats};
