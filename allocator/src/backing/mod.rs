//! Regions that are committed and decommitted in parts: a dropped fragment's memory is released while its neighbours live.
//!
//! A region is one address range, laid out without regard to parts. The whole allocation units that one fragment covers alone are a
//! part; the units between them, which neighbours share, are cut into parts of bounded size; units in which no fragment lies are in no
//! part and are never committed. So nothing is padded, and a dropped fragment releases all its bytes except those in the units at its
//! two ends, which are released with the neighbours there.
//!
//! ```text
//! fragments  |aaaaaaaaaaaaaaaaa|b|c|dddddddddddddddddddd|
//! units      |.....|.....|.....|.....|.....|.....|.....|
//! parts      |     a           |a b c|       d       |
//! ```
//!
//! [`Bases::bring_up`](crate::Bases::bring_up) commits the parts in the order of their addresses, while other threads wait for those that
//! they need.
//!
//! # Invariants
//! - **J1** The stage of a part changes under the lock of its region's state, in these ways alone: `Absent` to `Coming` by the thread that
//!   then commits it; `Coming` to `Present` or `Absent` by the same thread afterwards; `Absent` or `Present` to `Gone` by the thread that
//!   then decommits it, if it was present. So a part is committed at most once at a time, decommitted at most once, and never committed again once it is `Gone`.
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
