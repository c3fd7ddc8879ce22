//! What a replay places in, and what comes of it.

use serde::{Deserialize, Serialize};

use super::digest::Digest;

/// What a replay has to place in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Room {
    /// Regions that come and go as the pool's do, within its limit. Their first addresses are taken to be multiples of
    /// every alignment that is asked for.
    Growing,
    /// One space of so many bytes.
    Capacity(u64),
}

/// What came of a replay. All sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Replayed {
    /// Requests placed or refused, parts cut, and ranges freed; empty fragments are none.
    pub operations: u64,
    /// Requests that were refused. A planned batch has one for each of its blocks.
    pub failures: u64,
    /// The most that was live, by the sizes asked for. A planned batch counts with its padding until it is cut.
    pub peak_live_bytes: u64,
    /// The most that was reserved; the capacity, where that is given.
    pub peak_reserved_bytes: u64,
    /// How many regions came.
    pub regions: u64,
    /// Free when the most was live.
    pub free_at_peak_bytes: u64,
    /// The largest free block then.
    pub largest_free_at_peak_bytes: u64,
    /// Of where everything was placed.
    pub digest: Digest,
}

impl Replayed {
    /// External fragmentation at the peak of live bytes: which part of the free bytes is not in the largest free block.
    pub fn fragmentation_at_peak(&self) -> f64 {
        match self.free_at_peak_bytes {
            0 => 0.0,
            free => 1.0 - self.largest_free_at_peak_bytes as f64 / free as f64,
        }
    }
}

/// What the pool itself did, as the log tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Recorded {
    /// The most that was reserved, in bytes.
    pub peak_reserved_bytes: u64,
    /// How many regions came.
    pub regions: u64,
    /// Of where everything was placed.
    pub digest: Digest,
}
