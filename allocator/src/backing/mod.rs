//! Regions that are backed, and given back, in parts: each tensor's memory goes when the tensor does, though its neighbours live.
//!
//! A region is one range of addresses, laid out without regard to parts. The whole units of memory that one fragment has to
//! itself are a part of their own; the units between them, which neighbours share, are cut into parts of bounded size; units in which
//! no fragment lies are in no part and never have memory behind them. So nothing is padded, and a dropped fragment gives back
//! all of its bytes but those in the units at its two ends, which go with the neighbours there.
//!
//! ```text
//! fragments  |aaaaaaaaaaaaaaaaa|b|c|dddddddddddddddddddd|
//! units      |.....|.....|.....|.....|.....|.....|.....|
//! parts      |     a           |a b c|       d       |
//! ```
//!
//! Memory is put behind the parts in the order of their addresses, by [`Bases::bring_up`](crate::Bases::bring_up), while others wait for
//! those that they need.
//!
//! # Invariants
//! - **J1** The stage of a part changes under the lock of its region's state, and only so: `Absent` to `Coming` by the one that then commits
//!   it; `Coming` to `Present` or `Absent` by the same, after that; `Absent` or `Present` to `Gone` by the one that then decommits what was
//!   present. So a part is committed at most once at a time, decommitted at most once, and never committed again once it is `Gone`.
//! - **J2** The range is released after each part is `Gone` and was decommitted if it was `Present`. A range with a part that could not be
//!   decommitted is never released.
//!
//! A [`Bases`](crate::Bases) that outlives the region finds each part `Gone`, so by J1 it commits nothing.

mod bases;
mod commit;
mod cut;

pub use bases::Bases;
pub(crate) use commit::Backing;
pub(crate) use cut::{RegionPart, cut};
