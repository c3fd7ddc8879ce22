//! How dropped ranges become free, and empty regions go back to their memory.
//!
//! ```text
//! last drop ─> retire queue ── take_back ──┬── nothing can be using it ────────────────> free
//!                                          ├── exposed: the memory is synchronized ────> free
//!                                          └── pending: its fences pass ───────────────> free
//! empty span ─> its region      unused part, empty region ─> the memory
//! ```
//! A placement, under the lock of the books, takes back what nothing can be using; the [reaper](start_reaper) does that too, and all
//! that may wait. No code of a memory or a fence runs under a lock.

mod exposed;
mod fences;
mod reaper;
mod regions;
mod shards;
mod take_back;

pub(crate) use reaper::start_reaper;
pub(crate) use shards::dissolve_shards;
pub(crate) use take_back::{take_back_for_placement, take_back_in_shard};
