//! A policy that is chosen at run time.

use serde::{Deserialize, Serialize};

use super::best_fit::ByBestFit;
use super::blocks::Blocks;
use super::request::Request;
use super::search::{Search, sealed::Sealed};
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

impl Sealed for Policy {}

impl Search for Policy {
    #[inline]
    fn search(self, blocks: &Blocks, request: Request) -> Option<(u32, u64)> {
        match self {
            Self::BestFit => ByBestFit.search(blocks, request),
            Self::Segregated => BySegregatedFit.search(blocks, request),
        }
    }
}
