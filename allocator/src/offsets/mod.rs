//! Placement as pure arithmetic over `u64` offsets: no memory is touched, so every policy can be tested against a naive
//! oracle and used for memory that is not addressable here.
//!
//! - [`lay_out`] and [`Bump`]: the layout of a batch whose sizes are known. No search.
//! - [`BestFit`]: one space with exact best fit, for what comes and goes one at a time.
//! - [`Segregated`]: the same by good fit, whose search takes the same time however many blocks are free.
//! - [`Space`]: what both are; a `Space<Policy>` has the policy that is chosen at run time.
#![forbid(unsafe_code)]

mod best_fit;
mod bins;
mod blocks;
mod keys;
mod planned;
#[cfg(test)]
mod planned_tests;
mod policy;
mod search;
mod segregated;
mod space;
#[cfg(test)]
mod space_tests;

pub use best_fit::ByBestFit;
pub use keys::{Allocation, Block, CarveError, Key, StaleKey};
pub use planned::{Bump, Layout, LayoutError, Placement, RegionShape, lay_out};
pub use policy::Policy;
pub use search::Search;
pub use segregated::BySegregatedFit;
pub use space::{BestFit, Segregated, Space};

/// What is asked of a space: bytes, and a power of two that the offset is to be a multiple of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Size in bytes; 0 is valid.
    pub size: u64,
    /// Alignment in bytes, a power of two.
    pub align: u64,
}

impl Request {
    /// A request for `size` bytes at a multiple of `align`.
    pub const fn new(size: u64, align: u64) -> Self {
        Self { size, align }
    }
}

/// `offset` rounded up to a multiple of `align`, a power of two; `None` past `u64::MAX`.
#[inline]
pub(crate) const fn align_up(offset: u64, align: u64) -> Option<u64> {
    match offset.checked_add(align - 1) {
        Some(sum) => Some(sum & !(align - 1)),
        None => None,
    }
}
