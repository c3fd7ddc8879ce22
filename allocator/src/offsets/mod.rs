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
mod request;
mod search;
mod segregated;
mod space;
#[cfg(test)]
mod space_tests;

pub use best_fit::ByBestFit;
pub use keys::{Allocation, Block, CarveError, Key, StaleKey};
pub use planned::{Bump, Layout, LayoutError, Placement, RegionShape, lay_out};
pub use policy::Policy;
pub use request::Request;
pub(crate) use request::align_up;
pub use search::Search;
pub use segregated::BySegregatedFit;
pub use space::{BestFit, Segregated, Space};
