//! [`Room`] and [`Replayed`]: the space of a replay, and its result.

use serde::{Deserialize, Serialize};

use super::digest::Digest;

/// The space of a replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Room {
    /// Regions that are added and released as in the pool, within its limit. Their first addresses are assumed to be multiples
    /// of every requested alignment.
    Growing,
    /// One space of this many bytes.
    Capacity(u64),
}

/// The result of a replay. All sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Replayed {
    /// Requests placed or refused, parts cut, and ranges freed, without empty fragments.
    pub operations: u64,
    /// Requests that were refused. A planned batch is one request for each of its blocks.
    pub failures: u64,
    /// Peak of live bytes, by requested sizes. A planned batch counts with its padding until it is cut.
    pub peak_live_bytes: u64,
    /// Peak of reserved bytes; with a given capacity, the capacity.
    pub peak_reserved_bytes: u64,
    /// The number of regions that were added.
    pub regions: u64,
    /// Free bytes at the peak of live bytes.
    pub free_at_peak_bytes: u64,
    /// The largest free block at the peak of live bytes.
    pub largest_free_at_peak_bytes: u64,
    /// Digest of all placements.
    pub digest: Digest,
}

impl Replayed {
    /// External fragmentation at the peak of live bytes: the share of the free bytes outside the largest free block.
    pub fn fragmentation_at_peak(&self) -> f64 {
        match self.free_at_peak_bytes {
            0 => 0.0,
            free => 1.0 - self.largest_free_at_peak_bytes as f64 / free as f64,
        }
    }
}

/// The pool's own placements, from the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Recorded {
    /// Peak of reserved bytes.
    pub peak_reserved_bytes: u64,
    /// The number of regions that were added.
    pub regions: u64,
    /// Digest of all placements.
    pub digest: Digest,
}
