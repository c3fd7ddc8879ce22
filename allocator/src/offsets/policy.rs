//! Which free block a request goes to.

use serde::{Deserialize, Serialize};

use super::Request;
use super::best_fit::ByBestFit;
use super::blocks::Blocks;
use super::segregated::BySegregatedFit;

/// A policy that is chosen at run time, for [`Space`](super::Space).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Policy {
    /// As [`BestFit`](super::BestFit).
    #[default]
    BestFit,
    /// As [`Segregated`](super::Segregated).
    Segregated,
}

/// How a space searches. Closed: a policy lives in this module, where it is compared with an oracle.
pub trait Search: Copy {
    /// The free block that a request goes to, and where in it the request starts; `None` only if no free block holds
    /// the request. The request has bytes, its alignment is a power of two, and some bin has a block.
    #[doc(hidden)]
    fn search(self, blocks: &Blocks, request: Request) -> Option<(u32, u64)>;
}

impl Search for Policy {
    #[inline]
    fn search(self, blocks: &Blocks, request: Request) -> Option<(u32, u64)> {
        match self {
            Self::BestFit => ByBestFit.search(blocks, request),
            Self::Segregated => BySegregatedFit.search(blocks, request),
        }
    }
}
