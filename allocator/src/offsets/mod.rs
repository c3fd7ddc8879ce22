//! Placement as pure arithmetic on `u64` offsets. It touches no memory, so every policy is tested against a naive oracle and
//! works for memory that this process cannot address.
//!
//! - [`lay_out`] and [`Bump`]: the layout of a batch of known sizes, without a search.
//! - [`BestFit`]: a space with exact best fit, for blocks that are allocated and freed one at a time.
//! - [`Segregated`]: a space with good fit, whose search takes constant time.
//! - [`Space`]: the generic type of both; the policy of a `Space<Policy>` is chosen at run time.
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
